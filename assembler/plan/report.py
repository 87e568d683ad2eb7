"""A plan for the eye and for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.assembler.plan.estimate import build_seconds, speed_of
from hybridize.assembler.plan.planning import Plan
from hybridize.assembler.plan.stack import ENTER, LEAVE, Bridge, Slot
from hybridize.console import count, duration, size
from hybridize.model.checkpoint import BITS, TensorHeader
from hybridize.model.depth_map import mixer_of, mlp_of
from hybridize.model.layer_table import Row, layer_table
from hybridize.text.calibration import NOT_MEASURED


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Everything the table shows, slot by slot."""
    return {
        "name": plan.name,
        "target": plan.target,
        "reason": plan.reason,
        "dtype": plan.dtype_reason,
        "tied": plan.tied,
        "embeddings": plan.embeddings,
        "head": plan.head,
        "tokenizer": plan.tokenizer.name if plan.tokenizer else None,
        "donors": {
            name: {
                "source": donor.source,
                "commit": donor.commit,
                "license": donor.license,
                "model_type": donor.model_type,
                "layers": donor.depth,
                "width": donor.anatomy.width,
                "vocabulary": donor.anatomy.vocabulary,
                "dtype": donor.anatomy.dtype,
            }
            for name, donor in plan.donors.items()
        },
        "slots": [
            {
                "slot": i,
                "donor": slot.donor,
                "layer": slot.layer,
                "mixer": _modules(plan, slot)[0],
                "mlp": _modules(plan, slot)[1],
                "made": slot.made,
                "swaps": [vars(swap) for swap in slot.swaps],
                "width": plan.donors[slot.donor].anatomy.width,
                "parameters": sum(t.numel for t in plan.slot_tensors(slot)),
                "bytes": _bytes(plan, slot.donor, plan.slot_tensors(slot)),
            }
            for i, slot in enumerate(plan.slots)
        ],
        "bridges": [
            {
                **asdict(bridge),
                "parameters": bridge.num_parameters,
                "tokens_needed": bridge.tokens_needed,
            }
            for bridge in plan.bridges.values()
        ],
        "lineages": [asdict(lineage) for lineage in plan.lineages],
        "calibration": plan.calibration
        and {
            "tokens": plan.calibration_tokens,
            "measured_tokens": plan.measured_tokens,
            "start_tokens": {
                name: donor and donor.start_token for name, donor in plan.tokenizers.items()
            },
            "domains": [domain.name for domain in plan.calibration.domains],
            "brought": plan.calibration.brought,
        },
        "parameters": num_parameters(plan),
        "bytes": num_bytes(plan),
        "seconds": (speed := speed_of(plan)) and vars(build_seconds(plan, speed, num_bytes(plan))),
        "notes": list(plan.notes),
    }


def num_parameters(plan: Plan) -> int:
    """Parameters of the result (a tied head counts once)."""
    return sum(n for _, n, _ in _parts(plan))


def num_bytes(plan: Plan) -> int:
    """Bytes of weights of the result."""
    return sum(n for _, _, n in _parts(plan))


def _parts(plan: Plan) -> list[tuple[str, int, int]]:
    """(what, parameters, bytes) of every part, from the embedding upwards."""
    bridge_bytes = BITS[plan.main_dtype] // 8
    embedding, head = plan.donors[plan.embeddings].anatomy, plan.donors[plan.head].anatomy
    below = (embedding.embedding, *embedding.others)
    above = head.norm if plan.tied else (*head.norm, *plan.head_tensors)
    parts = [
        ("below", sum(t.numel for t in below), _bytes(plan, plan.embeddings, below)),
        ("above", sum(t.numel for t in above), _bytes(plan, plan.head, above)),
    ]
    for i, slot in enumerate(plan.slots):
        tensors = plan.slot_tensors(slot)
        parts.append((str(i), sum(t.numel for t in tensors), _bytes(plan, slot.donor, tensors)))
    for where, bridge in plan.bridges.items():
        n = bridge.num_parameters
        parts.append((f"bridge {where}", n, n * bridge_bytes))
    return parts


def _bytes(plan: Plan, donor: str, tensors: Iterable[TensorHeader]) -> int:
    """Bytes of a donor's tensors in the result."""
    return sum(t.numel * BITS[plan.dtype_of(t.dtype, donor)] // 8 for t in tensors)


def plan_table(plan: Plan, *, full: bool = False) -> RenderableType:
    """The plan as build's user wants to read it; `full`: a row for every slot."""
    donors = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("donor", "type", "layers", "width", "vocabulary", "dtype", "license", "source"):
        donors.add_column(
            heading,
            justify="right" if heading in ("layers", "width", "vocabulary") else "left",
            no_wrap=heading not in ("license", "source"),
            overflow="fold",
        )
    for name, donor in plan.donors.items():
        anatomy = donor.anatomy
        donors.add_row(
            name, donor.model_type, str(donor.depth), str(anatomy.width), count(anatomy.vocabulary),
            anatomy.dtype, donor.license or "not stated",
            donor.source + (f" @ {donor.commit[:12]}" if donor.commit else ""),
        )  # fmt: skip
    slots = layer_table(_rows(plan), stack=True, full=full)
    return Group(donors, Text(), slots, Text(), _summary(plan))


def _rows(plan: Plan) -> Iterator[Row]:
    below, above = plan.donors[plan.embeddings].anatomy, plan.donors[plan.head].anatomy
    yield Row(
        plan.embeddings, "embeddings", "", str(below.width), below.embedding.numel,
        _bytes(plan, plan.embeddings, [below.embedding]),
    )  # fmt: skip
    bridges: dict[str, list[tuple[str, Bridge]]] = defaultdict(list)
    for where, bridge in plan.bridges.items():
        bridges[where.partition(".")[0]].append((where, bridge))
    for i, slot in enumerate(plan.slots):
        yield from _bridge_rows(plan, bridges[str(i)])
        tensors = plan.slot_tensors(slot)
        mixer, mlp = _modules(plan, slot, short=True)
        yield Row(
            slot.donor + (" (made)" if slot.made else ""),
            mixer,
            mlp,
            str(plan.donors[slot.donor].anatomy.width),
            sum(t.numel for t in tensors),
            _bytes(plan, slot.donor, tensors),
            slots=(i, i),
            layers=(slot.layer, slot.layer),
        )
    yield from _bridge_rows(plan, bridges["head"])
    head = () if plan.tied else plan.head_tensors
    yield Row(
        plan.head, "head" + (" (tied)" if plan.tied else ""), "", str(above.width),
        sum(t.numel for t in head), _bytes(plan, plan.head, head),
    )  # fmt: skip


def _modules(plan: Plan, slot: Slot, *, short: bool = False) -> tuple[str, str]:
    """Mixer and MLP of a slot, those of other layers with where they come from."""
    layer, config = plan.layer(slot), plan.donors[slot.donor].config
    mixer, mlp = mixer_of(config, layer, short=short), mlp_of(layer)
    for swap in slot.swaps:
        guest = plan.donors[swap.donor]
        inside, origin = guest.anatomy.layers[swap.layer], f" of {swap.donor} {swap.layer}"
        if swap.path in layer.mixers:
            mixer = mixer_of(guest.config, inside, name=swap.module, short=short) + origin
        else:
            mlp = mlp_of(inside) + origin
    return mixer, mlp


def _bridge_rows(plan: Plan, bridges: Iterable[tuple[str, Bridge]]) -> Iterator[Row]:
    """The bridge before a slot or the head, and those around its swapped modules."""
    sides = {ENTER: "into", LEAVE: "out of"}
    for where, bridge in bridges:
        path, _, side = where.partition(".")[2].rpartition(".")
        yield Row(
            "bridge",
            f"{bridge.kind}, {sides[side]} {path}"
            if path
            else f"{bridge.kind}, init {bridge.init}",
            "",
            f"{bridge.width_in}→{bridge.width_out}",
            bridge.num_parameters,
            bridge.num_parameters * BITS[plan.main_dtype] // 8,
            style="cyan",
        )


def _summary(plan: Plan) -> RenderableType:
    total = num_bytes(plan)
    head = (
        f"{plan.name}: {len(plan.slots)} slots, {count(num_parameters(plan))} parameters, "
        f"{size(total)}"
    )
    lines = [
        ("target", f"{plan.target}: {plan.reason}"),
        ("dtype", plan.dtype_reason),
        ("tokenizer", plan.tokenizer.name if plan.tokenizer else "none"),
        (
            "needs",
            f"{size(total)} of disk, as much memory to load and run it once",
        ),
        ("time", _time(plan, total)),
        *(("lineage", str(lineage)) for lineage in plan.lineages),
        *([("text", _text(plan))] if plan.calibration else []),
        *(("note", note) for note in plan.notes),
    ]
    # Two columns, so that a long line goes on below its own beginning.
    words = Table(box=None, show_header=False, pad_edge=False)
    words.add_column(width=len("tokenizer"), no_wrap=True)
    words.add_column(overflow="fold")
    for key, value in lines:
        words.add_row(key, value)
    return Group(Text(head), words)


def _time(plan: Plan, nbytes: int) -> str:
    speed = speed_of(plan)
    if speed is None:
        return "unknown, since this machine was never timed: hybridize plan --time RECIPE"
    parts = vars(build_seconds(plan, speed, nbytes))
    words = ", ".join(f"{name} {duration(took)}" for name, took in parts.items() if took)
    return f"about {duration(sum(parts.values()))}: {words}"


def _text(plan: Plan) -> str:
    """What the bridges are fitted on, and how much of it they ask for."""
    assert plan.calibration is not None
    domains = ", ".join(domain.name for domain in plan.calibration.domains)
    asked = f"; the widest bridge asks for {plan.tokens_needed:,}" if plan.fitted else ""
    before = {
        donor.name: donor.start_token
        for donor in plan.tokenizers.values()
        if donor and donor.start_token != "auto"
    }
    starts = "".join(f"; {name} has {token} before it" for name, token in before.items())
    limited = plan.calibration.measure is not True
    losses = f"; losses on {plan.measured_tokens:,} of those held out" if limited else ""
    losses = losses if plan.measured_tokens else f"; {NOT_MEASURED}"
    return f"{plan.calibration_tokens:,} tokens of {domains}{asked}{losses}{starts}"

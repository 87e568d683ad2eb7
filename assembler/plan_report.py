"""A plan for the eye and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.assembler.plan import Plan
from hybridize.checkpoint import BITS, TensorHeader
from hybridize.console import count, size

SPEED, CHECKING = 1e9, 8  # bytes per second copied, seconds of checking; for the estimate alone


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
            "domains": [domain.name for domain in plan.calibration.domains],
            "brought": plan.calibration.brought,
        },
        "parameters": num_parameters(plan),
        "bytes": num_bytes(plan),
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


def plan_table(plan: Plan) -> RenderableType:
    """The plan as build's user wants to read it."""
    donors = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("donor", "type", "layers", "width", "vocabulary", "dtype", "license", "source"):
        donors.add_column(
            heading, justify="right" if heading in ("layers", "width", "vocabulary") else "left"
        )
    for name, donor in plan.donors.items():
        anatomy = donor.anatomy
        donors.add_row(
            name, donor.model_type, str(donor.depth), str(anatomy.width), count(anatomy.vocabulary),
            anatomy.dtype, donor.license or "not stated",
            donor.source + (f" @ {donor.commit[:12]}" if donor.commit else ""),
        )  # fmt: skip
    return Group(donors, Text(), _slots(plan), Text(), _summary(plan))


def _slots(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("slot", "from", "layer", "mixer", "mlp", "width", "parameters", "bytes"):
        table.add_column(
            heading, justify="left" if heading in ("from", "mixer", "mlp") else "right"
        )
    embedding = plan.donors[plan.embeddings].anatomy
    table.add_row(
        "", plan.embeddings, "", "embeddings", "", str(embedding.width),
        count(embedding.embedding.numel),
        size(_bytes(plan, plan.embeddings, [embedding.embedding])),
    )  # fmt: skip
    for i, slot in enumerate(plan.slots):
        _bridge_rows(table, plan, str(i))
        layer, tensors = plan.layer(slot), plan.slot_tensors(slot)
        swapped = {swap.path: f"{swap.module} of {swap.donor} {swap.layer}" for swap in slot.swaps}
        table.add_row(
            str(i), slot.donor + (" (made)" if slot.made else ""), str(slot.layer),
            ", ".join(swapped.get(n, n) for n in layer.mixers) or "-",
            ", ".join(swapped.get(n, n) for n in layer.mlps) or "-",
            str(plan.donors[slot.donor].anatomy.width),
            count(sum(t.numel for t in tensors)), size(_bytes(plan, slot.donor, tensors)),
        )  # fmt: skip
    _bridge_rows(table, plan, "head")
    head = plan.head_tensors
    table.add_row(
        "", plan.head, "", "head" + (" (tied)" if plan.tied else ""), "",
        str(plan.donors[plan.head].anatomy.width), count(sum(t.numel for t in head)),
        "-" if plan.tied else size(_bytes(plan, plan.head, head)),
    )  # fmt: skip
    return table


def _bridge_rows(table: Table, plan: Plan, slot: str) -> None:
    """The bridge before a slot or the head, and those around its swapped modules."""
    for where, bridge in plan.bridges.items():
        if where.partition(".")[0] != slot:
            continue
        n, module = bridge.num_parameters, where.partition(".")[2]
        table.add_row(
            "", f"bridge: {bridge.kind}", "", f"init {bridge.init}", module,
            f"{bridge.width_in}→{bridge.width_out}", count(n), size(n * BITS[plan.main_dtype] // 8),
            style="cyan",
        )  # fmt: skip


def _summary(plan: Plan) -> Text:
    total = num_bytes(plan)
    lines = [
        f"{plan.name}: {len(plan.slots)} slots, {count(num_parameters(plan))} parameters, "
        f"{size(total)}",
        f"target     {plan.target}: {plan.reason}",
        f"dtype      {plan.dtype_reason}",
        f"tokenizer  {plan.tokenizer.name if plan.tokenizer else 'none'}",
        f"needs      {size(total)} of disk, as much memory to load and run it once, "
        f"and about {max(1, round(total / SPEED)) + CHECKING} s"
        + (", beside the fitting" if plan.calibration else ""),
        *(f"lineage    {lineage}" for lineage in plan.lineages),
        *([f"text       {_text(plan)}"] if plan.calibration else []),
        *(f"note       {note}" for note in plan.notes),
    ]
    return Text("\n".join(lines))


def _text(plan: Plan) -> str:
    """What the bridges are fitted on, and how much of it they ask for."""
    assert plan.calibration is not None
    domains = ", ".join(domain.name for domain in plan.calibration.domains)
    asked = f"; the widest bridge asks for {plan.tokens_needed:,}" if plan.fitted else ""
    return f"{plan.calibration_tokens:,} tokens of {domains}{asked}"

"""A freeze policy in words: its table, and in what two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count, size
from hybridize.cpt.plan.model_tensors import ModelTensors, Tensor

if TYPE_CHECKING:
    from hybridize.cpt.plan.policy import Policy


def policy_table(policy: Policy) -> RenderableType:
    """A row for each part and each range of slots, trained or frozen, in the model's order."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("part", "", "tensors", "parameters", "bytes"):
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    for part, state, tensors in _rows(policy):
        numel, nbytes = sum(t.numel for t in tensors), sum(t.nbytes for t in tensors)
        table.add_row(part, state, f"{len(tensors):,}", count(numel), size(nbytes))
    return Group(table, Text(), Text(_summary(policy)))


def tensor_list(policy: Policy) -> RenderableType:
    """Every tensor that learns, in the model's order."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("tensor that learns", "role", "shape", "dtype", "bytes"):
        table.add_column(heading, justify="right" if heading == "bytes" else "left")
    for tensor in policy.trained:
        shape = "×".join(map(str, tensor.shape))
        table.add_row(tensor.name, tensor.role, shape, tensor.dtype, size(tensor.nbytes))
    return table


_NUMBERS = ("tensors", "parameters", "bytes")


def _summary(policy: Policy) -> str:
    total = policy.num_trained + policy.num_frozen
    without = "nothing" if policy.prefix is None else policy.prefix
    return (
        f"trained: {count(policy.num_trained)} of {count(total)} parameters "
        f"({policy.num_trained / total:.1%}), {len(policy.trained):,} "
        f"tensor{'s' * (len(policy.trained) != 1)}\n"
        f"without autograd, as a frozen prefix: {without}"
    )


def _rows(policy: Policy) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Part, "trained" or "frozen", and its tensors: a part that learns in part has two rows."""
    learns = {tensor.name for tensor in policy.trained}
    states: dict[int | None, set[bool]] = {}
    for tensor in policy.stack.tensors:
        if tensor.role == "slot":
            states.setdefault(tensor.slot, set()).add(tensor.name in learns)

    def part(tensor: Tensor) -> tuple[Any, ...]:
        if tensor.role != "slot" or tensor.slot is None:
            return tensor.role, policy.stack.position(tensor)
        return "slot", policy.stack.donors[tensor.slot], sorted(states[tensor.slot])

    for _, group in groupby(policy.stack.tensors, key=part):
        tensors = list(group)
        label = _label(policy.stack, tensors)
        for state, learning in (("trained", True), ("frozen", False)):
            if chosen := [t for t in tensors if (t.name in learns) is learning]:
                yield label, state, chosen


def _label(stack: ModelTensors, tensors: Sequence[Tensor]) -> str:
    first, last = tensors[0].slot, tensors[-1].slot
    if tensors[0].role == "slot" and first is not None:
        donor = stack.donors[first]
        return _slots(first, last) + (f" ({donor})" if donor else "")
    if tensors[0].role == "bridge":
        return _bridge(stack, tensors[0])
    names = {"norm": "final norm", "other": "beside the stack"}
    if stack.tied:
        names["embeddings"] = "embeddings and head (tied)"
    return names.get(tensors[0].role, tensors[0].role)


def _bridge(stack: ModelTensors, tensor: Tensor) -> str:
    if tensor.slot is not None:
        made = tensor.slot in stack.made
        return f"slot {tensor.slot} (bridge)" if made else f"bridges in slot {tensor.slot}"
    slot, _ = stack.position(tensor)
    return "bridge before the head" if slot == stack.depth else f"bridge before slot {slot}"


def _slots(first: int, last: int | None) -> str:
    return f"slot {first}" if first == last else f"slots {first}-{last}"


def difference(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    names: tuple[str, str] = ("the checkpoint", "this run"),
) -> str:
    """Which tensors only one of two plans trains, in words; empty if they are the same.

    Args:
        one, other: plans as `Policy.as_dict` gives them.
        names: what the two are called.
    """
    mine, theirs = ({t["name"]: t for t in plan["trained"]} for plan in (one, other))
    lines: list[str] = []
    for name, these, those in ((names[0], mine, theirs), (names[1], theirs, mine)):
        if only := [tensor for key, tensor in these.items() if key not in those]:
            lines += [f"only {name} trains:", *_by_place(only)]
    for key in (key for key in mine if key in theirs):
        shapes = [list(plan[key]["shape"]) for plan in (mine, theirs)]
        if shapes[0] != shapes[1]:
            lines.append(f"{key} has shape {shapes[0]} in {names[0]}, {shapes[1]} in {names[1]}")
    return "\n".join(lines)


def _by_place(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each slot, range of slots with the same tensors, or part outside of the slots."""
    groups: dict[int | str, list[str]] = {}
    for tensor in tensors:
        slot, name = tensor["slot"], tensor["name"]
        inner = name if slot is None else f".{name}".split(f".{slot}.", 1)[1]
        groups.setdefault(tensor["role"] if slot is None else slot, []).append(inner)
    lines: list[tuple[list[int | str], list[str]]] = []
    for where, found in groups.items():
        last = lines[-1] if lines else None
        if last and isinstance(where, int) and last[0][-1] == where - 1 and last[1] == found:
            last[0].append(where)
        else:
            lines.append(([where], found))
    return [f"  {_where(places)}: {_listed(found, len(places))}" for places, found in lines]


def _where(places: Sequence[int | str]) -> str:
    if isinstance(places[0], str):
        outside = {"bridge": "bridges", "norm": "final norm"}
        return outside.get(places[0], places[0])
    return f"slot {places[0]}" if len(places) == 1 else f"slots {places[0]}-{places[-1]}"


def _listed(names: Sequence[str], times: int) -> str:
    count = len(names) * times
    more = ", ..." if len(names) > 3 else ""
    each = " each" if times > 1 else ""
    tensors = f"{len(names)} tensor{'s' if len(names) > 1 else ''}{each}"
    total = f" ({count})" if times > 1 else ""
    return f"{tensors}{total}: {', '.join(names[:3])}{more}"

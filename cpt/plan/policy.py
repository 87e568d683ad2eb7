"""A freeze policy, resolved: the exact list of tensors that learn, and that of those that do not.

Policies are the files in `freeze/`; entries of `train` name them, and what they name adds up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.cpt.plan.model_tensors import ModelTensors, Role, Tensor
from hybridize.errors import Finding, HybridizeError, did_you_mean
from hybridize.plugins import load_plugin, plugin_names

__all__ = ["Entry", "Policy", "Prior", "auto", "resolve"]

TRACE_FORMAT = 2
Entry = str | Mapping[str, Any]  # bridges, or {"shallow": 0.25}


@dataclass(frozen=True)
class Policy:
    """What learns in a model and what does not; both in the model's order."""

    stack: ModelTensors
    entries: tuple[Entry, ...]
    trained: tuple[Tensor, ...]
    frozen: tuple[Tensor, ...]

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each trained tensor, for learning rates."""
        return {tensor.name: tensor.role for tensor in self.trained}

    @property
    def num_trained(self) -> int:
        """Parameters that learn."""
        return sum(tensor.numel for tensor in self.trained)

    @property
    def num_frozen(self) -> int:
        """Parameters that do not."""
        return sum(tensor.numel for tensor in self.frozen)

    @cached_property
    def first_trained(self) -> tuple[int, int]:
        """The lowest position that learns, as `ModelTensors.position` counts them."""
        return min(self.stack.position(tensor) for tensor in self.trained)

    @property
    def first_trained_slot(self) -> int:
        """The lowest slot whose forward needs autograd; the depth, if none does.

        Everything below is a frozen prefix. A bridge before slot k gives k; embeddings give 0,
        with no prefix at all.
        """
        return max(0, self.first_trained[0])

    @property
    def prefix(self) -> str | None:
        """What runs without autograd before anything learns, in words; None if nothing does."""
        if self.first_trained[0] < 0:
            return None
        first = self.first_trained_slot
        slots = {0: "", 1: " and slot 0"}.get(first, f" and slots 0-{first - 1}")
        return f"embeddings{slots}"

    @property
    def blake3(self) -> str:
        """Of the list of trained tensors, their names and shapes."""
        return blake3(json.dumps([[t.name, t.shape] for t in self.trained]).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The exact plan, as checkpoints store it; counts are parameters."""
        return {
            "entries": [entry if isinstance(entry, str) else dict(entry) for entry in self.entries],
            "trained": [
                {"name": t.name, "shape": list(t.shape), "role": t.role, "slot": t.slot}
                for t in self.trained
            ],
            "blake3": self.blake3,
            "num_trained": self.num_trained,
            "num_frozen": self.num_frozen,
            "first_trained_slot": self.first_trained_slot,
            "prefix": self.prefix,
        }


@dataclass(frozen=True)
class Prior:
    """Entries that a rule of thumb gives, and its reason in words."""

    entries: list[Entry]
    reason: str


def resolve(
    stack: ModelTensors, entries: Sequence[Entry], *, place: Callable[[int], str] | None = None
) -> Policy:
    """The tensors that entries of `train` name, all together.

    Args:
        entries: `bridges`, or `{"shallow": 0.25}`: a kind, with its value if it takes one.
        place: of an entry by its index, for errors; default: `train[i]`.

    Raises:
        HybridizeError: everything that is wrong with the entries, or they name nothing.
    """
    place = place or (lambda i: f"train[{i}]")
    findings: list[Finding] = []
    chosen: set[str] = set()
    for i, entry in enumerate(entries):
        try:
            chosen.update(_names(stack, entry))
        except HybridizeError as error:
            findings += [Finding(f.found, f.fix, place(i)) for f in error.findings]
    if findings:
        raise HybridizeError.of(findings)
    if not chosen:
        raise HybridizeError(
            "this policy trains nothing",
            fix=f"train one or several of {', '.join(plugin_names('freeze'))}",
            place=place(0) if entries else "train",
        )
    return Policy(
        stack=stack,
        entries=tuple(entries),
        trained=tuple(t for t in stack.tensors if t.name in chosen),
        frozen=tuple(t for t in stack.tensors if t.name not in chosen),
    )


def _names(stack: ModelTensors, entry: Entry) -> list[str]:
    """What one entry names.

    Raises:
        HybridizeError: no such kind, a value missing or too many, or a wrong one.
    """
    kind, value = _kind_and_value(entry)
    known = plugin_names("freeze")
    if kind not in known:
        fix = did_you_mean(kind, known)
        if "." in kind or "*" in kind:
            fix = f"to name tensors, write patterns: ['{kind}']"
        raise HybridizeError(f"unknown freeze policy '{kind}'", fix=fix)
    plugin = load_plugin("freeze", kind)
    if plugin.VALUE and value is None:
        raise HybridizeError(f"{kind} needs a value", fix=f"write {kind}: {plugin.VALUE}")
    if not plugin.VALUE and value is not None:
        raise HybridizeError(f"{kind} takes no value", fix=f"write {kind} alone")
    names: list[str] = plugin.names(stack, value)
    return names


def _kind_and_value(entry: Entry) -> tuple[str, Any]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, Mapping) and len(entry) == 1:
        kind, value = next(iter(entry.items()))
        return str(kind), value
    raise HybridizeError(
        f"{entry!r:.60} is not a freeze policy",
        fix="write a kind such as bridges, or one with its value: {shallow: 0.25}",
    )


def auto(trace: Mapping[str, Any], stack: ModelTensors) -> Prior:
    """Bridges, and the slots below the freeze boundary that a diagnosis puts by prior.

    Args:
        trace: content of a trace.json that holds this model's diagnosis.

    Raises:
        HybridizeError: it is no trace, not of this model, or puts no boundary.

    Source: Freeze Deep, Train Shallow (2026), for the rule; `diagnose` says which depth it takes.
    """
    if trace.get("format") != TRACE_FORMAT or not isinstance(trace.get("models"), list):
        raise HybridizeError(
            "this is not a trace that this version of hybridize reads",
            fix="make one: hybridize diagnose MODEL",
        )
    boundary = _diagnosis(trace["models"], stack).get("boundary")
    if boundary is None:
        raise HybridizeError(
            "the trace puts no freeze boundary: no slot was found to be sensitive",
            fix="write the policy by hand, say train: [bridges, {shallow: 0.25}]",
        )
    entries: list[Entry] = []
    if any(tensor.role == "bridge" for tensor in stack.tensors):
        entries.append("bridges")
    if boundary["slots"] > 0:
        entries.append({"shallow": boundary["slots"]})
    return Prior(entries, f"prior, not measured: {boundary['why']}")


def _diagnosis(models: Sequence[Mapping[str, Any]], stack: ModelTensors) -> Mapping[str, Any]:
    """The one of a trace's models that is this one, told by its slots; if that leaves several, by
    the folder that was diagnosed.
    """
    sizes = [0] * stack.depth
    for tensor in stack.tensors:
        if tensor.slot is not None:
            sizes[tensor.slot] += tensor.numel
    alike = [m for m in models if [slot["parameters"] for slot in m["slots"]] == sizes]
    here = [m for m in alike if Path(m["model"]["source"]).resolve() == stack.folder.resolve()]
    found = here or alike
    if len(found) == 1:
        return found[0]
    names = ", ".join(m["model"]["name"] for m in found or models)
    raise HybridizeError(
        f"several models of the trace could be {stack.folder}: {names}"
        if found
        else f"the trace has no diagnosis of {stack.folder}: its models are {names}",
        fix=f"make one: hybridize diagnose {stack.folder}",
    )

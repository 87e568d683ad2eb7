"""The stack of a hybrid: slots, swapped sub-modules, and the bridges between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hybridize.assembler.plan.bridge_kind import bridge_kind
from hybridize.errors import Finding
from hybridize.model.donors import Donor
from hybridize.model.states import State
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.slots import ModuleSpec, SlotSpec

HEAD = "head"
ENTER, LEAVE = "enter", "leave"  # of a swapped module
GATE = 0.2  # R2 below which what follows a bridge can make little of what arrives
FITTED = ("auto", "ridge", "procrustes")
TOKENS_PER_INPUT = 20  # fewer, and a ridge map learns the noise of its text


@dataclass(frozen=True)
class Bridge:
    """A map from one donor's states to another's: between two slots, before the final norm and the
    head, or before and behind a module that was swapped in.
    """

    where: str  # number of the slot that it stands before, "head", or "4.self_attn.enter"
    kind: str
    init: str
    width_in: int
    width_out: int
    norm: bool
    bias: bool
    seed: int
    rank: int | None
    reads: tuple[str, State]  # a donor, and the state of it that comes closest to what arrives
    writes: tuple[str, State]  # a donor, and the state of it that what follows was trained on

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Bridge:
        """From what `asdict` gives, after a way through JSON."""
        ends = {key: (fields[key][0], State(**fields[key][1])) for key in ("reads", "writes")}
        return cls(**{**fields, **ends})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name."""
        return dict(bridge_kind(self.kind).shapes(self))

    def options(self) -> dict[str, Any]:
        """As the runtime makes it."""
        return bridge_kind(self.kind).options(self)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def fitted(self) -> bool:
        """Whether its values come from calibration text."""
        return bool(self.shapes()) and self.init in FITTED

    @property
    def tokens_needed(self) -> int:
        """Tokens of calibration text that a fit should see."""
        return TOKENS_PER_INPUT * self.width_in if self.fitted else 0

    def in_words(self) -> str:
        """Where it stands: before slot 4, before the head, behind slot 4's self_attn."""
        if self.where == HEAD:
            return "before the head"
        slot, path, side = self._parts
        if not path:
            return f"before slot {slot}"
        return f"{'before' if side == ENTER else 'behind'} slot {slot}'s {path}"

    @property
    def _parts(self) -> tuple[str, str, str]:
        """Slot, path of a swapped module, and side of it; the last two are empty between slots."""
        slot, _, module = self.where.partition(".")
        path, _, side = module.rpartition(".")
        return slot, path, side

    @property
    def at(self) -> State | None:
        """The state of the hybrid that it maps; None: before the final norm."""
        if self.where == HEAD:
            return None
        slot, path, side = self._parts
        if side == LEAVE:  # what the module itself gives, without this bridge
            return State(int(slot), f"{path}.module", "out")
        return State(int(slot), path or None)


@dataclass(frozen=True)
class Swap:
    """A sub-module of another donor in the place of one of the host layer's."""

    path: str  # name of the host's child: self_attn
    donor: str
    layer: int
    module: str  # name of the child that comes: linear_attn


@dataclass(frozen=True)
class Slot:
    """One decoder layer of the hybrid."""

    donor: str
    layer: int
    swaps: tuple[Swap, ...] = ()
    made: bool = False  # a bridging layer: a copy whose output projections start at zero

    @property
    def donors(self) -> set[str]:
        return {self.donor, *(swap.donor for swap in self.swaps)}


def make_slots(
    recipe: RecipeFile, donors: Mapping[str, Donor], findings: list[Finding]
) -> list[Slot]:
    """Every layer of the recipe's slots, bottom up; mistakes are added to `findings`."""
    slots: list[Slot] = []
    for i, spec in enumerate(recipe.recipe.slots):
        donor = donors[spec.donor]
        key = "layers" if spec.layers is not None else "layer"
        place = recipe.place("slots", i, key)
        wrong = sorted({j for j in spec.picks if j >= donor.depth})
        if wrong:
            findings.append(_no_such_layer(wrong, donor, place))
            continue
        swaps = tuple(_swaps(recipe, donors, i, spec, findings))
        slots += [Slot(spec.donor, j, swaps) for j in spec.picks]
    return slots


def _no_such_layer(wrong: list[int], donor: Donor, place: str) -> Finding:
    listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return Finding(
        f"donor '{donor.name}' has no layer {listed}: it has {donor.depth}",
        fix=f"its layers are 0-{donor.depth - 1}, counted from 0, inclusive at both ends",
        place=place,
    )


def _swaps(
    recipe: RecipeFile, donors: Mapping[str, Donor], i: int, spec: SlotSpec, findings: list[Finding]
) -> Iterator[Swap]:
    wanted: dict[str, ModuleSpec | None] = {"mixer": spec.mixer, "mlp": spec.mlp}
    for part, module in wanted.items():
        if module is None:
            continue
        place = recipe.place("slots", i, part)
        source = donors[module.donor]
        if module.layer >= source.depth:
            findings.append(_no_such_layer([module.layer], source, place))
            continue
        host = _child(donors[spec.donor], spec.picks[0], part, place, findings)
        guest = _child(source, module.layer, part, place, findings)
        if host and guest:
            yield Swap(host, module.donor, module.layer, guest)


def _child(donor: Donor, layer: int, part: str, place: str, findings: list[Finding]) -> str | None:
    found = donor.anatomy.layers[layer]
    names = found.mixers if part == "mixer" else found.mlps
    if len(names) == 1:
        return names[0]
    count = "no" if not names else f"{len(names)} ({', '.join(names)}): no single"
    findings.append(
        Finding(
            f"layer {layer} of donor '{donor.name}' has {count} {part}",
            fix=f"choose a layer with one; this one holds {', '.join(found.children)}",
            place=place,
        )
    )
    return None

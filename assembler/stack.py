"""The stack of a hybrid: slots, swapped sub-modules, and the bridges between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hybridize.assembler.donors import Donor
from hybridize.errors import Finding
from hybridize.plugins import load_plugin
from hybridize.recipe import BridgeSpec, ModuleSpec, RecipeFile, SlotSpec

HEAD = "head"


@dataclass(frozen=True)
class Bridge:
    """A map between two slots, or before the final norm and the head."""

    where: str  # number of the slot that it stands before, or "head"
    kind: str
    init: str
    width_in: int
    width_out: int
    norm: bool
    bias: bool
    seed: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name."""
        found: dict[str, tuple[int, ...]] = load_plugin("bridges", self.kind).shapes(self)
        return found

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())


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


def make_bridges(
    recipe: RecipeFile,
    donors: Mapping[str, Donor],
    slots: list[Slot],
    *,
    embeddings: str,
    head: str,
    findings: list[Finding],
) -> dict[str, Bridge]:
    """The bridges, keyed by the slot they stand before (or "head")."""
    bridges: dict[str, Bridge] = {}
    spec, explicit = recipe.recipe.bridges, _explicit(recipe)
    listed = [str(w) for w in spec.where] if isinstance(spec.where, list) else None
    for name in listed or ():
        if name != HEAD and int(name) >= len(slots):
            findings.append(
                Finding(
                    f"there is no slot {name}: the stack has {len(slots)}",
                    fix=f"slots are 0-{len(slots) - 1}, or 'head'",
                    place=recipe.place("bridges", "where"),
                )
            )
    before = embeddings
    for where, donor in [*((str(i), s.donor) for i, s in enumerate(slots)), (HEAD, head)]:
        own, place = explicit.get(where, (None, _place(recipe, where)))
        width_in, width_out = donors[before].anatomy.width, donors[donor].anatomy.width
        change = width_in != width_out
        if (
            own is not None
            or (listed is not None and where in listed)
            or (spec.where in ("auto", "width-changes") and change)
            or (spec.where == "changes" and donor != before)
        ):
            bridge = _bridge(own or spec, where, width_in, width_out)
            bridges[where] = bridge
            if change and load_plugin("bridges", bridge.kind).NEEDS_EQUAL_WIDTHS:
                findings.append(
                    Finding(
                        f"a bridge of kind '{bridge.kind}' cannot lead from width {width_in} "
                        f"('{before}') to {width_out} ('{donor}')",
                        fix="use kind: linear",
                        place=place,
                    )
                )
        elif change:
            findings.append(
                Finding(
                    f"the width changes from {width_in} ('{before}') to {width_out} ('{donor}') "
                    f"before {'the head' if where == HEAD else f'slot {where}'}, without a bridge",
                    fix=f"add {where} to bridges.where, or write where: auto",
                    place=place,
                )
            )
        before = donor
    return bridges


def _bridge(spec: BridgeSpec, where: str, width_in: int, width_out: int) -> Bridge:
    init = spec.init
    if init == "auto":
        init = "identity" if width_in == width_out else "random"
    return Bridge(
        where=where,
        kind=spec.kind,
        init=init,
        width_in=width_in,
        width_out=width_out,
        norm=spec.norm,
        bias=spec.bias,
        seed=spec.seed,
    )


def _explicit(recipe: RecipeFile) -> dict[str, tuple[BridgeSpec, str]]:
    """Bridges that an entry of the slots asks for, by the slot they stand before."""
    found, at = {}, 0
    for i, spec in enumerate(recipe.recipe.slots):
        if spec.bridge is not None:
            found[str(at)] = (spec.bridge, recipe.place("slots", i, "bridge"))
        at += len(spec.picks)
    return found


def _place(recipe: RecipeFile, where: str) -> str:
    """Where a slot stands in the recipe."""
    if where == HEAD:
        return recipe.place("head" if recipe.recipe.head else "slots")
    at = 0
    for i, spec in enumerate(recipe.recipe.slots):
        at += len(spec.picks)
        if int(where) < at:
            return recipe.place("slots", i)
    return recipe.place("slots")

"""Where bridges stand: between slots, before the head, and around modules that were swapped in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from hybridize.assembler.plan.bridge_kind import bridge_kind
from hybridize.assembler.plan.stack import ENTER, HEAD, LEAVE, Bridge, Slot, Swap
from hybridize.errors import Finding
from hybridize.model.donors import Donor
from hybridize.model.states import State
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.bridges import BridgeSpec, BridgesSpec


def add_bridges(
    recipe: RecipeFile,
    donors: Mapping[str, Donor],
    slots: Sequence[Slot],
    *,
    embeddings: str,
    head: str,
    lineage: Callable[[str, str], bool],
    findings: list[Finding],
) -> tuple[list[Slot], dict[str, Bridge]]:
    """The stack with its bridging layers, and the bridges from below upwards, by their place.

    Args:
        slots: the recipe's own, which its `bridges.where` counts.
        lineage: whether two donors share their basis, as a model and its fine-tunes do.
    """
    made = _Bridges(recipe, donors, lineage, findings)
    reads = (embeddings, State(0))
    for i, slot in enumerate(slots):
        made.between(str(i), reads, (slot.donor, State(slot.layer)), ahead=slot)
        made.stack.append(slot)
        for swap in slot.swaps:
            made.around(len(made.stack) - 1, slot, swap, made.place(str(i)))
        reads = (slot.donor, State(slot.layer + 1))
    depth = donors[head].depth
    made.between(HEAD, reads, (head, State(depth)), ahead=Slot(head, depth - 1))
    return made.stack, made.bridges


class _Bridges:
    """A stack that grows from below, with the bridges in it."""

    def __init__(
        self,
        recipe: RecipeFile,
        donors: Mapping[str, Donor],
        lineage: Callable[[str, str], bool],
        findings: list[Finding],
    ) -> None:
        self.recipe, self.donors, self.findings = recipe, donors, findings
        self.lineage = lineage
        self.spec: BridgesSpec = recipe.recipe.bridges
        self.explicit = _explicit(recipe)
        where = self.spec.where
        self.listed = {str(item): None for item in where} if isinstance(where, list) else {}
        self._entries = [i for i, s in enumerate(recipe.recipe.slots) for _ in s.picks]  # of slots
        self.stack: list[Slot] = []
        self.bridges: dict[str, Bridge] = {}
        last = len(self._entries) - 1
        for name in self.listed:
            if name != HEAD and int(name) > last:
                self._wrong(
                    f"there is no slot {name}: the stack has {last + 1}",
                    f"slots are 0-{last}, or 'head'",
                    recipe.place("bridges", "where"),
                )

    def between(
        self, where: str, reads: tuple[str, State], writes: tuple[str, State], *, ahead: Slot
    ) -> None:
        """A bridge before a slot of the recipe, or the head, if one is to stand there."""
        own, place = self.explicit.get(where, (None, self.place(where)))
        spec, before, after = own or self.spec, reads[0], writes[0]
        if own is None and where not in self.listed and not self._wanted(before, after):
            if self._width(before) != self._width(after):
                self._wrong(
                    f"the width changes from {self._width(before)} ('{before}') to "
                    f"{self._width(after)} ('{after}') before "
                    f"{'the head' if where == HEAD else f'slot {where}'}, without a bridge",
                    f"add {where} to bridges.where, or write where: auto",
                    place,
                )
            return
        layered = bridge_kind(spec.kind).LAYER
        # A bridging layer takes a slot of its own, and the slots above it move up by one.
        key = HEAD if where == HEAD and not layered else str(len(self.stack))
        self._add(spec, key, reads, writes, place)
        if layered:
            self._check_layer(ahead, spec.kind, place)
            self.stack.append(Slot(ahead.donor, ahead.layer, made=True))

    def around(self, index: int, slot: Slot, swap: Swap, place: str) -> None:
        """Bridges into a swapped module and out of it, where its width or lineage is another."""
        if self._width(slot.donor) == self._width(swap.donor) and not self._wanted(
            slot.donor, swap.donor
        ):
            return
        # A whole layer, or nothing at all, makes no sense inside of a layer.
        fits = bridge_kind(self.spec.kind).AROUND_MODULES
        spec = self.spec if fits else self.spec.model_copy(update={"kind": BridgeSpec().kind})

        def states(side: Literal["in", "out"]) -> tuple[tuple[str, State], tuple[str, State]]:
            host = slot.donor, State(slot.layer, swap.path, side)
            return host, (swap.donor, State(swap.layer, swap.module, side))

        host, guest = states("in")
        self._add(spec, f"{index}.{swap.path}.{ENTER}", host, guest, place)
        host, guest = states("out")
        self._add(spec, f"{index}.{swap.path}.{LEAVE}", guest, host, place)

    def _add(
        self,
        spec: BridgeSpec,
        where: str,
        reads: tuple[str, State],
        writes: tuple[str, State],
        place: str,
    ) -> None:
        width_in, width_out = self._width(reads[0]), self._width(writes[0])
        kind = bridge_kind(spec.kind)
        if width_in != width_out and kind.NEEDS_EQUAL_WIDTHS:
            self._wrong(
                f"a bridge of kind '{spec.kind}' cannot lead from width {width_in} "
                f"('{reads[0]}') to {width_out} ('{writes[0]}')",
                "use kind: linear",
                place,
            )
            return
        narrow = min(width_in, width_out)
        if spec.rank is not None and spec.rank >= narrow:
            self._wrong(
                f"rank {spec.rank} is no lower than the width {narrow}",
                f"write a rank below {narrow}, or kind: linear",
                place,
            )
        self.bridges[where] = Bridge(
            where=where,
            kind=spec.kind,
            init=spec.init,
            width_in=width_in,
            width_out=width_out,
            norm=spec.norm,
            bias=spec.bias,
            seed=spec.seed,
            rank=spec.rank or max(1, narrow // 4),
            reads=reads,
            writes=writes,
        )

    def _check_layer(self, ahead: Slot, kind: str, place: str) -> None:
        donor = self.donors[ahead.donor]
        layer = donor.anatomy.layers[ahead.layer]
        if reason := bridge_kind(kind).obstacle(layer, donor.model_type):
            self._wrong(
                f"layer {ahead.layer} of donor '{ahead.donor}' cannot be a bridging layer: "
                f"{reason}",
                "use kind: linear",
                place,
            )

    def _wanted(self, before: str, after: str) -> bool:
        where = self.spec.where
        change = self._width(before) != self._width(after)
        return (
            (where in ("auto", "width-changes") and change)
            or (where == "auto" and not self.lineage(before, after))
            or (where == "changes" and before != after)
        )

    def _width(self, donor: str) -> int:
        return self.donors[donor].anatomy.width

    def place(self, where: str) -> str:
        """Where a slot stands in the recipe."""
        if where == HEAD:
            return self.recipe.place("head" if self.recipe.recipe.head else "slots")
        return self.recipe.place("slots", self._entries[int(where)])

    def _wrong(self, found: str, fix: str, place: str) -> None:
        self.findings.append(Finding(found, fix, place))


def _explicit(recipe: RecipeFile) -> dict[str, tuple[BridgeSpec, str]]:
    """Bridges that an entry of the slots asks for, by the slot they stand before."""
    found, at = {}, 0
    for i, spec in enumerate(recipe.recipe.slots):
        if spec.bridge is not None:
            found[str(at)] = (spec.bridge, recipe.place("slots", i, "bridge"))
        at += len(spec.picks)
    return found

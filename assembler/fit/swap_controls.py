"""What a swapped module is worth: its slot without it, and with a matrix in its place (torch side).

Without it, the module's update of the stream is zero. The matrix is the ridge map from what arrives
at the module in the hybrid to what the host's own module gives there in the host alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hybridize.assembler.fit.bridge_fit import best_map
from hybridize.assembler.fit.hybrid_with_donors import BATCH, HybridWithDonors, Read
from hybridize.model.states import State
from hybridize.torch_model.regression import Affine, Sums, one_thread, ridge
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import Windows, align, batches

ROOM = 1 << 31  # bytes of sums that are held at a time

Losses = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a module of another donor stands, and the host's layer around it."""

    slot: int
    path: str
    host: str
    layer: int

    @property
    def arriving(self) -> State:
        return State(self.slot, self.path)

    @property
    def wanted(self) -> tuple[str, State]:
        return self.host, State(self.layer, self.path, "out")


def swapped(models: HybridWithDonors) -> list[Place]:
    """Every place with a swapped module, from below upwards."""
    return [
        Place(index, path, slot["donor"], slot["layer"])
        for index, slot in enumerate(models.hybrid.config.slots)
        for path in slot.get("swap", {})
    ]


def groups(models: HybridWithDonors, windows: Sequence[Windows]) -> list[list[Place]]:
    """Places whose maps are fitted in one pass over the text."""
    places = swapped(models)
    widest = max((models.width(place.host) for place in places), default=1)
    each = (1 + len(windows)) * 2 * widest**2 * 8
    step = max(1, ROOM // each)
    return [places[start : start + step] for start in range(0, len(places), step)]


@torch.no_grad()
def measure_swaps(
    models: HybridWithDonors,
    windows: Sequence[Windows],
    losses: Callable[[], Losses],
    progress: Read,
) -> list[dict[str, Any]]:
    """Of every swapped module, losses of the hybrid with it `removed`, and with a `matrix` for it.

    Args:
        losses: of the hybrid as it stands.
    """
    passes = (_maps(models, windows, some, progress) for some in groups(models, windows))
    found = []
    for place, affine in chain.from_iterable(passes):
        controls: dict[str, Any] = {"slot": place.slot, "module": place.path}
        for name, update in (("removed", torch.zeros_like), ("matrix", affine)):
            with _instead(models, place, update):
                controls[name] = losses()
        found.append(controls)
    return found


def _maps(
    models: HybridWithDonors,
    windows: Sequence[Windows],
    places: Sequence[Place],
    progress: Read,
) -> Iterator[tuple[Place, Affine]]:
    """The ridge map for each place, from one pass over the text."""
    widths = [models.width(place.host) for place in places]

    def sums() -> list[Sums]:
        return [Sums(width, width, models.reader.device) for width in widths]

    seen, judges = sums(), [sums() for _ in windows]
    for part, judge in zip(windows, judges, strict=True):
        for texts, totals in ((part.fit, seen), (part.held_out, judge)):
            for some in batches(texts, part.rows(BATCH)):
                _add(models, places, some, totals, progress)
    for i, place in enumerate(places):
        with one_thread():
            affine, _ = best_map(ridge(seen[i], bias=True), [j[i] for j in judges], windows)
        yield place, affine


def _add(
    models: HybridWithDonors,
    places: Sequence[Place],
    texts: Sequence[str],
    totals: Sequence[Sums],
    progress: Read,
) -> None:
    batch = models.reader.encode(texts)
    stream = Stream(models.hybrid, batch.tokens, batch.mask)
    arrived = stream.read(*(place.arriving for place in places))
    wanted = models.wanted([place.wanted for place in places], texts)
    for total, x, (read, y) in zip(totals, arrived, wanted, strict=True):
        here, there = align(batch, read)
        total.add(x[here], y[there])
    progress(2 * batch.tokens.numel())  # through the hybrid, and the hosts alone


@contextmanager
def _instead(
    models: HybridWithDonors, place: Place, update: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """The hybrid with another update of the stream in the place of a module's."""
    module = models.hybrid.model.layers[place.slot].get_submodule(place.path)

    def give(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        given = update(hidden)
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = module.register_forward_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

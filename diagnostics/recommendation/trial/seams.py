"""How much of one donor's stream a linear map makes of another's: R2 of every seam (torch side)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from hybridize.diagnostics.recommendation.prior.placement import Seam, Spot
from hybridize.errors import HybridizeError
from hybridize.torch_model.loading import Parts
from hybridize.torch_model.regression import LAMBDAS, one_thread
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import Encoded, Reader, Windows, batches

TOKENS = 1024  # that maps are fitted to, over all domains, and as many by which they are judged
DIRECTIONS = 256  # at random, in which a wider stream is looked at
BATCH = 2048  # tokens that run at a time


class Apart:
    """States of all donors at the same places of the same text, at every depth.

    Args:
        models: donors alone; `readers`: with what each reads.
        related: whether two donors share their basis: between them stands no bridge.
    """

    def __init__(
        self,
        models: Mapping[str, Parts],
        readers: Mapping[str, Reader],
        windows: Sequence[Windows],
        *,
        related: Callable[[str, str], bool],
        progress: Callable[[int, int], None],
    ) -> None:
        self._related = related
        turns = [part.fit for part in windows], [part.held_out for part in windows]
        each = TOKENS // len(windows)
        total, rows = 2 * len(windows) * each, windows[0].rows(BATCH)

        def telling(before: int) -> Callable[[int], None]:
            return lambda done: progress(before + done, total)

        # First the text that maps are fitted to, then that of each domain which judges them.
        self._fit = _states(models, readers, turns[0], each, rows, telling(0))
        self._judges = [
            _states(models, readers, [texts], each, rows, telling((len(windows) + i) * each))
            for i, texts in enumerate(turns[1])
        ]
        self.seam = cache(self._seam)
        self._spaces = lru_cache(maxsize=2)(self._space)  # asked for in turn, and large

    def _seam(self, below: Spot, above: Spot) -> Seam:
        """From what leaves one donor's layer to what another's was trained on."""
        x, y = below.layer + 1, above.layer
        if self._related(below.donor, above.donor):
            apart = [
                _r2(judge[below.donor][x].double(), judge[above.donor][y].double())
                for judge in self._judges
            ]
            return Seam(max(0.0, min(apart)), bridge=False)
        coordinates, values, insides = self._spaces(below.donor, x)
        looked = _directions(self._fit[above.donor][y].shape[1])
        target = self._fit[above.donor][y].double() @ looked
        offset = target.mean(0)
        with one_thread():
            projected = coordinates.T @ (target - offset)
        shrunk = (projected / (values + s * values.mean())[:, None] for s in LAMBDAS)
        weights = torch.cat(list(shrunk), 1)  # of every lambda: in one product
        found = []
        for inside, judge in zip(insides, self._judges, strict=True):
            wanted = judge[above.donor][y].double() @ looked
            maps = (inside @ weights).view(len(wanted), len(LAMBDAS), -1) + offset
            errors = (maps - wanted[:, None]).square().sum((0, 2))
            found.append(1 - errors / (wanted - wanted.mean(0)).square().sum())
        return Seam(float(torch.stack(found).min(0).values.max()), bridge=True)

    def _space(self, donor: str, depth: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Coordinates along principal directions (tokens, rank), their eigenvalues, and the
        coordinates of what judges, (tokens, rank) each."""
        states = self._fit[donor][depth].double()
        mean = states.mean(0)
        centred = states - mean
        with one_thread():
            if len(centred) < centred.shape[1]:
                values, left = torch.linalg.eigh(centred @ centred.T)
                kept = values > values.max() * len(centred) * torch.finfo(torch.float64).eps
                values = values[kept]
                basis = centred.T @ (left[:, kept] / values.sqrt())
            else:
                values, basis = torch.linalg.eigh(centred.T @ centred)
                values = values.clamp(min=0)
            judged = [(judge[donor][depth].double() - mean) @ basis for judge in self._judges]
            return centred @ basis, values, judged


def _r2(found: Tensor, wanted: Tensor) -> float:
    spread = (wanted - wanted.mean(0)).square().sum()
    return float(1 - (found - wanted).square().sum() / spread)


@torch.no_grad()
def _states(
    models: Mapping[str, Parts],
    readers: Mapping[str, Reader],
    domains: Sequence[Sequence[str]],
    each: int,
    rows: int,
    progress: Callable[[int], None],
) -> dict[str, list[Tensor]]:
    """donor -> depth -> (tokens, width), at places where a token of every donor ends."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in models}
    done = 0
    for texts in domains:
        taken = 0
        for some in batches(texts, rows):
            if taken >= each:
                break
            read = {name: reader.encode(some) for name, reader in readers.items()}
            places = _common(read)
            if not places:
                continue
            for name, parts in models.items():
                at = [_column(read[name], row, end) for row, end in places]
                for depth, states in enumerate(_run(parts, read[name])):
                    if len(found[name]) <= depth:
                        found[name].append([])
                    at_rows, at_columns = (torch.tensor(side) for side in zip(*at, strict=True))
                    found[name][depth].append(states[at_rows, at_columns].cpu())
            taken += len(places)
            done += len(places)
            progress(done)
    if not done:
        raise HybridizeError(
            "no place of the text is the end of a token of every donor",
            fix="place donors with more similar tokenizers",
        )
    return {name: [torch.cat(depth) for depth in depths] for name, depths in found.items()}


@cache
def _directions(width: int) -> Tensor:
    """Orthonormal columns, (width, at most DIRECTIONS), the same in every run."""
    if width <= DIRECTIONS:
        return torch.eye(width, dtype=torch.float64)
    drawn = torch.randn(width, DIRECTIONS, generator=Generator().manual_seed(0)).double()
    with one_thread():
        columns: Tensor = torch.linalg.qr(drawn).Q
    return columns


def _run(parts: Parts, read: Encoded) -> Sequence[Tensor]:
    """What arrives at each slot, and before the final norm."""
    with parts.embedding():
        stream = Stream(parts.model, read.tokens.to(parts.model.device), None)
    hidden, states = stream.first, [stream.first]
    for first, last in pairwise(range(stream.depth + 1)):
        with parts.slot(first):
            hidden = stream.run(hidden, first, last)
        states.append(hidden)
    return states


def _common(read: Mapping[str, Encoded]) -> list[tuple[int, int]]:
    """(row, end in the text) of places where a token of every donor ends."""
    found = []
    for row, ends in enumerate(zip(*(e.ends for e in read.values()), strict=True)):
        shared = set.intersection(*(set(some) for some in ends)) - {0}
        found += [(row, end) for end in sorted(shared)]
    return found


def _column(read: Encoded, row: int, end: int) -> tuple[int, int]:
    """Where the last token that ends there stands."""
    ends = read.ends[row]
    return row, len(ends) - 1 - ends[::-1].index(end)

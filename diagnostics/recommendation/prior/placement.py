"""Which layers at which depth: a score for each stack, and the search for the best. Pure, no torch.

The score is a prior, not a measurement of the stack: strong, stable and valuable layers belong
deep (Freeze Deep, Train Shallow, 2026), bridges cost. What a stack is worth is measured afterwards.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from hybridize.assembler import GATE
from hybridize.console import Tell

PARTS = ("quality", "stability", "value")
KEPT = 12  # best beginnings of a stack that are followed up, of each kind
DRIFT = 0.25  # of its donor's depth, by which a run may begin elsewhere than the last one ended
FLIPPED = "flipped"  # label of a control


class Spot(NamedTuple):
    """One layer of a donor."""

    donor: str
    layer: int


class Estimate(NamedTuple):
    """A measured number with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Scores:
    """What speaks for each candidate layer, as z-scores over all candidates.

    Attributes:
        z: part of the score -> layer -> z-score, with its error.
        quality_error: standard error of a sum of the donors' qualities (z-scores), each with a
            weight; the donors have read the same text, so that their errors are not independent.
    """

    z: Mapping[str, Mapping[Spot, Estimate]]
    quality_error: Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class LayerRun:
    """Consecutive layers of one donor."""

    donor: str
    first: int
    last: int

    @property
    def spots(self) -> list[Spot]:
        return [Spot(self.donor, layer) for layer in range(self.first, self.last + 1)]

    def __str__(self) -> str:
        one = self.first == self.last
        return f"{self.donor} {self.first}" if one else f"{self.donor} {self.first}-{self.last}"


class Seam(NamedTuple):
    """What lies between two runs.

    Attributes:
        r2: share of the stream that the upper run was trained on which the best map (or none, where
            the donors share their basis) gives of what arrives; the worst domain's.
        bridge: whether a bridge is needed; donors that share their basis understand each other as
            they are, and pass the gate in any case.
    """

    r2: float
    bridge: bool


Seams = Callable[[Spot, Spot], Seam]  # from the last layer below to the first one above


@dataclass(frozen=True)
class Rules:
    """What may be built.

    Attributes:
        depth: number of slots.
        layers: donor -> how many it has.
        allowed: layers that may be used.
        at_least: slots of each donor that is used.
        max_changes: of donor.
        ends: pairs of donors that may be the first and the last: embedding and head must mean the
            same tokens.
        weights: of the parts of the score, of a `bridge`, and of what a seam misses (`fit`).
    """

    depth: int
    layers: Mapping[str, int]
    allowed: frozenset[Spot]
    at_least: int
    max_changes: int
    ends: frozenset[tuple[str, str]]
    keep_order: bool
    weights: Mapping[str, float]

    def share(self, slot: int) -> float:
        """Weight of a slot: it grows with the depth, and all of them add up to 1."""
        return 2 * (slot + 1) / (self.depth * (self.depth + 1))


@dataclass(frozen=True)
class Placement:
    """A stack of runs, from the embedding upwards, and what its score is made of."""

    runs: tuple[LayerRun, ...]
    parts: Mapping[str, float] = field(compare=False)

    @property
    def score(self) -> float:
        return sum(self.parts.values())

    @property
    def spots(self) -> list[Spot]:
        return [spot for run in self.runs for spot in run.spots]

    def __str__(self) -> str:
        return ", ".join(map(str, self.runs))


def z_scores(estimates: Mapping[Spot, Estimate]) -> tuple[dict[Spot, Estimate], float]:
    """Distances from the mean, in units of the spread among layers and the error of measuring.

    What does not differ by more than its error gets scores near 0, and what is equal exactly 0.

    Returns:
        The z-scores, and the unit.
    """
    values = [e.value for e in estimates.values()]
    mean = statistics.fmean(values)
    noise = statistics.fmean(e.error**2 for e in estimates.values())
    scale = math.sqrt(statistics.pvariance(values, mean) + noise) or 1.0
    found = {s: Estimate((e.value - mean) / scale, e.error / scale) for s, e in estimates.items()}
    return found, scale


def place(
    rules: Rules, scores: Scores, seams: Seams, *, count: int, progress: Tell | None = None
) -> list[Placement]:
    """The best placements, best first: every donor of the candidates is used.

    A dynamic programme from the embedding upwards: of all beginnings that end with the same layer,
    after as many changes, the best few are followed up. The first run begins with its donor's
    first layer and the last one ends with its donor's last: neither embedding nor head is given
    a stream that its donor never had there.

    Args:
        progress: told the slots that are filled, and all of them: seams are compared meanwhile.
    """
    return _Search(rules, scores, seams).best(count, progress or (lambda *_: None))


class _Path(NamedTuple):
    """The beginning of a stack."""

    score: float
    runs: tuple[LayerRun, ...]

    @property
    def order(self) -> tuple[float, int, tuple[tuple[str, int, int], ...]]:
        """Best first; among equals the simplest, then by name: not by how they were found."""
        names = tuple((run.donor, run.first, run.last) for run in self.runs)
        return -round(self.score, 12), len(self.runs), names


class _Search:
    def __init__(self, rules: Rules, scores: Scores, seams: Seams) -> None:
        self.rules, self.scores, self.seams = rules, scores, seams
        self.gain = {
            spot: sum(rules.weights[part] * scores.z[part][spot].value for part in PARTS)
            for spot in rules.allowed
        }

    def best(self, count: int, progress: Tell) -> list[Placement]:
        rules = self.rules
        starts = [Spot(d, 0) for d in rules.layers if Spot(d, 0) in rules.allowed]
        paths = [_Path(self._gain(0, s), (LayerRun(s.donor, 0, 0),)) for s in starts]
        for slot in range(1, rules.depth):
            paths = self._prune(q for path in paths for q in self._next(path, slot))
            progress(slot + 1, rules.depth)
        whole = [path for path in paths if self._is_whole(path)]
        whole.sort(key=lambda path: path.order)
        return [self._placement(path.runs) for path in whole[:count]]

    def _next(self, path: _Path, slot: int) -> Iterator[_Path]:
        below, runs = path.runs[-1], path.runs
        up = Spot(below.donor, below.last + 1)
        if up in self.rules.allowed:
            run = LayerRun(below.donor, below.first, below.last + 1)
            yield _Path(path.score + self._gain(slot, up), (*runs[:-1], run))
        if len(runs) > self.rules.max_changes or not self._long_enough(below):
            return
        for spot in self._changes(runs):
            seam = self.seams(Spot(below.donor, below.last), spot)
            if seam.r2 >= GATE or not seam.bridge:
                score = path.score + self._gain(slot, spot) - self._cost(seam)
                yield _Path(score, (*runs, LayerRun(spot.donor, spot.layer, spot.layer)))

    def _changes(self, runs: Sequence[LayerRun]) -> Iterator[Spot]:
        """Layers of other donors that a new run may begin with."""
        rules, below = self.rules, runs[-1]
        here = (below.last + 1) / rules.layers[below.donor]
        for spot in sorted(rules.allowed):
            if spot.donor == below.donor:
                continue
            if abs(spot.layer / rules.layers[spot.donor] - here) > DRIFT:
                continue
            used = max((run.last for run in runs if run.donor == spot.donor), default=-1)
            if not rules.keep_order or spot.layer > used:
                yield spot

    def _prune(self, paths: Iterable[_Path]) -> list[_Path]:
        """The best few of those whose ends can be continued in the same ways."""
        alike: dict[tuple[object, ...], list[_Path]] = {}
        for path in paths:
            end = path.runs[-1]
            length = min(end.last - end.first + 1, self.rules.at_least)
            donors = frozenset(run.donor for run in path.runs)
            key = (end.donor, end.last, len(path.runs), donors, length)
            alike.setdefault(key, []).append(path)
        return [
            p
            for some in alike.values()
            for p in heapq.nsmallest(KEPT, some, key=lambda path: path.order)
        ]

    def _long_enough(self, run: LayerRun) -> bool:
        return run.last - run.first + 1 >= self.rules.at_least

    def _is_whole(self, path: _Path) -> bool:
        end = path.runs[-1]
        used = {run.donor for run in path.runs}
        wanted = {spot.donor for spot in self.rules.allowed}
        at_the_top = end.last == self.rules.layers[end.donor] - 1
        ends = (path.runs[0].donor, end.donor) in self.rules.ends
        return at_the_top and ends and used == wanted and self._long_enough(end)

    def _gain(self, slot: int, spot: Spot) -> float:
        return self.rules.share(slot) * self.gain[spot]

    def _cost(self, seam: Seam) -> float:
        weights = self.rules.weights
        return weights["bridge"] * seam.bridge + weights["fit"] * (1 - seam.r2)

    def _placement(self, runs: tuple[LayerRun, ...]) -> Placement:
        return decompose(runs, self.rules, self.scores, self.seams)


def decompose(runs: tuple[LayerRun, ...], rules: Rules, scores: Scores, seams: Seams) -> Placement:
    """A placement with what each part adds to its score."""
    spots = [spot for run in runs for spot in run.spots]
    parts = {
        part: sum(
            rules.share(slot) * rules.weights[part] * scores.z[part][spot].value
            for slot, spot in enumerate(spots)
        )
        for part in PARTS
    }
    met = [seams(Spot(a.donor, a.last), Spot(b.donor, b.first)) for a, b in pairwise(runs)]
    parts["bridge"] = -rules.weights["bridge"] * sum(seam.bridge for seam in met)
    parts["fit"] = -rules.weights["fit"] * sum(1 - seam.r2 for seam in met)
    return Placement(runs, parts)


def lead_error(one: Placement, other: Placement, rules: Rules, scores: Scores) -> float:
    """Standard error of the difference of two scores, from the errors of what was measured.

    A donor's quality is one number for all its layers; stability and value of layers are taken as
    independent.
    """
    weights: dict[Spot, float] = {}
    for placement, sign in ((one, 1), (other, -1)):
        for slot, spot in enumerate(placement.spots):
            weights[spot] = weights.get(spot, 0.0) + sign * rules.share(slot)
    by_donor: dict[str, float] = {}
    variance = 0.0
    for spot, weight in weights.items():
        quality = weight * rules.weights["quality"]
        by_donor[spot.donor] = by_donor.get(spot.donor, 0.0) + quality
        for part in ("stability", "value"):
            variance += (weight * rules.weights[part] * scores.z[part][spot].error) ** 2
    return math.sqrt(variance + scores.quality_error(by_donor) ** 2)


def flipped(placement: Placement, rules: Rules, quality: Mapping[str, float]) -> Placement | None:
    """The opposite placement, a control without a score: its best and its worst donor change
    places, slot for slot; None where one of them has too few layers for that.

    Args:
        quality: donor -> the higher the better.
    """
    donors = sorted({run.donor for run in placement.runs}, key=lambda d: (quality[d], d))
    other = {donors[0]: donors[-1], donors[-1]: donors[0]}
    runs = []
    for i, run in enumerate(placement.runs):
        donor = other.get(run.donor, run.donor)
        depth, length = rules.layers[donor], run.last - run.first
        first = round(run.first * depth / rules.layers[run.donor])
        first = 0 if i == 0 else depth - 1 - length if i == len(placement.runs) - 1 else first
        first = max(0, min(first, depth - 1 - length))
        if length >= depth:
            return None
        runs.append(LayerRun(donor, first, first + length))
    return Placement(tuple(runs), {})

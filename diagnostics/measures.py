"""What is measured, as pure functions: tensors in, tensors out (torch side).

Shapes: K depths (the state after 0, 1, ... layers), L layers, N items, S seeds, U units of text or
items that are drawn anew for an interval, V tokens of the vocabulary, T tokens, D width.
Probabilities are compared in float64. Logarithms are natural: all is in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

LN2 = math.log(2)
RESAMPLES = 1000  # of a bootstrap
LEVEL = 0.9  # of an interval
SHARE = 0.5  # of the whole rise of log p, for a task particle
LEAST_SPREAD = 2.0  # largest sensitivity over the smallest, below which all layers look alike
LEAST_AGREEMENT = 0.8  # share of the resamples that name the same layer


def jensen_shannon(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Divergence of two distributions, (N,), in [0, ln 2]; exactly 0 where they are equal.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    p, q = logp_NV.double().exp(), logq_NV.double().exp()
    middle = (p + q) / 2

    def part(one: Tensor) -> Tensor:
        return torch.where(one > 0, one * (one / middle).log(), 0.0).sum(-1)

    return ((part(p) + part(q)) / 2).clamp(0, LN2)


def entropy(logp_NV: Tensor) -> Tensor:
    """Of each distribution, (N,), float64."""
    p = logp_NV.double().exp()
    return -torch.where(p > 0, p * logp_NV.double(), 0.0).sum(-1)


@dataclass(frozen=True)
class Sensitivity:
    """Layer-wise sensitivity: mean divergence of the outcome, and the interval it lies in.

    Attributes:
        mean, low, high: (L,).
        agreement: share of the resamples in which the largest is the same layer as in the mean.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    agreement: float

    @property
    def largest(self) -> int:
        return int(self.mean.argmax())

    @property
    def spread(self) -> float:
        """Largest over smallest; infinite where a layer does nothing at all."""
        least, most = float(self.mean.min()), float(self.mean.max())
        return most / least if least > 0 else (math.inf if most > 0 else 1.0)

    @property
    def vulnerable(self) -> int | None:
        """The layer that the outcome hangs on most; None: undecided."""
        alike = self.spread < LEAST_SPREAD
        return None if alike or self.agreement < LEAST_AGREEMENT else self.largest


def sensitivity(js_LSU: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Sensitivity:
    """Mean over seeds and units, with a percentile bootstrap over both.

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); LayerTracer (2026) for
    the layer of the largest divergence. The interval, and the guards, are ours.
    """
    _, S, U = js_LSU.shape
    generator = Generator().manual_seed(seed)
    drawn_S = torch.randint(S, (resamples, S), generator=generator)
    drawn_U = torch.randint(U, (resamples, U), generator=generator)
    means = torch.stack(
        [js_LSU[:, s][:, :, u].mean((1, 2)) for s, u in zip(drawn_S, drawn_U, strict=True)]
    )
    mean = js_LSU.mean((1, 2))
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(tail, 0), means.quantile(1 - tail, 0)
    # A tie goes to no layer: where several are largest, the resample agrees with none.
    best = means.max(1, keepdim=True).values == means
    same = best[:, int(mean.argmax())] & (best.sum(1) == 1)
    return Sensitivity(mean, low, high, float(same.double().mean()))


def rise(logp_KN: Tensor) -> Tensor:
    """Share of the whole rise of log p that is done at each depth, (K, N).

    Not a number where the last log p is no higher than the first: there is no rise to share.
    """
    first, last = logp_KN[0], logp_KN[-1]
    whole = torch.where(last > first, last - first, torch.nan)
    return (logp_KN - first) / whole


def particle(logp_KN: Tensor, *, share: float = SHARE) -> Tensor:
    """Depth from which on at least `share` of the rise of log p is there for good, (N,).

    A depth counts layers: 1 is the state behind layer 0. Not a number where nothing rises.

    Source: LayerTracer (2026), where the rise need not last and no chance is taken off.
    """
    shares = rise(logp_KN)
    reached = shares >= share
    for_good = reached.flip(0).cummin(0).values.flip(0)
    depth = for_good.to(torch.int8).argmax(0).double()  # the first that is true
    return torch.where(shares[-1].isnan(), torch.nan, depth)


def largest_jump(p_K: Tensor) -> int:
    """Depth behind the layer that raises the mean probability most."""
    return int(p_K.diff().argmax()) + 1


def absolute_rise(p_K: Tensor, *, least: float = 0.1) -> int | None:
    """First depth whose mean probability lies by `least` above that of the embedding."""
    reached = (p_K - p_K[0] >= least).nonzero()
    return int(reached[0]) if len(reached) else None


def outstanding_jump(p_K: Tensor, *, deviations: float = 2.0) -> int | None:
    """First depth that is reached by a jump of so many standard deviations above the mean jump."""
    jumps = p_K.diff()
    spread = jumps.std(correction=0)
    reached = (jumps > jumps.mean() + deviations * spread).nonzero()
    return int(reached[0]) + 1 if len(reached) else None


def block_influence(given_TD: Tensor, gave_TD: Tensor) -> Tensor:
    """1 - cosine between what a layer is given and what it gives, (T,); 0: it turns nothing.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
    Expect" (2024).
    """
    return 1 - _cosine(given_TD, gave_TD)


def angular_distance(given_TD: Tensor, gave_TD: Tensor) -> Tensor:
    """Angle between what a layer is given and what it gives, (T,), in units of pi.

    Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers" (2024).
    """
    return _cosine(given_TD, gave_TD).clamp(-1, 1).acos() / math.pi


def growth(arrived_TD: Tensor, gave_TE: Tensor) -> Tensor:
    """RMS of what a slot gives over the RMS of what arrives at it, (T,); widths may differ."""
    squares = gave_TE.double().square().mean(-1) / arrived_TD.double().square().mean(-1)
    return squares.sqrt()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    a, b = one.double(), other.double()
    # An epsilon below the smallest squares: equal vectors have the cosine 1, short ones too.
    lengths: Tensor = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return (a * b).sum(-1) / lengths.clamp(min=1e-300)

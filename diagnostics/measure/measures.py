"""What is measured, as pure functions: tensors in, tensors out (torch side).

Shapes: K depths (the state after 0, 1, ... layers), L layers, N items, S seeds, U units of text or
items that an interval is over, R resamples, V tokens of the vocabulary, T tokens, D width.
Logarithms are natural: all is in nats. What is summed over a vocabulary is computed in the dtype of
the logits and summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

LN2 = math.log(2)
BLOCK = 1 << 18  # numbers that are compared at a time: they stay in a processor's cache
RESAMPLES = 1000  # that an interval is read from
LEVEL = 0.9  # of an interval
ROUNDING = 1e-4  # nats, of a log-probability in single precision
SHARE = 0.5  # of the whole rise of log p, for a task particle
LEAST_SPREAD = 2.0  # largest sensitivity over the smallest, below which all layers look alike
LEAST_AGREEMENT = 0.8  # share of the resamples that name the same layer


def log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-probabilities, (N, V), in the dtype of the logits.

    Summed in float64: over 262,144 tokens torch's own is off by up to 2e-5 in single precision.
    """
    shifted = logits_NV - logits_NV.max(-1, keepdim=True).values
    sums = sum(block.exp().sum(-1, dtype=torch.float64) for (block,) in _blocks(shifted))
    assert isinstance(sums, Tensor)
    return shifted.sub_(sums.log().to(shifted)[:, None])


def jensen_shannon(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Divergence of two distributions, (N,), float64, in [0, ln 2]; exactly 0 where they are equal.

    With m the middle of p and q, and d = (p - q) / (p + q), it is half the sum of
    m ((1 + d) log(1 + d) + (1 - d) log(1 - d)). Where p is close to q, d is exact to the last digit
    of both: single precision stays within 1e-6 of double, and small values keep their first digits.

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991); the form is ours.
    """
    total = torch.zeros(len(logp_NV), dtype=torch.float64, device=logp_NV.device)
    for logp, logq in _blocks(logp_NV, logq_NV):
        p, q = logp.exp(), logq.exp()
        both = p + q
        d = (p - q) / both.clamp(min=torch.finfo(both.dtype).tiny)
        apart = (1 + d) * d.log1p() + (1 - d) * (-d).log1p()
        total += (both * torch.where(d.abs() == 1, 2 * LN2, apart)).sum(-1, dtype=torch.float64)
    return (total / 4).clamp(0, LN2)


def entropy(logp_NV: Tensor) -> Tensor:
    """Of each distribution, (N,), float64."""
    total = torch.zeros(len(logp_NV), dtype=torch.float64, device=logp_NV.device)
    for (logp,) in _blocks(logp_NV):
        p = logp.exp()
        total -= torch.where(p > 0, p * logp, 0.0).sum(-1, dtype=torch.float64)
    return total


def _blocks(*values_NV: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of a vocabulary of several tensors, one part after the other."""
    size = max(1, BLOCK // max(1, len(values_NV[0])))
    return zip(*(torch.split(values, size, -1) for values in values_NV), strict=True)


@dataclass(frozen=True)
class Sensitivity:
    """Layer-wise sensitivity: mean divergence of the outcome, and the interval it lies in.

    Attributes:
        mean: (L,).
        low, high: (L,), or None: one draw, or one unit, says nothing of others.
        agreement: share of the resamples in which the largest is the same layer as in the mean;
            None as above.
    """

    mean: Tensor
    low: Tensor | None
    high: Tensor | None
    agreement: float | None

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
        return None if alike or (self.agreement or 0.0) < LEAST_AGREEMENT else self.largest


def sensitivity(
    js_LSU: Tensor, *, random: bool, resamples: int = RESAMPLES, seed: int = 0
) -> Sensitivity:
    """Mean over seeds and units, and how far it would move with others of both.

    A resample moves the mean by a draw from the t distribution of the seeds' means, and by one of
    the units' means, each with its own degrees of freedom: of three seeds, a percentile bootstrap
    would see no more than lies between the three. What seeds and units have in common is counted
    twice: the interval is rather too wide.

    Args:
        random: whether seeds are draws of many; else there is one, and nothing else to draw.

    Source: Weerahandi, "Generalized confidence intervals" (1993), for the sum of two t; LayerTracer
    (2026) for the layer of the largest divergence. The guards are ours.
    """
    _, S, U = js_LSU.shape
    mean_L = js_LSU.mean((1, 2))
    if U == 1 or (random and S == 1):
        return Sensitivity(mean_L, None, None, None)
    generator = Generator().manual_seed(seed)
    means_RL = mean_L + _t_moves(js_LSU.mean(1), resamples, generator)
    if random:
        means_RL = means_RL + _t_moves(js_LSU.mean(2), resamples, generator)
    tail = (1 - LEVEL) / 2
    low, high = (means_RL.quantile(q, 0).clamp(0, LN2) for q in (tail, 1 - tail))
    # A tie goes to no layer: where several are largest, the resample agrees with none.
    most = means_RL.max(1, keepdim=True).values
    best = means_RL >= most - 1e-9 * most.abs()  # equal layers differ by rounding
    same = best[:, int(mean_L.argmax())] & (best.sum(1) == 1)
    return Sensitivity(
        mean_L, low.minimum(mean_L), high.maximum(mean_L), float(same.double().mean())
    )


def _t_moves(values_LX: Tensor, resamples: int, generator: Generator) -> Tensor:
    """Draws of how far the mean of some values lies from the true one, (R, L).

    Each layer's is the t distribution of its mean; layers move together as the values do.
    """
    num = values_LX.shape[1]
    error_LX = (values_LX - values_LX.mean(1, keepdim=True)) / math.sqrt(num * (num - 1))

    def normal(columns: int) -> Tensor:
        return torch.randn(resamples, columns, generator=generator, dtype=torch.float64)

    chi_square = normal(num - 1).square().mean(1, keepdim=True)
    return normal(num) @ error_LX.T.double() / chi_square.sqrt()


def rise(logp_KN: Tensor, base_N: Tensor) -> Tensor:
    """Share of the whole rise of log p over its base that is there at each depth, (K, N).

    Not a number where the last log p is no higher than the base: there is no rise to share.
    """
    whole = logp_KN[-1] - base_N
    return (logp_KN - base_N) / torch.where(whole > ROUNDING, whole, torch.nan)


def particle(logp_KN: Tensor, base_N: Tensor, *, share: float = SHARE) -> Tensor:
    """Depth from which on at least `share` of the rise of log p is there for good, (N,).

    A depth counts layers: 1 is the state behind layer 0. Not a number where nothing rises.

    Args:
        base_N: log p of a model that does not know the item. Not the embedding's read-out: tied to
            the head it says the last token again, and the answer has e^-100.

    Source: LayerTracer (2026), where the rise need not last and no chance is taken off.
    """
    shares = rise(logp_KN, base_N)
    reached = shares >= share
    for_good = reached.flip(0).cummin(0).values.flip(0)
    depth = for_good.to(torch.int8).argmax(0).double()  # the first that is true
    return torch.where(shares[-1].isnan(), torch.nan, depth)


def gain(logp_KN: Tensor, base_N: Tensor) -> Tensor:
    """Mean probability above that of the base, (K,); what lies below it counts as nothing."""
    return (logp_KN.exp() - base_N.exp()).clamp(min=0).mean(1)


def largest_jump(gain_K: Tensor) -> int:
    """Depth whose layer raises the gain most; 0: the embedding, from nothing."""
    return int(_jumps(gain_K).argmax())


def absolute_rise(gain_K: Tensor, *, least: float = 0.1) -> int | None:
    """First depth at which the gain is at least `least`."""
    reached = (gain_K >= least).nonzero()
    return int(reached[0]) if len(reached) else None


def outstanding_jump(gain_K: Tensor, *, deviations: float = 2.0) -> int | None:
    """First depth that is reached by a jump of so many standard deviations above the mean jump."""
    jumps = _jumps(gain_K)
    reached = (jumps > jumps.mean() + deviations * jumps.std(correction=0)).nonzero()
    return int(reached[0]) if len(reached) else None


def _jumps(gain_K: Tensor) -> Tensor:
    return gain_K.diff(prepend=gain_K.new_zeros(1))


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

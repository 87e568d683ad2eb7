"""Maps between two models' streams, in closed form, from sums over tokens (torch side; pure).

All sums are float64, so that memory does not grow with the tokens and the result equals a direct
solution. Rows are tokens; a map is y = W x + b, with W as `nn.Linear` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative to the mean eigenvalue of the inputs' covariance.
LAMBDAS = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e2, 1e4)


@dataclass(frozen=True)
class Affine:
    """y = weight x + bias; weight (width out, width in), bias (width out), float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width in) to (..., width out), in the dtype of `x`."""
        return torch.nn.functional.linear(x, self.weight.to(x), self.bias.to(x))


class Sums:
    """First and second moments of pairs of states, over all tokens that were added.

    Attributes:
        n: number of tokens.
        x, y: sums of the states; xx, xy: of their outer products; yy: of the squares of y.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n = 0
        self.x, self.y = zeros(width_in), zeros(width_out)
        self.xx, self.xy, self.yy = zeros(width_in, width_in), zeros(width_in, width_out), zeros()

    def add(self, x_TI: Tensor, y_TO: Tensor) -> None:
        """Add tokens: what arrives at a bridge, and what should leave it."""
        x, y = x_TI.double(), y_TO.double()
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum()

    def __add__(self, other: Sums) -> Sums:
        total = Sums(len(self.x), len(self.y), self.x.device)
        total.n = self.n + other.n
        for name in ("x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def error(self, affine: Affine) -> float:
        """Sum of squared errors of a map over the tokens that were added."""
        w, b = affine.weight, affine.bias
        product = w @ self.xx
        square = (product * w).sum() + self.yy + self.n * b.square().sum()
        cross = (w.T * self.xy).sum() + b @ self.y - b @ (w @ self.x)
        return max(float(square - 2 * cross), 0.0)  # in this order, what is no number stays none

    @property
    def spread(self) -> float:
        """Sum of squared distances of y from its mean."""
        return float(self.yy - self.y.square().sum() / self.n)

    def r2(self, affine: Affine) -> float:
        """Share of the targets' variance that a map explains; 1 is all, below 0 is harm."""
        return 1 - self.error(affine) / max(self.spread, torch.finfo(torch.float64).tiny)

    def rms_ratio(self, affine: Affine) -> float:
        """Length of what a map gives over the length of what it should give."""
        w, b = affine.weight, affine.bias
        square = ((w @ self.xx) * w).sum() + 2 * b @ (w @ self.x) + self.n * b.square().sum()
        return float((square.clamp(min=0) / self.yy).sqrt())

    def covariances(self, *, bias: bool) -> tuple[Tensor, Tensor]:
        """Of the inputs (in, in), and of inputs with targets (in, out); about zero without bias."""
        c, k = self.xx / self.n, self.xy / self.n
        if bias:
            c = c - torch.outer(self.x, self.x) / self.n**2
            k = k - torch.outer(self.x, self.y) / self.n**2
        return c, k

    def affine(self, weight: Tensor, *, bias: bool) -> Affine:
        """A matrix with the bias that suits it best."""
        mean = (self.y - weight @ self.x) / self.n
        return Affine(weight, mean if bias else torch.zeros_like(mean))


def ridge(sums: Sums, *, bias: bool, lambdas: Sequence[float] = LAMBDAS) -> Iterator[Affine]:
    """The map that minimises |Y - W X - b|^2 + lambda n s |W|^2, for each lambda in turn.

    s is the mean eigenvalue of the inputs' covariance; the bias is not shrunk.

    Source: Hoerl and Kennard, "Ridge Regression" (1970).
    """
    c, k = sums.covariances(bias=bias)
    values, vectors = torch.linalg.eigh(c)
    rotated = vectors.T @ k
    mean = values.mean()
    scale = torch.where(mean > 0, mean, 1.0)  # inputs that never change: the map is the bias alone
    for shrink in lambdas:
        # Rounding can leave an eigenvalue of zero slightly below it.
        inverse = 1 / (values.clamp(min=0) + shrink * scale)
        yield sums.affine((vectors @ (inverse[:, None] * rotated)).T, bias=bias)


def procrustes(sums: Sums, *, bias: bool) -> Affine:
    """The rotation, with one factor for length, that comes closest to the targets.

    Source: Schoenemann, "A generalized solution of the orthogonal Procrustes problem" (1966);
    between different widths it is the closest map with orthonormal rows or columns.
    """
    c, k = sums.covariances(bias=bias)
    u, s, vh = torch.linalg.svd(k.T, full_matrices=False)
    rotation = u @ vh
    # The length that the rotation keeps: all of the inputs' where none is dropped.
    kept = ((rotation @ c) * rotation).sum()
    return sums.affine(s.sum() / kept * rotation, bias=bias)


@contextmanager
def one_thread() -> Iterator[None]:
    """Decompositions round by how they are shared among threads; here they never are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

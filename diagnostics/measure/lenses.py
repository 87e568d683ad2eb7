"""Linear maps between states of one model, fitted to few tokens of a wide stream (torch side)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.torch_model.regression import LAMBDAS, Affine, Sums, one_thread, ridge

HELD_OUT = 0.25  # share of the tokens that lambda is chosen by
# A lens that may magnify more reads the rounding that is left of what was erased.
PLAIN = tuple(value for value in LAMBDAS if value >= 1e-6)


@dataclass(frozen=True)
class Lens:
    """A ridge map from one state to another.

    Attributes:
        basis: (width in, rank) of the space that the tokens span; None: all of it.
        affine: from there to the other state.
        r2: share of the variance explained on tokens that were held out.
    """

    basis: Tensor | None
    affine: Affine
    r2: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width in) to (..., width out), in the dtype of `x`."""
        wide = x.double()
        inside = wide if self.basis is None else wide @ self.basis
        return self.affine(inside).to(x.dtype)


def fit_lens(x_TI: Tensor, y_TO: Tensor) -> Lens:
    """The ridge map whose lambda does best on the last tokens, fitted to the others.

    Where there are fewer tokens than dimensions, it is solved in the space that they span: there
    the solution lies anyway, and a wide stream asks for no wide matrices.

    Args:
        x_TI, y_TO: pairs of states, in the order of the text: held out are whole stretches.
    """
    x, y = x_TI.double(), y_TO.double()
    seen = len(x) - max(1, round(HELD_OUT * len(x)))
    with one_thread():
        basis = _span(x[:seen]) if seen < x.shape[1] else None
        inside = x if basis is None else x @ basis
        fit, judge = (Sums(inside.shape[1], y.shape[1], x.device) for _ in range(2))
        fit.add(inside[:seen], y[:seen])
        judge.add(inside[seen:], y[seen:])
        best = min(ridge(fit, bias=True, lambdas=PLAIN), key=judge.error)
    return Lens(basis, best, judge.r2(best))


def _span(x_TI: Tensor) -> Tensor:
    """Orthonormal columns that span the rows of x, (width, rank)."""
    values, vectors = torch.linalg.eigh(x_TI @ x_TI.T)
    kept = values > values.max() * len(x_TI) * torch.finfo(torch.float64).eps
    columns: Tensor = vectors[:, kept] / values[kept].sqrt()
    return x_TI.T @ columns

"""Closed-form maps from streamed sums, against direct solutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridize.torch_model.regression import LAMBDAS, Affine, Sums, procrustes, ridge


def data(tokens: int = 600, width_in: int = 12, width_out: int = 9) -> tuple[Tensor, Tensor]:
    """Pairs with a mean, unequal directions, and noise."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(tokens, width_in, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-2, 1, width_in, dtype=torch.float64) + 3
    w = torch.randn(width_in, width_out, generator=generator, dtype=torch.float64)
    noise = torch.randn(tokens, width_out, generator=generator, dtype=torch.float64)
    return x, x @ w - 5 + noise


def summed(x: Tensor, y: Tensor, *, batch: int = 37) -> Sums:
    sums = Sums(x.shape[1], y.shape[1])
    for start in range(0, len(x), batch):
        sums.add(x[start : start + batch], y[start : start + batch])
    return sums


def direct_ridge(x: Tensor, y: Tensor, shrink: float, *, bias: bool) -> Affine:
    """All tokens at once, in float64: least squares over rows for the penalty."""
    mean_x, mean_y = (x.mean(0), y.mean(0)) if bias else (x.new_zeros(()), y.new_zeros(()))
    a, b = x - mean_x, y - mean_y
    scale = a.square().sum() / len(x) / x.shape[1]
    rows = (shrink * scale * len(x)).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    w = torch.linalg.lstsq(torch.cat([a, rows]), torch.cat([b, y.new_zeros(len(rows), y.shape[1])]))
    weight = w.solution.T
    bias_ = mean_y - weight @ mean_x if bias else y.new_zeros(y.shape[1])
    return Affine(weight, bias_)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-300))


@pytest.mark.parametrize("bias", [True, False])
def test_the_streamed_fit_equals_a_direct_solution(bias: bool) -> None:
    x, y = data()
    for shrink, streamed in zip(LAMBDAS, ridge(summed(x, y), bias=bias), strict=True):
        direct = direct_ridge(x, y, shrink, bias=bias)
        assert relative(streamed.weight, direct.weight) < 1e-8
        assert relative(streamed.bias, direct.bias) < 1e-8 if bias else not streamed.bias.any()


def test_the_size_of_the_batches_does_not_matter() -> None:
    x, y = data()
    one, other = (summed(x, y, batch=size) for size in (1, 600))
    for a, b in zip(ridge(one, bias=True), ridge(other, bias=True), strict=True):
        assert relative(a.weight, b.weight) < 1e-10


@pytest.mark.parametrize("bias", [True, False])
def test_measures_equal_those_over_the_tokens(bias: bool) -> None:
    """Error, R2 and length from sums alone, for a map that was fitted on other tokens."""
    x, y = data()
    judge = summed(x[400:], y[400:])
    affine = next(ridge(summed(x[:400], y[:400]), bias=bias))
    errors = (affine(x[400:]) - y[400:]).square().sum()
    spread = (y[400:] - y[400:].mean(0)).square().sum()
    assert judge.error(affine) == pytest.approx(float(errors), rel=1e-8)
    assert judge.spread == pytest.approx(float(spread), rel=1e-8)
    assert judge.r2(affine) == pytest.approx(float(1 - errors / spread), rel=1e-8)
    lengths = affine(x[400:]).square().mean().sqrt() / y[400:].square().mean().sqrt()
    assert judge.rms_ratio(affine) == pytest.approx(float(lengths), rel=1e-8)


def test_sums_add_up() -> None:
    x, y = data()
    whole, parts = summed(x, y), summed(x[:100], y[:100]) + summed(x[100:], y[100:])
    assert parts.n == whole.n
    assert relative(parts.xx, whole.xx) < 1e-12
    assert relative(parts.xy, whole.xy) < 1e-12


def test_directions_that_never_vary_do_no_harm() -> None:
    """A stream that was padded with zeros has a singular covariance."""
    x, y = data()
    padded = torch.cat([x, torch.zeros(len(x), 5, dtype=x.dtype)], 1)
    affine = next(ridge(summed(padded, y), bias=True))
    plain = next(ridge(summed(x, y), bias=True))
    assert affine.weight.isfinite().all()
    assert not affine.weight[:, 12:].any()
    # Lambda is relative to the mean eigenvalue, which the zeros make smaller.
    assert relative(affine.weight[:, :12], plain.weight) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width_out", [6, 12, 16])
def test_procrustes_finds_a_turn_and_its_length(bias: bool, width_out: int) -> None:
    x, _ = data()
    turn = torch.nn.init.orthogonal_(
        torch.empty(width_out, 12, dtype=torch.float64),
        generator=torch.Generator().manual_seed(2),
    )
    shift = torch.arange(width_out, dtype=torch.float64) if bias else 0
    affine = procrustes(summed(x, 2.5 * x @ turn.T + shift), bias=bias)
    if width_out >= 12:  # nothing is dropped: exact
        assert relative(affine.weight, 2.5 * turn) < 1e-8
        assert (
            relative(affine.bias, torch.zeros(width_out).double() + shift) < 1e-6 if bias else True
        )
    gram = affine.weight @ affine.weight.T if width_out < 12 else affine.weight.T @ affine.weight
    assert relative(gram, gram[0, 0] * torch.eye(len(gram), dtype=torch.float64)) < 1e-8


def test_procrustes_is_the_best_turn() -> None:
    """No turn near it, with its own best length, does better."""
    x, y = data(width_out=12)
    sums = summed(x, y)
    best = procrustes(sums, bias=True)
    scale = best.weight.norm() / 12**0.5
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        skew = torch.randn(12, 12, generator=generator, dtype=torch.float64) * 0.05
        other = torch.linalg.matrix_exp(skew - skew.T) @ best.weight
        assert sums.error(sums.affine(other, bias=True)) > sums.error(best)
    for factor in (0.9, 1.1):
        other = best.weight / scale * scale * factor
        assert sums.error(sums.affine(other, bias=True)) > sums.error(best)

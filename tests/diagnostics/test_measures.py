"""Measures keep their laws on any input, and agree with slower ways to say the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from hybridize.diagnostics.measure import measures
from hybridize.diagnostics.measure.lenses import HELD_OUT, Lens, fit_lens
from hybridize.diagnostics.measure.measures import LN2, jensen_shannon, sensitivity
from hybridize.torch_model.regression import LAMBDAS

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 10**6)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def distributions(draw: st.DrawFn, count: int = 2) -> list[Tensor]:
    """Log-probabilities of some tokens, (4, V): flat or sharp, some of them impossible."""
    size = draw(st.integers(2, 40))
    found = []
    for _ in range(count):
        logits = numbers(draw(seeds), 4, size) * draw(st.sampled_from([0.0, 0.1, 3.0, 100.0]))
        gone = numbers(draw(seeds), 4, size) < draw(st.sampled_from([-9.0, 0.0, 1.0]))
        gone[:, draw(st.integers(0, size - 1))] = False
        found.append(logits.masked_fill(gone, -math.inf).log_softmax(-1))
    return found


class TestDivergence:
    @quick
    @given(distributions())
    def test_symmetric_and_bounded(self, pair: list[Tensor]) -> None:
        """Finite as well where a token is impossible."""
        js = jensen_shannon(*pair)
        assert js.dtype == torch.float64
        assert bool(((js >= 0) & (js <= LN2)).all())
        assert torch.equal(js, jensen_shannon(*reversed(pair)))

    @quick
    @given(distributions())
    def test_nothing_if_and_only_if_equal(self, pair: list[Tensor]) -> None:
        one, other = pair
        assert bool((jensen_shannon(one, one.clone()) == 0).all())
        js = jensen_shannon(one, other)
        apart = (one.exp() - other.exp()).abs().sum(-1)
        # Pinsker's inequality, from the two to their middle.
        assert bool((js >= apart.square() / 8 - 1e-12).all())

    @quick
    @given(distributions(count=3))
    def test_its_root_is_a_distance(self, three: list[Tensor]) -> None:
        """No way over a third distribution is shorter."""
        a, b, c = three
        ab, bc, ac = (jensen_shannon(*pair).sqrt() for pair in ((a, b), (b, c), (a, c)))
        assert bool((ac <= ab + bc + 1e-7).all())

    @quick
    @given(distributions())
    def test_it_is_the_entropy_of_the_middle_less_the_mean_entropy(
        self, pair: list[Tensor]
    ) -> None:
        one, other = pair
        middle = ((one.exp() + other.exp()) / 2).log()
        mean = (measures.entropy(one) + measures.entropy(other)) / 2
        expected = (measures.entropy(middle) - mean).clamp(0, LN2)
        assert float((jensen_shannon(one, other) - expected).abs().max()) < 1e-12

    @quick
    @given(distributions(count=1))
    def test_entropy_is_bounded(self, one: list[Tensor]) -> None:
        (logp,) = one
        entropy = measures.entropy(logp)
        assert bool(((entropy >= -1e-12) & (entropy <= math.log(logp.shape[1]) + 1e-12)).all())

    @pytest.mark.parametrize("vocabulary", [1000, 49152])
    def test_single_precision_is_as_good(self, vocabulary: int) -> None:
        """Flat and sharp, near and far: within 1e-6 of the definition in float64."""
        for scale, step in [(1, 0), (1, 1e-4), (1, 0.1), (4, 2), (1, 10), (12, 30)]:
            one = numbers(0, 3, vocabulary) * scale
            pair = [x.float() for x in (one, one + numbers(1, 3, vocabulary) * step)]
            p, q = (x.double().softmax(-1) for x in pair)
            middle = (p + q) / 2
            parts = (torch.special.xlogy(x, x / middle).sum(-1) / 2 for x in (p, q))
            logs = [measures.log_softmax(x.clone()) for x in pair]
            js = jensen_shannon(*logs)
            assert logs[0].dtype == torch.float32
            assert float((js - sum(parts)).abs().max()) < 1e-6
            entropy = -torch.special.xlogy(p, p).sum(-1)
            assert float((measures.entropy(logs[0]) - entropy).abs().max()) < 2e-5

    def test_a_long_row_keeps_its_sum(self) -> None:
        """A vocabulary of 262,144, where the softmax of torch is off by more than 1e-5."""
        logits = numbers(0, 1, 1 << 18).float() * 4
        found = measures.log_softmax(logits)
        assert float((found.double() - logits.double().log_softmax(-1)).abs().max()) < 5e-6

    def test_small_differences_are_not_lost(self) -> None:
        """Of two nearly equal distributions, in single precision the divergence would be noise."""
        one = numbers(0, 1, 50).log_softmax(-1)
        step = numbers(1, 1, 50) * 1e-6
        near = jensen_shannon(one, (one + step).log_softmax(-1))
        # To second order, an eighth of the step's variance under p.
        variance = (one.exp() * step.square()).sum() - (one.exp() * step).sum().square()
        assert float(near) == pytest.approx(float(variance) / 8, rel=1e-3)


def slow_particle(logp: list[float], base: float, share: float) -> float:
    """As the definition says it, item by item."""
    last = logp[-1]
    if not last - base > measures.ROUNDING:
        return math.nan
    done = [(value - base) / (last - base) >= share for value in logp]
    return float(next(depth for depth in range(len(logp)) if all(done[depth:])))


class TestParticle:
    @quick
    @given(
        st.lists(st.lists(st.integers(-6, 0), min_size=6, max_size=6), min_size=1, max_size=8),
        st.sampled_from([0.25, 0.5, 0.9, 1.0]),
    )
    def test_against_a_loop(self, items: list[list[int]], share: float) -> None:
        """Ties, plateaus, items that never rise, and depths below the base included."""
        base, *values = torch.tensor(items, dtype=torch.float64).T
        found = measures.particle(torch.stack(values), base, share=share).tolist()
        expected = [slow_particle(list(map(float, row[1:])), row[0], share) for row in items]
        assert found == pytest.approx(expected, nan_ok=True)

    @quick
    @given(seeds, st.sampled_from([0.25, 1.0, 8.0]), st.integers(-50, 0))
    def test_unit_and_level_have_no_say(self, seed: int, scale: float, level: int) -> None:
        """Where nothing is rounded: half of a rise may be reached exactly."""
        drawn = numbers(seed, 9, 20), numbers(seed + 1, 20)
        logp, base = ((values * 1024).round() / 1024 for values in drawn)
        moved = measures.particle(scale * logp + level, scale * base + level)
        assert torch.equal(moved.nan_to_num(-1), measures.particle(logp, base).nan_to_num(-1))

    @quick
    @given(seeds, st.floats(-300, 0))
    def test_what_the_embedding_says_of_the_answer_has_no_say(
        self, seed: int, embedding: float
    ) -> None:
        """A head that is tied to it gives e^-100, an untied one nearly what chance gives."""
        logp = numbers(seed, 9, 20).sort(0).values
        base = logp[0] - 0.1
        plain = measures.particle(logp, base), measures.gain(logp, base)[1:]
        logp[0] = base + embedding
        assert torch.equal(measures.particle(logp, base).clamp(min=1), plain[0].clamp(min=1))
        assert torch.equal(measures.gain(logp, base)[1:], plain[1])

    def test_it_is_no_earlier_than_the_first_crossing(self) -> None:
        logp = torch.tensor([[-130.0, -1.0, -7.0, -2.0, -3.0, 0.0]], dtype=torch.float64).T
        base = torch.tensor([-8.0], dtype=torch.float64)
        assert measures.particle(logp, base).tolist() == [3]
        shares = [-122 / 8, 7 / 8, 1 / 8, 6 / 8, 5 / 8, 1]
        assert measures.rise(logp, base)[:, 0].tolist() == shares

    def test_an_answer_that_the_embedding_knows_is_at_depth_0(self) -> None:
        logp = torch.tensor([[0.9, 0.8, 0.9]], dtype=torch.float64).log().T
        base = torch.tensor([0.1], dtype=torch.float64).log()
        assert measures.particle(logp, base).tolist() == [0]
        gain = measures.gain(logp, base)
        assert gain.tolist() == pytest.approx([0.8, 0.7, 0.8])
        assert (measures.largest_jump(gain), measures.absolute_rise(gain)) == (0, 0)

    def test_alternatives(self) -> None:
        gain = torch.tensor([0.0, 0.01, 0.13, 0.18, 0.88, 0.93, 0.92])
        assert measures.largest_jump(gain) == 4
        assert measures.absolute_rise(gain) == 2
        assert measures.absolute_rise(gain, least=0.95) is None
        assert measures.outstanding_jump(gain) == 4
        assert measures.outstanding_jump(torch.linspace(0, 1, 7)) is None

    def test_what_lies_below_the_base_is_no_rise(self) -> None:
        """From e^-130 to what the set alone says is the longest way, and no knowledge."""
        logp = torch.tensor([[1e-50, 0.3, 0.3, 0.5], [1e-50, 0.1, 0.3, 0.5]], dtype=torch.float64)
        gain = measures.gain(logp.log().T, torch.tensor([0.3, 0.3], dtype=torch.float64).log())
        assert gain.tolist() == pytest.approx([0, 0, 0, 0.2], abs=1e-12)
        assert measures.largest_jump(gain) == measures.absolute_rise(gain) == 3


class TestSensitivity:
    @quick
    @given(seeds, st.integers(1, 6), st.integers(2, 4), st.integers(2, 30))
    def test_reproducible_and_around_the_mean(
        self, seed: int, layers: int, draws: int, units: int
    ) -> None:
        js = numbers(seed, layers, draws, units).square().clamp(max=LN2)
        one, other = (sensitivity(js, random=True, resamples=200) for _ in range(2))
        for name in ("mean", "low", "high"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.agreement == other.agreement
        assert float((one.mean - js.mean((1, 2))).abs().max()) < 1e-12
        assert one.low is not None
        assert one.high is not None
        assert one.agreement is not None
        assert bool(((one.low >= 0) & (one.low <= one.mean)).all())
        assert bool(((one.high <= LN2) & (one.high >= one.mean)).all())
        assert 0 <= one.agreement <= 1
        assert one.spread >= 1

    def test_the_global_generator_has_no_say(self) -> None:
        js = numbers(0, 4, 3, 10).square() / 10
        torch.manual_seed(1)
        one = sensitivity(js, random=True)
        torch.manual_seed(2)
        same, other = (sensitivity(js, random=True, seed=seed) for seed in (0, 1))
        assert one.high is not None
        assert same.high is not None
        assert other.high is not None
        assert torch.equal(one.high, same.high)
        assert not torch.equal(one.high, other.high)

    def test_a_clear_winner(self) -> None:
        js = numbers(0, 5, 3, 20).abs() * 0.01
        js[3] += 1
        found = sensitivity(js, random=True)
        assert (found.largest, found.vulnerable, found.agreement) == (3, 3, 1.0)

    def test_a_tie_agrees_with_none(self) -> None:
        js = numbers(0, 4, 3, 20).abs() * 0.01
        js[1] = js[2] = 1 + numbers(1, 3, 20).abs()
        found = sensitivity(js, random=True)
        assert (found.vulnerable, found.agreement) == (None, 0.0)
        assert found.spread > measures.LEAST_SPREAD

    def test_layers_that_hardly_differ(self) -> None:
        """A sure winner, and no use in naming it."""
        js = torch.ones(4, 3, 20, dtype=torch.float64)
        js[2] = 1.5
        found = sensitivity(js, random=True)
        assert (found.agreement, found.spread, found.vulnerable) == (1.0, 1.5, None)

    def test_one_draw_that_differs_is_no_agreement(self) -> None:
        """Resampled are seeds as well as text: what hangs on one seed is not sure."""
        js = torch.full((3, 3, 40), 0.1, dtype=torch.float64)
        js[1, 0], js[2, 1] = 1.0, 0.9
        found = sensitivity(js, random=True)
        assert found.spread > measures.LEAST_SPREAD
        assert found.agreement is not None
        assert found.agreement < measures.LEAST_AGREEMENT
        assert (found.largest, found.vulnerable) == (1, None)

    def test_layers_that_do_nothing(self) -> None:
        js = torch.zeros(3, 2, 5, dtype=torch.float64)
        nothing = sensitivity(js, random=True)
        assert (nothing.spread, nothing.vulnerable) == (1.0, None)
        js[1] = 0.2
        alone = sensitivity(js, random=True)
        assert (alone.spread, alone.vulnerable, alone.agreement) == (math.inf, 1, 1.0)

    def test_the_interval_is_that_of_the_mean(self) -> None:
        """Of many independent units: 1.645 standard errors to each side."""
        js = numbers(0, 1, 1, 2000).square() / 10
        found = sensitivity(js, random=False, resamples=4000)
        error = float(js.std() / 2000**0.5)
        assert width(found) == pytest.approx(2 * 1.645 * error, rel=0.1)

    @pytest.mark.parametrize(("draws", "t"), [(2, 6.314), (3, 2.920), (5, 2.132), (30, 1.699)])
    def test_few_draws_have_the_intervals_of_the_t_distribution(self, draws: int, t: float) -> None:
        """Its quantiles, as tables give them; a bootstrap of two draws ends at the two."""
        of_draws = 0.3 + 0.001 * numbers(0, 1, draws, 1)
        js = of_draws.expand(1, draws, 50)
        error = float(of_draws.std() / draws**0.5)
        found = sensitivity(js, random=True, resamples=20000)
        assert width(found) == pytest.approx(2 * t * error, rel=0.1)

    def test_intervals_hold_the_truth_as_often_as_they_say(self) -> None:
        """Three draws, ten stretches, both with effects of their own: 90 % or more of 400."""
        held = 0
        for i in range(400):
            seeds, units = numbers(3 * i, 1, 3, 1), numbers(3 * i + 1, 1, 1, 10)
            js = 0.35 + 0.02 * seeds + 0.02 * units + 0.02 * numbers(3 * i + 2, 1, 3, 10)
            found = sensitivity(js, random=True, resamples=200)
            assert found.low is not None
            assert found.high is not None
            held += bool(found.low < 0.35 < found.high)
        assert held >= 0.9 * 400 - 2 * math.sqrt(400 * 0.9 * 0.1)

    @pytest.mark.parametrize("shape", [(3, 1, 20), (3, 3, 1)], ids=["one draw", "one stretch"])
    def test_one_of_a_kind_is_never_decided(self, shape: tuple[int, ...]) -> None:
        """However far one layer is ahead: with another draw it may be another layer."""
        js = torch.full(shape, 0.01, dtype=torch.float64)
        js[1] = 0.6
        found = sensitivity(js, random=True)
        assert (found.low, found.high, found.agreement, found.vulnerable) == (None,) * 4
        assert found.largest == 1

    def test_what_draws_nothing_needs_no_draws(self) -> None:
        js = numbers(0, 3, 1, 20).abs() * 0.01
        js[1] += 0.5
        assert sensitivity(js, random=False).vulnerable == 1

    def test_draws_that_contradict_each_other_decide_nothing(self) -> None:
        """One of three hits: between the three values lies not all that others might give."""
        js = numbers(0, 4, 3, 20).abs() * 0.01
        js[2, 0] = 0.6
        found = sensitivity(js, random=True)
        assert found.vulnerable is None
        assert found.high is not None
        assert float(found.high[2]) > 0.6


def width(found: measures.Sensitivity) -> float:
    assert found.low is not None
    assert found.high is not None
    return float(found.high[0] - found.low[0])


def direct_ridge(x: Tensor, y: Tensor, *, shrink: float, rank: int) -> tuple[Tensor, Tensor]:
    """The minimiser of |Y - W X - b|^2 / n + lambda s |W|^2 by its normal equations.

    Args:
        rank: of the space that s, the mean eigenvalue, is taken over.
    """
    a, b = x - x.mean(0), y - y.mean(0)
    covariance = a.T @ a / len(x)
    scale = covariance.trace() / rank
    shifted = covariance + shrink * scale * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(shifted, a.T @ b / len(x))
    return weight, y.mean(0) - x.mean(0) @ weight


def seen_of(num_tokens: int) -> int:
    return num_tokens - round(HELD_OUT * num_tokens)


class TestLens:
    @pytest.mark.parametrize(("num_tokens", "width"), [(40, 64), (60, 45), (200, 16)])
    def test_it_is_the_direct_solution(self, num_tokens: int, width: int) -> None:
        """In the space of fewer tokens than dimensions as in that of all dimensions."""
        x, y = 1 + numbers(0, num_tokens, width), numbers(1, num_tokens, 7)
        y += x @ numbers(2, width, 7) * 0.3
        seen = seen_of(num_tokens)
        lens = fit_lens(x, y)
        assert (lens.basis is None) == (seen >= width)
        tried = [
            direct_ridge(x[:seen], y[:seen], shrink=shrink, rank=min(seen, width))
            for shrink in LAMBDAS
        ]
        errors = [float((y - x @ w - b)[seen:].square().sum()) for w, b in tried]
        weight, bias = tried[errors.index(min(errors))]
        new = numbers(3, 100, width)
        assert float((lens(new) - (new @ weight + bias)).abs().max()) < 1e-6
        judged = y[seen:]
        r2 = 1 - min(errors) / float((judged - judged.mean(0)).square().sum())
        assert lens.r2 == pytest.approx(r2, abs=1e-6)

    def test_an_exact_map_is_recovered(self) -> None:
        x, weight = numbers(0, 400, 16), numbers(1, 16, 24)
        new = numbers(2, 50, 16)
        lens = fit_lens(x, x @ weight + 3)
        # Within what the smallest lambda of a lens takes off.
        assert float((lens(new) - (new @ weight + 3)).abs().max()) < 1e-4
        assert lens.r2 > 1 - 1e-9

    def test_an_exact_map_of_few_tokens_in_a_wide_stream(self) -> None:
        """States of 64 dimensions that fill only five of them."""
        plane, weight = numbers(0, 5, 64), numbers(1, 64, 64)
        x, new = numbers(2, 40, 5) @ plane, numbers(3, 50, 5) @ plane
        lens = fit_lens(x, x @ weight + 3)
        assert lens.basis is not None
        assert lens.basis.shape == (64, 5)
        gram = lens.basis.T @ lens.basis
        assert float((gram - torch.eye(5, dtype=torch.float64)).abs().max()) < 1e-9
        assert float((lens(new) - (new @ weight + 3)).abs().max()) < 1e-3
        assert lens.r2 > 1 - 1e-9

    @quick
    @given(seeds, st.integers(4, 60), st.integers(1, 40))
    def test_any_text_gives_a_map(self, seed: int, num_tokens: int, width: int) -> None:
        x, y = numbers(seed, num_tokens, width), numbers(seed + 1, num_tokens, 3)
        lens = fit_lens(x, y)
        assert bool(lens(x).isfinite().all())
        assert lens.r2 <= 1

    @pytest.mark.parametrize("width", [2, 40])
    def test_states_that_never_change_give_the_mean(self, width: int) -> None:
        """No text that is read by a model without a position can be told apart at depth 0."""
        y = numbers(0, 16, 3)
        lens = fit_lens(torch.ones(16, width), y)
        expected = y[: seen_of(16)].mean(0)
        assert float((lens(torch.ones(1, width)) - expected).abs().max()) < 1e-6

    def test_noise_is_not_learned(self) -> None:
        x, y = numbers(0, 200, 64), numbers(1, 200, 8)
        lens = fit_lens(x, y)
        assert -0.1 < lens.r2 < 0.1
        assert float(lens(numbers(2, 500, 64)).std()) < 0.3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_in_the_dtype_of_the_state(self, dtype: torch.dtype) -> None:
        lens: Lens = fit_lens(numbers(0, 40, 8).to(dtype), numbers(1, 40, 4).to(dtype))
        assert lens(numbers(2, 3, 5, 8).to(dtype)).dtype == dtype
        assert lens(numbers(2, 3, 5, 8).to(dtype)).shape == (3, 5, 4)

    def test_threads_have_no_say(self) -> None:
        """The same map on every machine, and the threads are given back."""
        x, y = numbers(0, 300, 96), numbers(1, 300, 96)
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit_lens(x, y))
            assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        one, other = found
        assert torch.equal(one.affine.weight, other.affine.weight)

"""The search for placements finds the best that obeys the rules, and says how sure it is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping

import pytest

from hybridize.diagnostics.recommendation.prior.placement import (
    GATE,
    PARTS,
    Estimate,
    LayerRun,
    Placement,
    Rules,
    Scores,
    Seam,
    Spot,
    decompose,
    flipped,
    lead_error,
    place,
    z_scores,
)

WEIGHTS = {"quality": 1.0, "stability": 1.0, "value": 1.0, "bridge": 0.1, "fit": 0.5}


def rules(
    layers: dict[str, int],
    depth: int,
    *,
    at_least: int = 1,
    max_changes: int = 2,
    keep_order: bool = True,
    allowed: set[Spot] | None = None,
) -> Rules:
    everything = {Spot(d, i) for d, n in layers.items() for i in range(n)}
    return Rules(
        depth=depth,
        layers=layers,
        allowed=frozenset(everything if allowed is None else allowed),
        at_least=at_least,
        max_changes=max_changes,
        ends=frozenset(itertools.product(layers, repeat=2)),
        keep_order=keep_order,
        weights=WEIGHTS,
    )


def scores_at_random(given: Rules, seed: int) -> Scores:
    chance = random.Random(seed)
    return Scores(
        {
            part: {s: Estimate(chance.gauss(0, 1), 0.1) for s in sorted(given.allowed)}
            for part in PARTS
        },
        no_error,
    )


def no_error(weights: Mapping[str, float]) -> float:
    return 0.0


def seams_at_random(seed: int) -> dict[tuple[Spot, Spot], Seam]:
    class Found(dict[tuple[Spot, Spot], Seam]):
        def __missing__(self, key: tuple[Spot, Spot]) -> Seam:
            chance = random.Random(f"{seed} {key}")
            self[key] = Seam(chance.uniform(0, 1), chance.random() < 0.7)
            return self[key]

    return Found()


def all_stacks(given: Rules) -> Iterator[tuple[LayerRun, ...]]:
    """Every stack that the rules allow, one by one."""

    def grow(runs: tuple[LayerRun, ...], slots: int) -> Iterator[tuple[LayerRun, ...]]:
        if slots == given.depth:
            yield runs
        for donor, depth in given.layers.items():
            if len(runs) > given.max_changes or (runs and runs[-1].donor == donor):
                continue
            for first in range(depth):
                for last in range(first, min(depth, first + given.depth - slots)):
                    run = LayerRun(donor, first, last)
                    if all(spot in given.allowed for spot in run.spots):
                        yield from grow((*runs, run), slots + last - first + 1)

    for runs in grow((), 0):
        lasts: dict[str, int] = {}
        fine = runs[0].first == 0 and runs[-1].last == given.layers[runs[-1].donor] - 1
        for run in runs:
            fine &= run.last - run.first + 1 >= given.at_least
            fine &= not given.keep_order or run.first > lasts.get(run.donor, -1)
            lasts[run.donor] = run.last
        for a, b in itertools.pairwise(runs):
            drift = abs(b.first / given.layers[b.donor] - (a.last + 1) / given.layers[a.donor])
            fine &= drift <= 0.25
        if fine and set(lasts) == {spot.donor for spot in given.allowed}:
            yield runs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("layers", "depth", "options"),
    [
        ({"a": 5, "b": 5}, 5, {}),
        ({"a": 4, "b": 6}, 6, {"max_changes": 3}),
        ({"a": 4, "b": 4, "c": 4}, 6, {"max_changes": 3}),
        ({"a": 6, "b": 6}, 8, {"at_least": 2, "max_changes": 3}),
        ({"a": 5, "b": 5}, 7, {"keep_order": False}),
    ],
)
def test_the_best_placements_are_those_of_a_search_by_hand(
    layers: dict[str, int], depth: int, options: dict[str, bool], seed: int
) -> None:
    given = rules(layers, depth, **options)  # type: ignore[arg-type]
    scores, table = scores_at_random(given, seed), seams_at_random(seed)

    def seams(below: Spot, above: Spot) -> Seam:
        return table[below, above]

    stacks = [
        decompose(runs, given, scores, seams)
        for runs in all_stacks(given)
        if all(
            seam.r2 >= GATE or not seam.bridge
            for a, b in itertools.pairwise(runs)
            for seam in [seams(Spot(a.donor, a.last), Spot(b.donor, b.first))]
        )
    ]
    wanted = sorted((p.score for p in stacks), reverse=True)[:3]
    found = place(given, scores, seams, count=3)
    assert [p.score for p in found] == pytest.approx(wanted)
    assert all(p.runs in {s.runs for s in stacks} for p in found)


def no_seams(below: Spot, above: Spot) -> Seam:
    return Seam(1.0, False)


def test_strong_layers_go_deep() -> None:
    given = rules({"strong": 6, "weak": 6}, 6)
    z = {s: Estimate(1.0 if s.donor == "strong" else -1.0, 0.0) for s in given.allowed}
    nothing = dict.fromkeys(given.allowed, Estimate(0.0, 0.0))
    scores = Scores({"quality": z, "stability": nothing, "value": nothing}, no_error)
    best = place(given, scores, no_seams, count=1)[0]
    assert str(best) == "weak 0, strong 1-5"


def test_a_slot_weighs_the_more_the_deeper_it_is_and_all_weigh_one() -> None:
    given = rules({"a": 7}, 7)
    shares = [given.share(i) for i in range(7)]
    assert shares == sorted(shares)
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(7 * shares[0])


def test_parts_add_up_to_the_score() -> None:
    given = rules({"a": 4, "b": 4}, 4)
    scores = scores_at_random(given, 0)
    placement = decompose(
        (LayerRun("a", 0, 1), LayerRun("b", 2, 3)), given, scores, lambda *_: Seam(0.6, True)
    )
    spots = [Spot("a", 0), Spot("a", 1), Spot("b", 2), Spot("b", 3)]
    by_hand = sum(
        (slot + 1) / 10 * sum(scores.z[part][spot].value for part in PARTS)
        for slot, spot in enumerate(spots)
    )
    assert placement.score == pytest.approx(by_hand - 0.1 - 0.5 * 0.4)
    assert placement.parts["bridge"] == pytest.approx(-0.1)
    assert placement.parts["fit"] == pytest.approx(-0.2)


def test_a_seam_that_explains_too_little_is_refused() -> None:
    given = rules({"a": 4, "b": 4}, 4)
    scores = scores_at_random(given, 0)
    assert place(given, scores, lambda *_: Seam(GATE - 0.01, True), count=5) == []
    assert place(given, scores, lambda *_: Seam(GATE, True), count=5)
    assert place(given, scores, lambda *_: Seam(0.0, False), count=5)


def test_embedding_and_head_must_mean_the_same_tokens() -> None:
    given = rules({"a": 4, "b": 4}, 4)
    scores = scores_at_random(given, 1)
    apart = Rules(**{**vars(given), "ends": frozenset({("a", "a"), ("b", "b")})})
    found = place(apart, scores, no_seams, count=9)
    assert found
    assert all(p.runs[0].donor == p.runs[-1].donor for p in found)


def test_candidates_alone_are_used() -> None:
    allowed = {Spot("a", 0), Spot("a", 1), *(Spot("b", i) for i in range(4))}
    given = rules({"a": 4, "b": 4}, 4, allowed=allowed)
    found = place(given, scores_at_random(given, 2), no_seams, count=20)
    assert found
    assert {s for p in found for s in p.spots} <= allowed


def test_what_is_equal_has_no_z_score_and_noise_only_a_small_one() -> None:
    same, _ = z_scores({Spot("a", 0): Estimate(2.0, 0.0), Spot("b", 0): Estimate(2.0, 0.0)})
    assert {e.value for e in same.values()} == {0.0}
    noisy, _ = z_scores({Spot("a", 0): Estimate(2.0, 1.0), Spot("b", 0): Estimate(2.1, 1.0)})
    assert max(abs(e.value) for e in noisy.values()) < 0.1
    clear, scale = z_scores({Spot("a", 0): Estimate(0.0, 0.01), Spot("b", 0): Estimate(2.0, 0.01)})
    assert clear[Spot("b", 0)].value == pytest.approx(1.0, abs=1e-3)
    assert clear[Spot("b", 0)].error == pytest.approx(0.01 / scale)


def test_the_error_of_a_lead_counts_only_what_differs() -> None:
    """Of the donors' qualities, the error of the difference itself: they have read one text."""
    given = rules({"a": 4, "b": 4}, 4)
    errors = {s: Estimate(0.0, 0.5) for s in given.allowed}
    asked: list[Mapping[str, float]] = []

    def quality_error(weights: Mapping[str, float]) -> float:
        asked.append(weights)
        return 0.3

    scores = Scores(dict.fromkeys(PARTS, errors), quality_error)
    one = Placement((LayerRun("a", 0, 1), LayerRun("b", 2, 3)), {})
    other = Placement((LayerRun("a", 0, 0), LayerRun("b", 1, 3)), {})
    # Slot 1 has another layer: a share of 0.2 for each of two layers and two parts.
    by_hand = math.sqrt(2 * 2 * (0.2 * 0.5) ** 2 + 0.3**2)
    assert lead_error(one, other, given, scores) == pytest.approx(by_hand)
    assert asked[0] == pytest.approx({"a": 0.2, "b": -0.2})


def test_the_flipped_placement_exchanges_best_and_worst() -> None:
    given = rules({"good": 6, "bad": 6, "mid": 8}, 8)
    placement = Placement(
        (LayerRun("bad", 0, 1), LayerRun("mid", 2, 4), LayerRun("good", 3, 5)), {}
    )
    found = flipped(placement, given, {"good": 3.0, "mid": 2.0, "bad": 1.0})
    assert found is not None
    assert found.runs == (LayerRun("good", 0, 1), LayerRun("mid", 2, 4), LayerRun("bad", 3, 5))
    assert found.parts == {}


def test_a_donor_that_is_too_shallow_for_it_is_not_flipped() -> None:
    given = rules({"good": 6, "bad": 2}, 6)
    placement = Placement((LayerRun("bad", 0, 1), LayerRun("good", 2, 5)), {})
    assert flipped(placement, given, {"good": 2.0, "bad": 1.0}) is None

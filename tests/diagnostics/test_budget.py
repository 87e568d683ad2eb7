"""A diagnosis that fits into a budget: coarse for all layers, finer where it decides something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hybridize.cli import main
from hybridize.diagnostics.measure import diagnosis, scoring
from hybridize.diagnostics.measure.budget import Rate, candidates, choices, overruns
from hybridize.diagnostics.measure.effort import Effort
from hybridize.diagnostics.measure.variants import Variant
from hybridize.diagnostics.subject.trace import Curve, Trace, read_document
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec
from tests.support.readers import write_text
from tests.support.trained_donors import DEPTH, save_trained


def pairs(**given: Any) -> list[tuple[int | None, int | None]]:
    return [(spec.perturbed, spec.seeds) for spec in choices(DiagnosticsSpec(**given))]


def test_what_a_recipe_says_is_not_chosen() -> None:
    assert pairs() == [(None, 3), (1280, 3), (640, 3), (320, 3), (320, 2)]
    assert pairs(seeds=5) == [(None, 5), (1280, 5), (640, 5), (320, 5)]
    assert pairs(perturbed=500) == [(500, 3), (500, 2)]
    assert pairs(perturbed=500, seeds=4) == [(500, 4)]
    assert pairs(tokens=1024) == pairs(parts=["layer"]) == [(None, 3)]
    assert choices(DiagnosticsSpec(tokens=1024))[0].parts == ["layer", "mixer", "mlp"]
    assert choices(DiagnosticsSpec())[0].parts is None


def test_seconds_are_those_of_layers_and_head() -> None:
    effort = Effort((10, 10), read=100, compare=1000, width=4)
    rate = Rate(layers=1.0, read=0.01, compare=0.1)
    found = rate.seconds(lambda e: 7 * sum(e.layers) + 3 * e.read + 2 * e.compare, effort)
    assert found == pytest.approx(140 + 3 * 0.01 + 2 * 0.1)


def test_few_layers_take_less_effort() -> None:
    effort = Effort((1, 10, 100), read=0, compare=0, width=4)
    all_, one = Variant("skip", 1.0), Variant("skip", 1.0, "mixer", layers=frozenset({1}))
    assert [effort.visit(i, [all_]) for i in range(3)] == [1, 20, 300]
    assert [effort.visit(i, [one]) for i in range(3)] == [1, 20, 200]


def curve(mean: list[float | None], error: float, **more: Any) -> Curve:
    around = [[None if m is None else m + side * error for m in mean] for side in (-1, 1)]
    given = {"on": "all text", "kind": "dropout", "part": "layer", "agreement": 0.5, "spread": 9}
    lists = {"mean": mean, "low": around[0], "high": around[1]}
    rises = {"loss_rise": mean, "loss_error": mean}
    return Curve(**given | lists | rises | {"vulnerable": None, "why": "undecided"} | more)


COARSE = [0.1, 0.5, 0.45, 0.05, 0.3]


def test_candidates_reach_the_first() -> None:
    assert candidates(curve(COARSE, 0.05), 4) == [1, 2]
    assert candidates(curve(COARSE, 0.01), 4) == [1, 2]  # a second one to compare with
    assert candidates(curve(COARSE, 0.3), 3) == [1, 2, 4]
    assert candidates(curve([None, None], 0.1), 4) == []


@pytest.mark.parametrize(
    ("error", "agreement", "decided", "why"),
    [
        (0.04, 0.95, 2, "95% of the resamples name slot 2 among slots 1, 2"),
        (0.04, 0.70, None, "undecided: only 70% of the resamples name slot 2 among slots 1, 2"),
        (0.30, 0.95, None, "but slots 4, measured with fewer seeds, may lie higher"),
    ],
)
def test_both_measurements_decide_what_is_vulnerable(
    error: float, agreement: float, decided: int | None, why: str
) -> None:
    """What few seeds have not ruled out is not ruled out by more seeds for others."""
    fine = curve([None, 0.4, 0.48, None, None], 0.02, agreement=agreement)
    (found,) = scoring.refined([curve(COARSE, error)], [fine])
    assert found.mean == [0.1, 0.4, 0.48, 0.05, 0.3]
    assert found.high[2] == 0.5
    assert found.high[4] == pytest.approx(0.3 + error)
    assert found.vulnerable == decided
    assert why in found.why


def test_a_part_measured_in_few_layers_decides_nothing_about_others() -> None:
    fine = curve([None, 0.4, None], 0.02, part="mixer", vulnerable=1)
    _, found = scoring.refined(
        [curve(COARSE, 0.1)], [curve([None, 0.4, 0.4, None, None], 0.02), fine]
    )
    assert (found.vulnerable, found.why) == (None, "undecided: measured in slots 1 alone")


def diagnose(folder: Path, *options: str) -> tuple[Trace, str]:
    text = str(folder / write_text(folder))
    arguments = ["diagnose", str(folder / "donor"), "--out", str(folder / "report")]
    done = CliRunner().invoke(
        main, [*arguments, "--text", text, "--probes", "copying", "--offline", *options]
    )
    assert done.exit_code == 0, done.output[-2000:]
    return read_document(folder / "report" / "trace.json").models[0], done.stderr


def values(trace: Trace, part: str) -> list[float | None]:
    return trace.curve("dropout", part).mean


def test_flags_repeat_what_was_chosen_and_finer_values_are_those_of_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_trained(tmp_path / "donor", damaged=(2,))
    monkeypatch.setattr(diagnosis, "timed", lambda *_: Rate(1e3, 1e3, 1e3))
    chosen, said = diagnose(tmp_path)  # the machine is far too slow for anything
    assert "more than the budget of 10 min" in said
    assert "--perturbed 320 --seeds 2" in said
    monkeypatch.setattr(diagnosis, "timed", lambda *_: Rate(0, 0, 0))
    again, _ = diagnose(tmp_path, "--perturbed", "320", "--seeds", "2")
    assert again == chosen
    refined = chosen.settings.refined
    assert refined is not None
    assert refined.seeds == 4
    assert 2 <= len(refined.slots) <= 4
    for part in ("mixer", "mlp"):
        there = [slot for slot, value in enumerate(values(chosen, part)) if value is not None]
        assert there == refined.slots
    whole, more = (diagnose(tmp_path, "--tokens", "5120", "--seeds", n)[0] for n in ("4", "8"))
    fast, _ = diagnose(tmp_path, "--seeds", "4")  # a machine that is fast enough for all text
    assert fast.settings.perturbed is None
    assert fast.settings.refined is not None
    finer = fast.settings.refined.slots
    expected = [values(more if slot in finer else whole, "layer")[slot] for slot in range(DEPTH)]
    assert values(fast, "layer") == pytest.approx(expected)
    assert values(fast, "mlp")[finer[0]] == pytest.approx(values(more, "mlp")[finer[0]])
    losses = [trace.losses["text"].per_byte for trace in (fast, whole, chosen)]
    assert losses[0] == losses[1] == losses[2]
    assert len(values(chosen, "layer")) == DEPTH


def test_an_overrun_is_known_after_the_coarse_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert not overruns(90.0, 3, 1, 120.0)
    assert not overruns(110.0, 3, 1, 120.0)
    assert not overruns(1e6, 3, 1, None)
    assert capsys.readouterr().err == ""
    assert overruns(150.0, 3, 1, 120.0)
    assert capsys.readouterr().err == (
        "all layers took 2 min 30 s, more than was to be expected: none is measured again, which "
        "would make it 3 min 20 s (budget: 2 min 0 s)\n"
    )


def test_where_the_budget_is_spent_no_layer_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But flags are obeyed on a machine of any speed."""
    save_trained(tmp_path / "donor")
    asked: list[float | None] = []

    def spent(took: float, done: int, left: int, budget: float | None) -> bool:
        asked.append(budget)
        return budget is not None

    monkeypatch.setattr(diagnosis, "overruns", spent)
    short, _ = diagnose(tmp_path, "--budget", "9m")
    assert short.settings.refined is None
    assert short.settings.parts == ["layer"]
    assert {curve.part for curve in short.curves} == {"layer"}
    whole, _ = diagnose(tmp_path, "--perturbed", "320", "--seeds", "2")
    assert whole.settings.refined is not None
    assert asked == [540.0, None]


def test_a_model_is_timed_before_it_is_diagnosed(tmp_path: Path) -> None:
    save_trained(tmp_path / "donor")
    _, said = diagnose(tmp_path, "--perturbed", "64", "--seeds", "2", "--budget", "1h")
    assert "about" in said
    done = CliRunner().invoke(main, ["diagnose", str(tmp_path / "donor"), "--budget", "soon"])
    assert "--budget: 'soon' is not a time" in done.output
    assert json.loads((tmp_path / "report" / "trace.json").read_text())["format"]

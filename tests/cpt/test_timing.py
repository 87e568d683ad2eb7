"""Seconds of a training before it begins, measured on a few tokens of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hybridize.cli import main
from hybridize.console import duration
from hybridize.cpt.plan.planning import plan_training
from hybridize.cpt.train.timing import Timing, peak_memory
from hybridize.recipe.file import load_recipe
from tests.support.trainings import changed, prepare, train

STAGES = [{"train": ["bridges"], "share": 0.5}, {"train": [{"shallow": 1}], "share": 0.5}]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(
        tmp_path_factory.mktemp("timing"), stages=STAGES, micro_batch_size=2, evaluate_every=6
    )


def forecast(recipe: Path, *options: str) -> Any:
    built = str(recipe.parent / "out")
    arguments = ["cpt", str(recipe), "--built", built, "--forecast", "--device", "cpu"]
    done = CliRunner().invoke(main, [*arguments, *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in options else done.stdout


def test_parts_add_up_by_hand(recipe: Path) -> None:
    """Two stages of 20 steps, 4 rows of 32 in two goes; two sources, three looks in each stage."""
    plan = plan_training(load_recipe(recipe), recipe.parent / "out")
    timing = Timing(token=2.0, update=3.0, looked_at=0.5, ready=7.0, imports=0)
    first, second = plan.stages
    assert timing.training(plan, first) == 20 * (4 * 32 * 2.0 + 3.0)
    whole, between = 1024, 512
    assert (plan.evaluate_tokens, plan.between_tokens) == (whole, between)
    looks = 3 * between
    assert timing.evaluation(plan, first) == 2 * (2 * whole + between + looks) * 0.5
    assert timing.evaluation(plan, second) == 2 * (whole + looks) * 0.5
    off = replace(plan, spec=plan.spec.model_copy(update={"evaluate_tokens": 0}))
    assert timing.evaluation(off, first) == 0


def test_a_forecast_tells_seconds_with_evaluation(recipe: Path) -> None:
    found = forecast(recipe, "--json")
    seconds = found["seconds"]
    assert set(seconds) == {"training", "evaluation", "opening and checking", "total"}
    assert all(value > 0 for value in seconds.values())
    assert 10**8 < found["imports_bytes"] <= peak_memory()
    assert "time: about " in forecast(recipe)
    without = forecast(recipe, "--no-time")
    assert "time: not measured; --time measures it" in without
    assert forecast(recipe, "--no-time", "--json")["seconds"] is None


@pytest.mark.slow
def test_a_training_takes_what_was_told(recipe: Path) -> None:
    """Within a factor of two on a model where a step is mostly overhead; 30 % on real ones."""
    longer = changed(recipe, tokens=400 * 4 * 32, evaluate_tokens=2048)
    told = forecast(longer, "--json")["seconds"]["total"]
    began = time.perf_counter()
    assert train(longer, "long", "--device", "cpu").exit_code == 0
    assert 0.5 < told / (time.perf_counter() - began) < 2


PEAK = """
import sys
from hybridize.cli import main
try:
    main(sys.argv[1:])
finally:
    from hybridize.cpt.train.timing import peak_memory
    print(peak_memory(), file=sys.stderr)
"""


@pytest.mark.slow
def test_a_training_takes_the_memory_that_was_told(recipe: Path) -> None:
    """Of a tiny model it is nearly all Python's, with Trainer: 500 MB that were told as 400."""
    built, out = str(recipe.parent / "out"), str(recipe.parent / "weighed")
    shared = [str(recipe), "--built", built, "--device", "cpu", "--offline"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PEAK, "cpt", *shared, *options]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    found = json.loads(run("--forecast", "--json").stdout)
    costs = [stage["costs"]["policy"]["memory_bytes"]["total"] for stage in found["stages"]]
    peak = int(run("--out", out).stderr.splitlines()[-1])
    assert found["imports_bytes"] + max(costs) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")],
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words

"""Seconds that a plan tells: of each part of a build, from a remembered speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybridize.assembler.plan.estimate import build_seconds, machine_of
from hybridize.cli import main
from hybridize.machine.speed import Speed, remember
from tests.support.readers import save_reader, write_text
from tests.support.stacks import plan_of

SPEED = Speed("cpu", "float32", {32: 1e6}, head=1e3, training=1.0, copying=1e6, starting=2.0)
BRIDGE = {"where": "changes"}
FIT = {"data": ["text.txt"], "tokens": 1000, "length": 32}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(tmp_path / "cache"))


def plan(folder: Path, **keys: object):  # type: ignore[no-untyped-def]
    save_reader(folder / "a")
    save_reader(folder / "b", seed=1)
    write_text(folder)
    slots = [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}]
    donors = {name: {"model": name} for name in "ab"}
    return plan_of(folder, {"donors": donors, "slots": slots, **keys})


def told(folder: Path, *options: str) -> str:
    """What `plan` prints."""
    command = ["plan", str(folder / "recipe.yaml"), "--offline", *options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_build_without_text_copies_and_checks(tmp_path: Path) -> None:
    planned = plan(tmp_path, bridges={"where": "none"})
    found = build_seconds(planned, SPEED, 3_000_000)
    assert (found.copying, found.checking) == (3.0, 2.0 + 6.0)
    assert (found.fitting, found.measuring) == (0.0, 0.0)


def test_fitting_and_measuring_are_counted_with_the_head(tmp_path: Path) -> None:
    """`plan` promised 9 s for what took 20 minutes, since only bytes were counted."""
    planned = plan(tmp_path, calibration=FIT, bridges={"where": "changes"})
    found = build_seconds(planned, SPEED, 0)
    layer = planned.donors["a"].anatomy.layers[0].num_parameters
    head = 2 * 288 * 32 / 1e3
    # On a fifth of the text: hybrid and null control, and both donors alone, of four layers each.
    one = 4 * 2 * layer / 1e6 + head
    assert found.measuring == pytest.approx(200 * 4 * one, rel=1e-6)
    # One donor up to the bridge, the other one to its end, where the null control leads.
    passes, maps = (2 + 4) * 2 * layer / 1e6, 2 * (6e3 * 32**2 + 80 * 32**3) / 1e6
    assert found.fitting == pytest.approx(1000 * passes + 2 * maps)
    bare = plan(tmp_path, calibration={**FIT, "measure": False}, bridges=BRIDGE)
    passes = (2 + 2) * 2 * layer / 1e6
    assert build_seconds(bare, SPEED, 0).fitting == pytest.approx(1000 * passes + maps)
    assert build_seconds(planned, replace(SPEED, head=2e3), 0).measuring < found.measuring


def test_the_plan_tells_seconds_or_that_nothing_was_timed(tmp_path: Path) -> None:
    planned = plan(tmp_path, calibration=FIT)
    assert "never timed: hybridize plan --time RECIPE" in told(tmp_path)
    assert json.loads(told(tmp_path, "--json"))["seconds"] is None
    device, dtype = machine_of(planned)
    remember(replace(SPEED, device=device, dtype=dtype))
    assert "time" in told(tmp_path)
    assert "measuring" in told(tmp_path)
    parts = json.loads(told(tmp_path, "--json"))["seconds"]
    assert parts.keys() == {"copying", "checking", "fitting", "measuring"}


def test_what_is_measured_less_takes_less(tmp_path: Path) -> None:
    def measuring(measure: object) -> float:
        stack = plan(tmp_path, calibration={**FIT, "measure": measure}, bridges=BRIDGE)
        return build_seconds(stack, SPEED, 0).measuring

    assert measuring(True) == measuring(5000) > 0
    assert measuring(50) == pytest.approx(measuring(True) / 4)
    assert measuring(False) == 0
    assert json.loads(told(tmp_path, "--json"))["calibration"]["measured_tokens"] == 0
    assert "losses are not measured" in told(tmp_path)

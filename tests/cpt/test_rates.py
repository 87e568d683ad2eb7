"""Learning rates where the recipe names none: lower the more learns, and by role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybridize.cli import main
from hybridize.cpt.plan.model_tensors import ModelTensors, read_model_tensors
from hybridize.cpt.plan.policy import Entry, resolve
from hybridize.cpt.plan.rates import rate_lines, rates_of
from hybridize.recipe.sections.cpt import CptSpec
from tests.support.stacks import UNFITTED, build_in, save_donor, write_recipe


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> ModelTensors:
    """Two donors of other widths, eight slots, a bridge before slot 4."""
    folder = tmp_path_factory.mktemp("rates")
    for name, width in (("low", 32), ("high", 48)):
        save_donor(folder / name, "llama", hidden_size=width, tie_word_embeddings=False)
    recipe = {
        "donors": {"low": {"model": "low"}, "high": {"model": "high"}},
        "slots": [{"from": "low", "layers": "0-3"}, {"from": "high", "layers": "0-3"}],
        "bridges": UNFITTED,
    }
    return read_model_tensors(build_in(folder, recipe).folder)


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        (
            ["full"],
            {"embeddings": 1e-4 / 3, "slot": 1e-4, "bridge": 1e-3, "norm": 1e-4, "head": 1e-4},
        ),
        ([{"shallow": 1}], {"slot": 3e-4}),
        ([{"shallow": 4}], {"slot": 1e-4}),
        (["bridges", {"shallow": 1}, "head"], {"slot": 3e-4, "bridge": 1e-3, "head": 3e-4}),
        (["embeddings"], {"embeddings": 1e-4}),
    ],
)
def test_rates_go_by_role_and_by_how_much_learns(
    stack: ModelTensors, entries: list[Entry], wanted: dict[str, float]
) -> None:
    found = rates_of(resolve(stack, entries), CptSpec())
    assert {role: rate.value for role, rate in found.items()} == pytest.approx(wanted, rel=2e-3)


def test_rates_of_the_recipe_win(stack: ModelTensors) -> None:
    policy = resolve(stack, ["bridges", "norms", {"shallow": 1}])
    spec = CptSpec(learning_rate=2e-3, learning_rates={"bridge": 5e-3})
    assert rate_lines(rates_of(policy, spec)) == [
        "learning rate of slot, norm: 0.002 (learning_rate)",
        "learning rate of bridge: 0.005 (learning_rates: bridge)",
    ]
    spec = CptSpec(learning_rates={"bridge": 5e-3})
    assert rates_of(policy, spec)["slot"].value == 3e-4


def test_the_reason_says_how_much_learns(stack: ModelTensors) -> None:
    policy = resolve(stack, [{"shallow": 1}])
    share = policy.num_trained / stack.num_parameters
    assert rate_lines(rates_of(policy, CptSpec())) == [
        f"learning rate of slot: 0.0003 (default: {share:.0%} of the parameters learn (up to 25%))"
    ]


def test_a_plan_tells_the_rates_of_what_has_been_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_donor(tmp_path / "a", "llama")
    data = {
        "donors": {"a": {"model": "a"}},
        "slots": [{"from": "a", "layers": "0-3"}],
        "cpt": {"train": [{"shallow": 1}], "length": 32},
    }
    recipe = str(write_recipe(tmp_path / "recipe.yaml", data))
    before = CliRunner().invoke(main, ["plan", recipe])
    assert "hybridize cpt --forecast shows them after build" in before.output
    build_in(tmp_path, data, "out/recipe")
    after = CliRunner().invoke(main, ["plan", recipe])
    assert after.exit_code == 0, after.output
    assert "learning rate of slot: 0.0003 (default: 22% of the parameters learn" in after.output
    found = json.loads(CliRunner().invoke(main, ["plan", recipe, "--json"]).stdout)
    assert len(found["learning_rates"]) == 1
    without = {key: value for key, value in data.items() if key != "cpt"}
    plain = CliRunner().invoke(main, ["plan", str(write_recipe(tmp_path / "plain.yaml", without))])
    assert "learning rate" not in plain.output

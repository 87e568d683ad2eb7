"""Learning rates where the recipe names none: lower the more learns, and by role."""

from __future__ import annotations

import pytest

from hybridize.cpt.policy import Entry, resolve
from hybridize.cpt.rates import rate_lines, rates_of
from hybridize.cpt.stack import Stack, read_stack
from hybridize.recipe_sections import CptSpec
from tests.assembler.stacks import UNFITTED, build_in, save_donor


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Two donors of other widths, eight slots, a bridge before slot 4."""
    folder = tmp_path_factory.mktemp("rates")
    for name, width in (("low", 32), ("high", 48)):
        save_donor(folder / name, "llama", hidden_size=width, tie_word_embeddings=False)
    recipe = {
        "donors": {"low": {"model": "low"}, "high": {"model": "high"}},
        "slots": [{"from": "low", "layers": "0-3"}, {"from": "high", "layers": "0-3"}],
        "bridges": UNFITTED,
    }
    return read_stack(build_in(folder, recipe).folder)


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
    stack: Stack, entries: list[Entry], wanted: dict[str, float]
) -> None:
    found = rates_of(resolve(stack, entries), CptSpec())
    assert {role: rate.value for role, rate in found.items()} == pytest.approx(wanted, rel=2e-3)


def test_rates_of_the_recipe_win(stack: Stack) -> None:
    policy = resolve(stack, ["bridges", "norms", {"shallow": 1}])
    spec = CptSpec(learning_rate=2e-3, rates={"bridge": 5e-3})
    assert rate_lines(rates_of(policy, spec)) == [
        "learning rate of slot, norm: 0.002 (learning_rate)",
        "learning rate of bridge: 0.005 (rates: bridge)",
    ]
    spec = CptSpec(rates={"bridge": 5e-3})
    assert rates_of(policy, spec)["slot"].value == 3e-4


def test_the_reason_says_how_much_learns(stack: Stack) -> None:
    policy = resolve(stack, [{"shallow": 1}])
    share = policy.num_trained / stack.num_parameters
    assert rate_lines(rates_of(policy, CptSpec())) == [
        f"learning rate of slot: 0.0003 (default: {share:.0%} of the parameters learn (up to 25%))"
    ]

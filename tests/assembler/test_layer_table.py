"""Tables of a stack: equal layers in a row are one row, and nothing that differs is hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import Cohere2Config, Gemma3TextConfig

from hybridize.cli import main
from hybridize.errors import Finding, HybridizeError
from hybridize.model.anatomy import Layer
from hybridize.model.depth_map import mixer_of
from tests.support.stacks import save_donor, write_recipe

KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_donor(tmp_path / "one", "gemma3_text", layer_types=KINDS)
    save_donor(tmp_path / "two", "llama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert all(line == line.rstrip() for line in done.output.splitlines())
    return done.output


def cells(text: str) -> list[list[str]]:
    """First columns of the rows of layers, those of all others left out."""
    rows = [line.split() for line in text.splitlines()]
    return [row for row in rows if row and row[0].replace("-", "").isdigit()]


def test_inspect_shows_runs_of_equal_layers(folder: Path) -> None:
    found = json.loads(run("inspect", "one", "--json"))["layers"]
    shown = cells(run("inspect", "one"))
    assert [row[:3] for row in shown] == [
        ["0-1", "self_attn", "(sliding)"],
        ["2", "self_attn", "(full)"],
        ["3", "self_attn", "(sliding)"],
    ]
    each = found[0]["parameters"]
    assert shown[0][5] == f"{2 * each:,}"
    assert shown[1][5] == f"{each:,}"
    assert [row[0] for row in cells(run("inspect", "one", "--full"))] == ["0", "1", "2", "3"]
    assert [layer["mixer"] for layer in found] == [f"self_attn ({kind})" for kind in KINDS]


def test_plan_shows_the_kinds_of_attention_and_each_donor_once(folder: Path) -> None:
    recipe: dict[str, Any] = {
        "donors": {"one": {"model": "one"}, "two": {"model": "two"}},
        "slots": [
            {"from": "one", "layers": "0-3"},
            {"from": "two", "layers": [0, 1, 1, 2]},
            {"from": "two", "layer": 3, "mixer": {"from": "one", "layer": 2}},
        ],
        "bridges": {"where": "none"},
    }
    write_recipe(folder / "recipe.yaml", recipe)
    shown = cells(run("plan", "recipe.yaml"))
    assert [row[:4] for row in shown] == [
        ["0-1", "0-1", "self_attn", "(sliding)"],
        ["2", "2", "self_attn", "(full)"],
        ["3", "3", "self_attn", "(sliding)"],
        ["4-5", "two", "0-1", "self_attn"],
        ["6-7", "1-2", "self_attn", "mlp"],
        ["8", "3", "self_attn", "(full)"],
    ]
    assert shown[-1][4:7] == ["of", "one", "2"]
    assert len(cells(run("plan", "recipe.yaml", "--full"))) == 9
    slots = json.loads(run("plan", "recipe.yaml", "--json"))["slots"]
    assert [slot["mixer"] for slot in slots[:3]] == [
        "self_attn (sliding_attention)", "self_attn (sliding_attention)",
        "self_attn (full_attention)",
    ]  # fmt: skip
    assert slots[8]["mixer"] == "self_attn (full_attention) of one 2"


@pytest.mark.parametrize("config_class", [Gemma3TextConfig, Cohere2Config])
def test_a_period_is_read_as_transformers_reads_it(config_class: Any) -> None:
    """As the first checkpoints of these families say it."""
    config = config_class(num_hidden_layers=9, sliding_window_pattern=4)
    layers = [Layer(index, {"self_attn.q_proj.weight": None}) for index in range(9)]  # type: ignore[dict-item]
    shown = [mixer_of({"sliding_window_pattern": 4}, layer) for layer in layers]
    assert shown == [f"self_attn ({kind})" for kind in config.layer_types]


def test_a_fix_of_several_mistakes_is_told_once() -> None:
    findings = [
        Finding("a is wrong", "mend it", "x:1"),
        Finding("b is wrong", "mend it", "x:2"),
        Finding("c is wrong", "another", "x:3"),
        Finding("d is wrong"),
        Finding("e is wrong", "mend it"),
    ]
    error = HybridizeError.of(findings)
    assert str(error) == (
        "x:1: a is wrong\nx:2: b is wrong\n  fix: mend it\nx:3: c is wrong\n  fix: another\n"
        "d is wrong\ne is wrong\n  fix: mend it"
    )
    assert error.findings == tuple(findings)

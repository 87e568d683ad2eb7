"""`recommend` on donors whose worth is known: damage goes shallow or out, twins tie."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from hybridize.assembler.plan.planning import make_plan
from hybridize.cli import main
from hybridize.diagnostics.measure import diagnosis
from hybridize.diagnostics.measure.budget import Rate
from hybridize.diagnostics.recommendation.outcome import verdict
from hybridize.diagnostics.recommendation.prior.candidates import worthless
from hybridize.diagnostics.recommendation.prior.placement import Estimate, LayerRun, Placement, Spot
from hybridize.diagnostics.recommendation.trial import assembling, recommending
from hybridize.diagnostics.recommendation.trial.recommending import Candidate, Recommendation
from hybridize.diagnostics.subject.target import Options, with_options
from hybridize.recipe.file import load_recipe
from hybridize.recipe.sections.placement import PlacementSpec
from hybridize.text.comparison import mean_gap
from tests.support.heads import base_alone
from tests.support.readers import save_reader, write_text
from tests.support.stacks import build_in, write_recipe
from tests.support.trained_donors import DEPTH, save_trained

SMALL: dict[str, Any] = {
    "calibration": {"data": ["text.txt"], "tokens": 2048, "length": 64},
    "diagnostics": {"tokens": 2048, "length": 64, "seeds": 2},
}


def recipe(folder: Path, *donors: str, **sections: Any) -> Path:
    write_text(folder)
    return write_recipe(
        folder / "recipe.yaml",
        {"donors": {d: {"model": d} for d in donors}, "placement": {"top": 2}, **SMALL, **sections},
    )


def recommend(file: Path, *options: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["recommend", str(file), "--json", "--offline", *options])
    assert done.exit_code == exit_code, done.stderr
    if not exit_code:  # how long it takes is told before it is spent
        told = done.stderr.splitlines()
        assert re.fullmatch("diagnosing: about .+", told[0])
        assert any(re.fullmatch("assembling 1: .+: about .+", line) for line in told)
        assert any(re.match(r"placement 1: \d\.\d{3} nats per byte", line) for line in told)
    return json.loads(done.stdout)


def chosen(found: Any) -> Any:
    return next(c for c in found["candidates"] if c["label"] == found["chosen"])


@pytest.mark.parametrize(
    ("seed", "damaged"), [(0, (2, 3)), (1, (4, 5)), (2, (1, 4)), (3, (0, 1)), (4, (3,))]
)
def test_damaged_layers_go_shallow_or_out(
    tmp_path: Path, seed: int, damaged: tuple[int, ...]
) -> None:
    """The order of quality is known: one of two copies has noise in some layers."""
    save_trained(tmp_path / "sound")
    save_trained(tmp_path / "hurt", damaged=damaged, seed=seed)
    found = recommend(recipe(tmp_path, "hurt", "sound"))
    best = chosen(found)["runs"]
    spots = [
        (run["from"], n) for run in best for n in range(run["layers"][0], run["layers"][1] + 1)
    ]
    deep = [spot for slot, spot in enumerate(spots) if slot >= DEPTH / 2]
    assert not {("hurt", layer) for layer in damaged} & set(deep)
    quality = {entry["donor"]: entry["quality"]["value"] for entry in found["layers"]}
    assert quality["sound"] > 0 > quality["hurt"]
    flipped = found["candidates"][-1]
    assert flipped["label"] == "flipped"
    losses = [c["fit"]["losses"]["hybrid"]["text"]["per_byte"] for c in (chosen(found), flipped)]
    assert losses[0] < losses[1]


def test_identical_twins_tie(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_trained(tmp_path / name)
    found = recommend(recipe(tmp_path, "one", "two"))
    assert found["tied"] > 1
    assert found["lead"] == 0
    assert {entry["quality"]["value"] for entry in found["layers"]} == {0.0}
    assert any(line.startswith("Tie: ") for line in found["verdict"])


def test_what_is_written_is_a_recipe_that_builds(tmp_path: Path) -> None:
    """From another folder, with every section that the source has."""
    save_trained(tmp_path / "sound")
    save_trained(tmp_path / "hurt", damaged=(2,))
    source = recipe(tmp_path, "hurt", "sound", dtype="bfloat16", name="mine")
    target = tmp_path / "elsewhere" / "placed.yaml"
    found = recommend(source, "--write", str(target))
    assert found["written"] == str(target)
    written = load_recipe(target)
    assert written.recipe.dtype == "bfloat16"
    assert written.recipe.calibration.tokens == 2048  # type: ignore[union-attr]
    assert [s.donor for s in written.recipe.slots] == [r["from"] for r in chosen(found)["runs"]]
    plan = make_plan(written)
    assert len(plan.slots) == DEPTH
    built = build_in(target.parent, yaml.safe_load(target.read_text()))
    assert built.folder.is_dir()
    comments = [line for line in target.read_text().splitlines() if line.strip().startswith("#")]
    assert any("prior" in line for line in comments)
    assert sum("z-scores of these layers" in line for line in comments) >= 1


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    file = recipe(tmp_path, "one", "two")
    done = CliRunner().invoke(main, ["recommend", str(file), "--write", str(file)])
    assert done.exit_code == 2
    assert done.stderr == (
        f"{file}: is there already\n  fix: choose another name, or add --force\n"
    )


def test_a_bridge_into_a_longer_stream_is_no_alarm(tmp_path: Path) -> None:
    """Gemma 3 has a stream 27 times as long as SmolLM2: every way there was rejected."""
    save_trained(tmp_path / "short")
    save_trained(tmp_path / "long", length=30)
    half = [{"from": "short", "layers": "0-2"}, {"from": "long", "layers": "3-5"}]
    found = recommend(
        recipe(
            tmp_path, "short", "long", bridges={"where": "changes"},
            placement={"candidates": half, "depth": 6, "top": 1},
        )
    )  # fmt: skip
    first = found["candidates"][0]
    assert [run["from"] for run in first["runs"]] == ["short", "long"]
    assert first["alarms"] == []
    assert found["chosen"] == "1"


def test_a_layer_that_lengthens_the_stream_more_than_at_home_is_an_alarm() -> None:
    said = "slot 1 makes the stream 20 times as long"
    assert list(assembling._blow_ups([1.2, 20.0, 30.0], [1.1, 1.5, 4.0])) == [said]


def test_strangers_of_other_width_get_bridges_and_a_gate(tmp_path: Path) -> None:
    save_trained(tmp_path / "llama")
    save_reader(tmp_path / "other", "qwen3", hidden_size=48, num_hidden_layers=4)
    sections = {
        "placement": {"depth": 5, "top": 1, "at_least": 1},
        "calibration": {"data": ["text.txt"], "tokens": 3000, "length": 32},
        "diagnostics": {"tokens": 2048, "length": 32, "seeds": 2},
    }
    found = recommend(recipe(tmp_path, "other", "llama", **sections), exit_code=1)
    assert found["ranked"][0]["parts"]["bridge"] < 0
    assert found["ranked"][0]["parts"]["fit"] < 0
    assert found["candidates"][0]["fit"]["bridges"]
    # The second donor has learnt nothing: the score cannot help that, and what is measured says so.
    assert found["chosen"] is None
    assert "no better than a unigram model" in " ".join(found["verdict"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"placement": {"candidates": [{"from": "one", "layers": "0-9"}]}},
            "a placement needs at least two donors",
        ),
        (
            {
                "placement": {
                    "candidates": [
                        {"from": "one", "layers": "0-9"},
                        {"from": "two", "layers": "0-1"},
                    ]
                }
            },
            "donor 'one' has no layer 6: it has 6",
        ),
        ({"placement": {"depth": 2, "at_least": 2}}, "no stack of 2 slots obeys the rules"),
        ({"placement": {"candidates": [{"from": "on", "layers": 0}]}}, "no donor is called 'on'"),
        ({"placement": {"weights": {"qualty": 1}}}, "unknown key 'qualty'"),
    ],
)
def test_what_cannot_be_placed_is_said(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    for name in ("one", "two"):
        save_trained(tmp_path / name)
    done = CliRunner().invoke(main, ["recommend", str(recipe(tmp_path, "one", "two", **sections))])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_layers_that_may_not_be_placed_stand_in_the_control_alone(tmp_path: Path) -> None:
    """The flipped placement obeys the depth, not the list of candidates."""
    save_trained(tmp_path / "sound")
    save_trained(tmp_path / "hurt", damaged=(2,))
    candidates = [{"from": "hurt", "layers": "0-2"}, {"from": "sound", "layers": "1-5"}]
    found = recommend(
        recipe(tmp_path, "hurt", "sound", placement={"candidates": candidates, "top": 1})
    )
    assert {run["from"] for run in found["ranked"][0]["runs"]} == {"hurt", "sound"}
    control = found["candidates"][-1]
    assert (control["label"], control["score"], control["parts"]) == ("flipped", None, {})


def test_text_of_the_command_line_leaves_the_rest_of_the_calibration(tmp_path: Path) -> None:
    file = recipe(tmp_path, "one", "two")
    text = tmp_path / "text.txt"
    options = Options(text=[str(text)])
    found = with_options(load_recipe(file), options).recipe.calibration
    assert found is not None
    assert (found.tokens, found.length) == (2048, 64)
    assert found.data[0].files == [str(text)]


def test_a_score_that_the_measurement_contradicts_is_not_followed(tmp_path: Path) -> None:
    """One stack may be built, with the noise on top; flipped, there is none in it."""
    save_trained(tmp_path / "sound")
    save_trained(tmp_path / "hurt", damaged=(3, 4, 5))
    candidates = [{"from": "sound", "layers": "0-2"}, {"from": "hurt", "layers": "3-5"}]
    placement = {"top": 1, "at_least": 3, "max_bridges": 1, "candidates": candidates}
    file = recipe(tmp_path, "sound", "hurt", placement=placement)
    found = recommend(file, "--write", str(tmp_path / "placed.yaml"), exit_code=1)
    first, control = found["candidates"]
    assert (first["label"], control["label"]) == ("1", "flipped")
    assert (found["chosen"], found["first"], found["written"]) == (None, "1", None)
    assert not (tmp_path / "placed.yaml").exists()
    (why,) = (line for line in found["verdict"] if line.startswith("Nothing is recommended"))
    gap = mean_gap(*(c["fit"]["losses"]["hybrid"] for c in (first, control)))
    assert gap.worse
    assert why == (
        "Nothing is recommended: what was measured contradicts the score. Before training, "
        f"placement 1 is {gap.value:.3f} ± {gap.error:.3f} nats per byte worse than the flipped "
        "placement, mean over the domains."
    )


def outcome(**stretches: list[float]) -> Any:
    """A recommendation whose placements have losses on ten stretches of 100 bytes each."""

    def losses(nats: list[float]) -> dict[str, Any]:
        return {"text": {"per_byte": sum(nats) / 1000, "stretches": nats}}

    alone = {"a": losses([90.0] * 10), "b": losses([95.0] * 10)}
    candidates = []
    for label, nats in stretches.items():
        fit = {
            "bridges": [],
            "losses": {
                "hybrid": losses(nats),
                "donors": alone,
                "unigram": losses([300.0] * 10),
                "null": {},
                "swaps": [],
            },
        }
        measured: Any = SimpleNamespace(fit=fit, alarms=(), boundary=None)
        runs = (LayerRun("a", 0, len(candidates)),)
        candidates.append(Candidate(label.strip("_"), Placement(runs, {}), measured))
    nothing: Any = None
    return Recommendation(
        rules=nothing, scores=nothing, traces=[], ranked=[], candidates=candidates, tied=1,
        lead=math.inf, error=0.0, worthless={Spot("a", 0): Estimate(0.02, 0.003)},
    )  # fmt: skip


BAD = [120.0 + i for i in range(10)]
GOOD = [nats - 10 - i % 3 for i, nats in enumerate(BAD)]
ALIKE = [nats + (-1) ** i for i, nats in enumerate(GOOD)]


def test_a_donor_that_changes_meanwhile_gives_no_recommendation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        save_trained(tmp_path / name)
    real = recommending._Check.best_of

    def meddled(check: Any, ranked: Any) -> list[Candidate]:
        found = real(check, ranked)
        config = tmp_path / "one/config.json"
        config.write_text(config.read_text() + "\n")
        return found

    monkeypatch.setattr(recommending._Check, "best_of", meddled)
    target = tmp_path / "placed.yaml"
    file = str(recipe(tmp_path, "one", "two"))
    done = CliRunner().invoke(main, ["recommend", file, "--write", str(target), "--offline"])
    assert done.exit_code == 2
    assert "config.json: changed while it was in use" in done.stderr
    assert not target.exists()


def test_a_donor_without_a_head_cannot_be_placed(tmp_path: Path) -> None:
    """Its layers are worth what the loss of the donor alone says, and it has none."""
    save_trained(tmp_path / "one")
    base_alone(tmp_path / "base")
    file = str(recipe(tmp_path, "one", "base"))
    done = CliRunner().invoke(main, ["recommend", file, "--offline"])
    assert done.exit_code == 2
    assert "'base' has no output head, and so no loss" in done.stderr


def test_a_budget_chooses_how_much_is_perturbed_in_donors_and_placements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        save_trained(tmp_path / name)
    monkeypatch.setattr(diagnosis, "timed", lambda *_: Rate(1e3, 1e3, 1e3))
    perturbed: list[int] = []
    real = assembling.sweep

    def noted(parts: Any, sheets: Any, *args: Any, **options: Any) -> Any:
        perturbed.append(sum(int(s.lengths.sum()) for s in sheets if s.perturbed))
        return real(parts, sheets, *args, **options)

    monkeypatch.setattr(assembling, "sweep", noted)
    file = recipe(tmp_path, "one", "two", diagnostics={"length": 64})
    done = CliRunner().invoke(main, ["recommend", str(file), "--json", "--offline"])
    assert done.exit_code == 0, done.stderr
    assert "perturbing 320 tokens with 2 seeds: " in done.stderr
    assert "more than the budget of 10 min" in done.stderr
    assert perturbed
    assert all(256 < tokens <= 320 + 64 for tokens in perturbed)  # whole stretches


def test_more_placements_are_tried_while_none_is_sound_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each takes minutes on real models: eight were tried in place of two, without a word."""
    check: Any = object.__new__(recommending._Check)
    check.recipe = SimpleNamespace(recipe=SimpleNamespace(placement=PlacementSpec(top=2)))
    ranked: list[Any] = [SimpleNamespace(sound=i > 2) for i in range(6)]
    check.one = lambda label, placement: placement
    assert check.best_of(ranked) == ranked[:4]
    said = "none of the best 2 is sound: the next are tried, up to the 6th\n"
    assert capsys.readouterr().err == said
    assert check.best_of(ranked[3:]) == ranked[3:5]
    assert capsys.readouterr().err == ""


def test_the_summary_of_a_placement_says_what_speaks_against_it() -> None:
    one = outcome(_1=BAD).candidates[0]
    assert one.summary == "1.245 nats per byte"
    assert one.measured is not None
    alarmed: Any = SimpleNamespace(fit=one.measured.fit, alarms=("a", "b"))
    weak = dataclasses.replace(one, measured=alarmed)
    assert weak.summary == "1.245 nats per byte; rejected: a; b"
    refused = dataclasses.replace(one, measured=None, refused="no such layer")
    assert refused.summary == "cannot be built: no such layer"


def test_the_measurement_overrules_the_score_where_it_is_certain() -> None:
    found = outcome(_1=BAD, _2=GOOD, _3=ALIKE, flipped=BAD)
    assert found.chosen.label == "2"
    said = verdict(found)
    assert said[2:5] == [
        "The measurement overrules the score: before training, placement 1 is 0.109 ± 0.003 nats "
        "per byte worse than placement 2, mean over the domains.",
        "Recommended: placement 2, a 0-1.",
        "It is a start for training, not a better model: as assembled it is 0.236 ± 0.010 nats per "
        "byte worse than a alone on text.",
    ]
    assert said[-3] == (
        "Placement 2 before training, on text: 0.236 ± 0.010 nats per byte worse than a alone; "
        "0.109 ± 0.003 nats per byte better than the flipped placement."
    )
    assert said[-1] == "The recommended placement has some of them all the same: a 0."


def test_the_order_of_the_score_stays_where_the_losses_do_not_differ() -> None:
    assert outcome(_1=ALIKE, _2=GOOD, flipped=GOOD).chosen.label == "1"


def test_nothing_is_recommended_where_the_flipped_placement_is_better() -> None:
    found = outcome(_1=BAD, _2=BAD, flipped=GOOD)
    assert (found.chosen, found.first.label) == (None, "1")
    assert verdict(found)[2].startswith("Nothing is recommended: what was measured contradicts")


def curves(rises: list[float], errors: list[float], num: int) -> Any:
    """As much of a trace as the comparison with linear maps reads."""
    loss = SimpleNamespace(stretches=[1.0] * num, tokens=100, bytes=100)
    curve = SimpleNamespace(loss_rise=rises, loss_error=errors)
    return SimpleNamespace(
        model=SimpleNamespace(name="a"), losses={"text": loss}, curve=lambda kind: curve
    )


def test_layers_are_called_worthless_only_beyond_chance() -> None:
    """Of 40 layers that are worth nothing, some are 2.2 errors below 0 by chance alone."""
    spots = frozenset(Spot("a", layer) for layer in range(40))
    rules: Any = SimpleNamespace(allowed=spots)
    rises = [0.1] * 38 + [-0.022, -0.06]
    assert list(worthless([curves(rises, [0.01] * 40, 100)], rules)) == [Spot("a", 39)]
    few = worthless([curves(rises, [0.01] * 40, 4)], rules)
    assert few == {}  # of four stretches the error itself is uncertain

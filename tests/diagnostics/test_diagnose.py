"""The command `diagnose` as a user meets it: what it writes, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridize.cli import main
from hybridize.diagnostics.subject.trace import Document, read_document
from tests.support.readers import prose, save, save_reader, write_text
from tests.support.stacks import build_in, write_recipe
from tests.support.tiny import tiny_model
from tests.support.trained_donors import DEPTH, save_trained

QUICK = ("--tokens", "1024", "--seeds", "2")


def diagnose(target: Path, folder: Path, *options: str) -> Result:
    text = () if target.suffix == ".yaml" else ("--text", str(folder / write_text(folder)))
    arguments = ["diagnose", str(target), "--out", str(folder / "report"), *text, *options]
    return CliRunner().invoke(main, [*arguments, "--offline"])


def document(folder: Path) -> Document:
    return read_document(folder / "report" / "trace.json")


def test_a_model_gets_a_table_a_trace_and_a_report(tmp_path: Path) -> None:
    save_trained(tmp_path / "donor")
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK)
    assert done.exit_code == 0, done.output[-2000:]
    (trace,) = document(tmp_path).models
    assert [slot.slot for slot in trace.slots] == list(range(DEPTH))
    assert {curve.part for curve in trace.curves} == {"layer", "mixer", "mlp"}
    assert all(0 <= (v or 0) <= 0.6932 for curve in trace.curves for v in curve.mean)
    assert {s.name for s in trace.sets if s.kind == "text"} == {"text"}
    assert len([s for s in trace.sets if s.kind == "task"]) == 6
    assert trace.layer_tokens < trace.naive_layer_tokens
    page = (tmp_path / "report" / "report.html").read_text()
    assert "donor" in page
    assert sorted(f.name for f in (tmp_path / "report").iterdir()) == ["report.html", "trace.json"]


def test_the_same_again_gives_the_same_trace(tmp_path: Path) -> None:
    """In memory, streamed, and in small groups."""
    save_trained(tmp_path / "donor")
    pages = []
    for more in ((), ("--layer-by-layer",), ("--memory", "1MB")):
        assert diagnose(tmp_path / "donor", tmp_path, *QUICK, *more).exit_code == 0
        found = json.loads((tmp_path / "report" / "trace.json").read_text())
        found["models"][0].pop("layer_tokens")
        pages.append(json.dumps(found))
    assert pages[0] == pages[1] == pages[2]


def test_json_is_the_trace(tmp_path: Path) -> None:
    save_reader(tmp_path / "donor")
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK, "--json", "--probes", "copying")
    shown = json.loads(done.stdout)
    assert shown.pop("folder") == str(tmp_path / "report")
    assert Document.model_validate(shown) == document(tmp_path)


def test_a_recipe_is_its_donors_and_its_hybrid(tmp_path: Path) -> None:
    save_reader(tmp_path / "low")
    save_reader(tmp_path / "high", "qwen3", seed=1, hidden_size=48)
    write_text(tmp_path)
    data: dict[str, Any] = {
        "donors": {"low": {"model": "low"}, "high": {"model": "high"}},
        "slots": [{"from": "low", "layers": "0-1"}, {"from": "high", "layers": "2-3"}],
        "calibration": {"data": ["text.txt"], "tokens": 2000, "length": 32},
        "diagnostics": {"tokens": 512, "length": 32, "seeds": 1, "probes": ["copying"]},
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", data)
    alone = diagnose(recipe, tmp_path, "--built", str(tmp_path / "out"))
    assert alone.exit_code == 0, alone.output[-2000:]
    assert "is not there: the donors alone are diagnosed" in alone.stderr
    assert [t.model.name for t in document(tmp_path).models] == ["low", "high"]
    build_in(tmp_path, data)
    both = diagnose(recipe, tmp_path, "--built", str(tmp_path / "out"))
    assert both.exit_code == 0, both.output[-2000:]
    hybrid = document(tmp_path).models[-1]
    assert hybrid.model.hybrid
    assert [(s.donor, s.layer) for s in hybrid.slots] == [
        ("low", 0), ("low", 1), ("high", 2), ("high", 3)
    ]  # fmt: skip
    assert [s.bridge for s in hybrid.slots] == [False, False, True, False]
    assert [s.width for s in hybrid.slots] == [32, 32, 48, 48]
    recipe.write_text(recipe.read_text() + "# another version\n")
    other = diagnose(recipe, tmp_path, "--built", str(tmp_path / "out"))
    assert "was built from another version of this recipe: it is left out" in other.stderr


def test_perturbations_with_a_strength_of_their_own(tmp_path: Path) -> None:
    save_reader(tmp_path / "donor")
    options = ("--perturb", "skip", "--perturb", "noise:0.25", "--part", "layer", *QUICK)
    assert diagnose(tmp_path / "donor", tmp_path, *options).exit_code == 0
    (trace,) = document(tmp_path).models
    assert [(p.kind, p.strength, p.seeds) for p in trace.settings.perturbations] == [
        ("skip", 1.0, 1),
        ("noise", 0.25, 2),
    ]
    assert {curve.part for curve in trace.curves} == {"layer"}


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=288)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    from tests.support.readers import tokenizer

    save(model, tmp_path / "donor", tokenizer([prose()]))
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-2:] == [
        f"{tmp_path / 'donor'}: 'donor': layer 2 gives states that are not finite: its "
        "mlp.up_proj.weight holds numbers that are not finite",
        "  fix: repair or replace the checkpoint; in 16 bits, try a wider dtype",
    ]
    assert not (tmp_path / "report").exists()


def test_a_tokenizer_without_the_characters_reads_no_items(tmp_path: Path) -> None:
    """Words of letters alone: no digits, no signs."""
    known = {word: i for i, word in enumerate(["[UNK]", *sorted(set(prose().split()))][:288])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    reads = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    save(tiny_model("llama", vocab_size=288), tmp_path / "donor", reads)
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK, "--probes", "arithmetic")
    assert done.exit_code == 0, done.output[-2000:]
    asked = document(tmp_path).models[0].sets[-1]
    assert (asked.items, asked.readable, asked.correct) == (48, 0, 0)
    assert asked.particle is None
    assert asked.why == "undecided: the tokenizer has no words for any of the items"


def test_items_that_nobody_answers_decide_nothing(tmp_path: Path) -> None:
    save_reader(tmp_path / "donor")
    file = tmp_path / "hard.jsonl"
    file.write_text("".join(f'{{"prompt": "{i} and", "answer": " zebra"}}\n' for i in range(9)))
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK, "--probes", str(file))
    assert done.exit_code == 0, done.output[-2000:]
    asked = document(tmp_path).models[0].sets[-1]
    assert (asked.readable, asked.correct, asked.chance) == (9, 0, 1.0)
    assert asked.why == "undecided: none of 9 answered correctly"
    assert asked.lenses["logit"].particle is None


@pytest.mark.parametrize(
    ("content", "found"),
    [("", "no items"), ('{"prompt": "a"}\n', "answer"), ("{", "JSON")],
    ids=["empty", "no answer", "no JSON"],
)
def test_a_broken_file_of_probes_is_one_message(tmp_path: Path, content: str, found: str) -> None:
    save_reader(tmp_path / "donor")
    file = tmp_path / "items.jsonl"
    file.write_text(content)
    done = diagnose(tmp_path / "donor", tmp_path, *QUICK, "--probes", str(file))
    assert done.exit_code == 2
    assert str(file) in done.stderr
    assert found in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--probes", "inductoin"), "did you mean 'induction'?"),
        (("--perturb", "nosie"), "did you mean 'noise'?"),
        (("--perturb", "noise:loud"), "'loud' is not a number"),
        (("--perturb", "noise:1", "--perturb", "noise:2"), "perturbation 'noise' stands twice"),
        (("--memory", "much"), "--memory: 'much' is not a size"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--tokens", "100000000"), "is shorter than needed"),
    ],
)
def test_a_wrong_option_is_one_message(
    tmp_path: Path, options: tuple[str, ...], found: str
) -> None:
    save_reader(tmp_path / "donor")
    done = diagnose(tmp_path / "donor", tmp_path, *options)
    assert done.exit_code == 2
    assert found in done.stderr
    assert "Traceback" not in done.output


def test_neither_a_recipe_nor_a_model(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("x")
    done = diagnose(file, tmp_path)
    assert done.exit_code == 2
    assert (
        done.stderr
        == f"{file}: neither a recipe nor a model\n  fix: name a .yaml file or a folder\n"
    )


def test_a_model_without_a_tokenizer_cannot_read(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "donor")
    done = diagnose(tmp_path / "donor", tmp_path)
    assert done.exit_code == 2
    assert "'donor' has no tokenizer files, and cannot read text" in done.stderr


@pytest.mark.gpu
def test_a_gpu_finds_what_the_processor_finds(tmp_path: Path) -> None:
    save_trained(tmp_path / "donor")
    curves = []
    for device in ("cpu", "cuda"):
        assert diagnose(tmp_path / "donor", tmp_path, *QUICK, "--device", device).exit_code == 0
        (trace,) = document(tmp_path).models
        curves.append([value or 0.0 for curve in trace.curves for value in curve.mean])
    assert curves[0] == pytest.approx(curves[1], rel=1e-2, abs=1e-4)

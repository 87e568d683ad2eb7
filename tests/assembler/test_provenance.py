"""What a model says of where it came from: proved, complete, and without a path of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from hybridize.assembler.assembly import assemble
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.merge.merge_file import read_merge_file
from hybridize.assembler.merge.merging import _record
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cli import main
from hybridize.files.yaml_source import parse_yaml
from hybridize.model.checkpoint import read_json
from hybridize.recipe.portable import portable, portable_text
from tests.support.readers import save_reader, write_text
from tests.support.stacks import build_in, write_recipe


def with_paths(folder: Path, name: str, model_type: str = "llama", **overrides: Any) -> Path:
    """A donor whose own files name the machine that it was made on."""
    save_reader(folder / name, model_type, **overrides)
    for file, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        content = json.loads((folder / name / file).read_text())
        (folder / name / file).write_text(json.dumps({**content, key: "/home/somebody/model"}))
    return folder / name


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Everything by its absolute path."""
    text = tmp_path / write_text(tmp_path)
    return {
        "donors": {
            "one": {"model": str(with_paths(tmp_path, "one"))},
            "two": {"model": str(with_paths(tmp_path, "two", seed=1, hidden_size=48))},
        },
        "slots": [{"from": "one", "layers": "0-1"}],
        "calibration": {"data": [str(text)], "tokens": 2000, "length": 32},
    }


def read_all(folder: Path) -> str:
    """Every file of a model but its weights and its vocabulary."""
    files = [f for f in folder.iterdir() if f.suffix in (".json", ".md") and f.stat().st_size]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_no_path_of_the_machine_gets_into_a_model(
    tmp_path: Path, recipe: dict[str, Any], target: str
) -> None:
    if target == "hybrid":
        recipe["slots"].append({"from": "two", "layers": "2-3"})
    built = build_in(tmp_path, recipe)
    assert built.plan.target == target
    written = read_all(built.folder)
    assert str(tmp_path) not in written
    assert "/home/somebody" not in written
    manifest = read_json(built.folder / "hybridize.json")
    assert manifest["donors"]["one"]["source"] == "one"
    assert manifest["donors"]["one"]["folder"] == "../one"
    assert manifest["recipe"]["folder"] == ".."
    assert yaml.safe_load(manifest["recipe"]["text"])["donors"]["one"] == {"model": "one"}
    assert manifest["recipe"]["resolved"]["donors"]["one"]["model"] == "one"
    assert manifest["fit"]["text"]["domains"][0]["source"] == {"files": ["text.txt"]}
    assert "| one | one |" in (built.folder / "README.md").read_text()
    found = verify(built.folder, worker=LocalWorker())
    assert found.ok
    assert "not compared" not in found.table()  # the donors are found all the same


def test_no_path_of_a_merge_file_is_kept(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        with_paths(tmp_path, name, seed=seed)
    models = [{"model": str(tmp_path / name)} for name in ("one", "two")]
    config = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(config))
    record = _record(read_merge_file(file, offline=True))
    assert str(tmp_path) not in json.dumps(record)
    assert [donor["source"] for donor in record["donors"]] == ["one", "two"]


def test_a_native_model_says_that_it_was_proved(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card, its manifest, and what build prints, as JSON too; and how all of it is loaded."""
    monkeypatch.setattr(assemble, "WorkerProcess", LocalWorker)
    file = write_recipe(tmp_path / "recipe.yaml", {**recipe, "calibration": None})
    done = CliRunner().invoke(main, ["build", str(file), "--out", str(tmp_path / "out"), "--json"])
    found = json.loads(done.stdout)
    texts = [
        found["reason"],
        found["plan"]["reason"],
        read_json(tmp_path / "out" / "hybridize.json")["reason"],
        (tmp_path / "out" / "README.md").read_text(),
    ]
    for text in texts:
        assert "every slot is a layer of llama; proved" in text
        assert "to be proved" not in text
    again = CliRunner().invoke(
        main, ["build", str(file), "--out", str(tmp_path / "out"), "--force"]
    )
    lines = again.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  load it: "))
    out = tmp_path / "out"
    assert lines[at : at + 2] == [
        f'  load it: AutoModelForCausalLM.from_pretrained("{out}")',
        f'           AutoTokenizer.from_pretrained("{out}")',
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: /data/x # of /data/x, not /data/xy\n", "a: ../data/x # of ../data/x, not /data/xy\n"),
        ('a: ["/data/x", /data/x/y]\n', 'a: ["../data/x", ../data/x/y]\n'),
        ("a: here/x\nb: https://a/data/x\n", "a: here/x\nb: https://a/data/x\n"),
        ('a: "/d\\u0061ta/x"\n', "a: ../data/x\n"),
        ("a: org/name\n", "a: org/name\n"),
    ],
)
def test_absolute_paths_of_a_text_become_relative(text: str, wanted: str) -> None:
    assert portable_text(parse_yaml(text, Path("/recipes/r.yaml"))) == wanted


def test_a_home_folder_is_a_path_too() -> None:
    home = os.path.relpath(Path("~/x").expanduser(), "/recipes")
    assert portable({"a": ["~/x", 3, None]}, Path("/recipes")) == {"a": [home, 3, None]}

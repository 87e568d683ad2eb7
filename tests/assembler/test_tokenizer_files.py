"""All that belongs to a tokenizer comes along, whatever kind it is, and no reference dangles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.model.tokenizer_files import tokenizer_code, tokenizer_files
from tests.support.stacks import build_in, plan_of, save_donor
from tests.support.tokenizers import write_tokenizer

ONE = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "0-3"}]}
CODE = {"AutoTokenizer": ["tokenization_own.Own", None]}


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "vocab.json",
        "sentencepiece.bpe.model", "tiktoken.model", "qwen.tiktoken", "tekken.json", "vocab.txt",
    ],
)  # fmt: skip
def test_each_kind_of_vocabulary_makes_a_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_files(tmp_path) == []
    (tmp_path / name).write_text("")
    assert {file.name for file in tokenizer_files(tmp_path)} == {name, "tokenizer_config.json"}


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_templates_and_code_come_along(tmp_path: Path, target: str) -> None:
    save_donor(tmp_path / "a", "olmo2", vocab_size=512)
    write_tokenizer(tmp_path / "a", tokenizer_class="GPT2Tokenizer", auto_map=CODE)
    files = {
        "tokenization_own.py": "from .pieces import cut\nraise SystemExit('run')\n",
        "pieces.py": "import os\ncut = None\n",
        "modeling_own.py": "# of the model, not of the tokenizer\n",
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    }
    for name, content in files.items():
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text(content)
    assert (
        "the tokenizer of 'a' has code of its own, copied and never run: tokenization_own.py, "
        "pieces.py"
    ) in plan_of(tmp_path, ONE).notes
    out = build_in(tmp_path, ONE | {"target": target}).folder
    for name, content in files.items():
        assert name == "modeling_own.py" or (out / name).read_text() == content
    assert not (out / "modeling_own.py").exists()
    assert json.loads((out / "tokenizer_config.json").read_text())["auto_map"] == CODE
    assert verify(out, load="structure", worker=LocalWorker()).ok
    (out / "additional_chat_templates/tool_use.jinja").write_text("{{ other }}")
    assert not verify(out, load="none").ok


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_a_reference_to_code_that_is_not_there_is_left_out(tmp_path: Path, target: str) -> None:
    """The hub's downloads without code leave such folders; a loader would look for it in vain."""
    save_donor(tmp_path / "a", "olmo2", vocab_size=512)
    config = json.loads((tmp_path / "a/config.json").read_text())
    of_model = {"AutoConfig": "configuration_own.Own"}
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"auto_map": of_model}))
    write_tokenizer(tmp_path / "a", tokenizer_class="GPT2Tokenizer", auto_map=CODE)
    (tmp_path / "a/tokenization_own.py").write_text("from .pieces import cut\n")
    assert (
        "the tokenizer of 'a' has code of its own, and pieces.py is not there: the reference to it "
        "is left out"
    ) in plan_of(tmp_path, ONE).notes
    out = build_in(tmp_path, ONE | {"target": target}).folder
    assert "auto_map" not in json.loads((out / "tokenizer_config.json").read_text())
    assert not (out / "tokenization_own.py").exists()
    named = json.loads((out / "config.json").read_text()).get("auto_map", {})
    assert all((out / f"{name.split('.')[0]}.py").is_file() for name in named.values())


def test_a_tokenizer_that_only_its_code_can_read_is_copied_and_said(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "llama", vocab_size=512)
    (tmp_path / "a/own.tiktoken").write_text("aGk= 0\n")
    (tmp_path / "a/tokenization_own.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "a/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": CODE})
    )
    built = build_in(tmp_path, ONE | {"target": "hybrid"}, check="structure")
    assert any(c.startswith("the tokenizer is copied and not checked: ") for c in built.checks)
    for name in ("own.tiktoken", "tokenization_own.py", "tokenizer_config.json"):
        assert (built.folder / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert verify(built.folder, load="structure", worker=LocalWorker()).ok


@pytest.mark.parametrize(
    ("auto_map", "found", "missing"),
    [
        ({"AutoTokenizer": "own.Own"}, ["own.py"], []),
        (["own.Own", None], ["own.py"], []),
        ({"AutoTokenizer": [None, "own.Fast"]}, ["own.py"], []),
        ({"AutoTokenizer": "org/name--own.Own"}, [], []),
        ({"AutoTokenizer": "../own.Own"}, [], ["../own.py"]),
        ({"AutoConfig": "other.Own"}, [], []),
        ({"AutoTokenizer": 7}, [], []),
        (7, [], []),
    ],
)
def test_auto_maps(tmp_path: Path, auto_map: Any, found: list[str], missing: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "own.py", tmp_path / "folder/own.py"):
        file.write_text("from .own import Own\n")
    (tmp_path / "folder/tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    code, absent = tokenizer_code(tmp_path / "folder")
    assert ([file.name for file in code], absent) == (found, missing)

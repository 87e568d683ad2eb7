"""A model ends where its tokenizer says, in every file that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from hybridize.model.special_tokens import agreed
from tests.support.stacks import UNFITTED, build_in, load, plan_of, save_donor
from tests.support.tokenizers import splitting

ROWS = 512


def make_donor(
    folder: Path, *, end: str, generation: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A llama whose tokenizer has `<|end|>` (0), `<|im_end|>` (500) and `[PAD]` (501)."""
    save_donor(folder, "llama", vocab_size=ROWS, **config)
    document = json.loads(splitting())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] += [
        {"id": i, "content": text, "special": True, **flags}
        for i, text in ((500, "<|im_end|>"), (501, "[PAD]"))
    ]
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"[{i}]": i for i in range(len(vocabulary), 500)}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


TWO = {
    "donors": {"base": {"model": "base"}, "chat": {"model": "chat"}},
    "slots": [{"from": "base", "layers": "0-1"}, {"from": "chat", "layers": "2-3"}],
    "embeddings": "base",
    "head": "base",
    "tokenizer": "chat",
    "bridges": UNFITTED,
}


@pytest.mark.parametrize("target", ["native", "hybrid"])
@pytest.mark.parametrize("generation", [None, {"eos_token_id": [500, 0], "temperature": 0.5}])
def test_the_result_ends_where_the_chosen_tokenizer_does(
    tmp_path: Path, target: str, generation: dict[str, Any] | None
) -> None:
    """A chat model that goes on after <|im_end|> writes both sides of the conversation."""
    make_donor(tmp_path / "base", end="<|end|>", generation={"eos_token_id": 0}, eos_token_id=0)
    make_donor(tmp_path / "chat", end="<|im_end|>", generation=generation, eos_token_id=500)
    out = build_in(tmp_path, TWO | {"target": target}).folder
    wanted = generation["eos_token_id"] if generation else 500
    assert load(out).config.eos_token_id == 500
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 500
    assert GenerationConfig.from_pretrained(out).eos_token_id == wanted
    assert load(out).generation_config.eos_token_id == wanted
    if generation:  # it agrees, so that not a byte of it is another
        name = "generation_config.json"
        assert (out / name).read_bytes() == (tmp_path / "chat" / name).read_bytes()


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_a_donor_whose_files_disagree_is_named_and_mended(tmp_path: Path, target: str) -> None:
    make_donor(
        tmp_path / "base", end="<|im_end|>", generation={"eos_token_id": [2]}, eos_token_id=0
    )
    recipe = {
        "donors": {"base": {"model": "base"}},
        "slots": [{"from": "base", "layers": "0-3"}],
        "target": target,
    }
    note = (
        "donor 'base': EOS is 500 in its tokenizer, 0 in config.json, [2] in "
        "generation_config.json: the result ends where any of them says"
    )
    assert note in plan_of(tmp_path, recipe).notes
    out = build_in(tmp_path, recipe).folder
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [500, 0]
    assert GenerationConfig.from_pretrained(out).eos_token_id == [500, 2]


def test_donors_that_agree_go_without_a_note(tmp_path: Path) -> None:
    ends = [500, 0]
    generation = {"eos_token_id": ends}
    make_donor(tmp_path / "base", end="<|im_end|>", generation=generation, eos_token_id=500)
    recipe = {
        "donors": {"base": {"model": "base"}},
        "slots": [{"from": "base", "layers": "0-3"}],
    }
    assert not [note for note in plan_of(tmp_path, recipe).notes if "config.json" in note]


@pytest.mark.parametrize(
    ("stated", "tokenizer", "expected"),
    [
        ({}, {}, {}),
        ({"eos_token_id": 2}, {"eos_token_id": None}, {"eos_token_id": 2}),
        ({"eos_token_id": 2}, {"eos_token_id": 2}, {"eos_token_id": 2}),
        ({"eos_token_id": [1, 106]}, {"eos_token_id": 1}, {"eos_token_id": [1, 106]}),
        ({"eos_token_id": [1, 106]}, {"eos_token_id": 5}, {"eos_token_id": [5, 1, 106]}),
        ({}, {"eos_token_id": 5, "bos_token_id": 1}, {"eos_token_id": 5, "bos_token_id": 1}),
        ({"bos_token_id": 1}, {"bos_token_id": 0}, {"bos_token_id": 0}),
        # A token that was added without a row for it, as many fine-tunes have their padding.
        ({"pad_token_id": 2}, {"pad_token_id": 8}, {"pad_token_id": 2}),
        ({}, {"eos_token_id": 8}, {}),
    ],
)
def test_ids_are_brought_in_line(
    stated: dict[str, Any], tokenizer: dict[str, Any], expected: dict[str, Any]
) -> None:
    rows = 8 if any(n == 8 for n in tokenizer.values()) else 512
    assert agreed(stated, tokenizer, rows) == expected

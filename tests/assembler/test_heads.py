"""Tied, untied, or without a head: what a donor has is what `from_pretrained` makes of it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from hybridize.architectures.refused import refusal
from hybridize.assembler.assembly.fit_report import fit_table
from hybridize.cpt.plan.model_tensors import read_model_tensors
from hybridize.diagnostics.subject.subjects import check_heads, model_subject, recipe_subjects
from hybridize.errors import HybridizeError
from hybridize.model.donors import load_donor
from hybridize.recipe.file import load_recipe
from hybridize.torch_model.loading import Weights, load_folder
from tests.support.heads import base_alone
from tests.support.readers import save_reader, write_text
from tests.support.stacks import build_in, load, plan_of, save_donor, write_recipe
from tests.support.tiny import all_causal_types, tiny_config, tiny_model

SOME = ("llama", "gemma2", "qwen2", "gpt2", "mamba2", "kimi_linear", "lfm2", "phi", "opt")
ACCEPTED = [name for name in all_causal_types() if refusal(name) is None]
KEYS = ("absent", True, False)
HEADS = ("absent", "equal", "different")


@pytest.mark.parametrize(
    "model_type",
    [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in ACCEPTED if n not in SOME)],
)
def test_heads_are_those_of_from_pretrained(model_type: str, tmp_path: Path) -> None:
    """Of nine files of each type, with the key absent, true or false and the head absent, equal
    to the embedding, or different."""
    model = tiny_model(model_type, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    saved, file = load_file(tmp_path / "model.safetensors"), tmp_path / "config.json"
    anatomy = load_donor(tmp_path, name="a", source="a", place="a").anatomy
    saved[anatomy.embedding.name][0] = 0  # a padding row: some classes set it to zero at load
    (head,) = (t.name for t in anatomy.head if len(t.shape) == 2)
    config = json.loads(file.read_text())
    keys = [key for key in KEYS if (model_type, key) != ("dbrx", True)]  # which its class refuses
    for key, matrix in product(keys, HEADS):
        says = {} if key == "absent" else {"tie_word_embeddings": key}
        rest = {k: v for k, v in config.items() if k != "tie_word_embeddings"}
        file.write_text(json.dumps(rest | says))
        state = dict(saved)
        if matrix == "absent":
            del state[head]
        elif matrix == "equal":
            state[head] = saved[anatomy.embedding.name].clone()
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        donor = load_donor(tmp_path, name="a", source="a", place="a")
        theirs, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)].from_pretrained(
            tmp_path, output_loading_info=True
        )
        output, place = theirs.get_output_embeddings().weight, (key, matrix)
        name = next(n for n, p in theirs.named_parameters(remove_duplicate=False) if p is output)
        random = any(n.endswith("weight") and n in (name, head) for n in info["missing_keys"])
        assert donor.has_head is not random, place
        assert donor.tied is (output is theirs.get_input_embeddings().weight), place


def test_what_has_no_head_is_neither_diagnosed_nor_trained(tmp_path: Path) -> None:
    """Its loss would be that of a head which nobody trained."""
    folder = base_alone(tmp_path / "base")
    for ask in (
        lambda: check_heads([model_subject(str(folder), offline=True)]),
        lambda: load_folder(folder),
        lambda: read_model_tensors(folder),
    ):
        with pytest.raises(HybridizeError, match="'base' has no output head, and so no loss"):
            ask()


def test_a_recipes_other_donors_are_diagnosed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_alone(tmp_path / "base")
    save_reader(tmp_path / "whole", "llama", seed=1)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        {
            "donors": {"base": {"model": "base"}, "whole": {"model": "whole"}},
            "slots": [{"from": "base", "layer": 0}, {"from": "whole", "layer": 1}],
        },
    )
    found = recipe_subjects(load_recipe(recipe), built=tmp_path / "none", offline=True)
    assert [subject.name for subject in found] == ["whole"]
    assert "'base' has no output head, and so no loss: it is left out" in capsys.readouterr().err


def test_a_donor_without_a_head_gives_layers_and_is_no_control(tmp_path: Path) -> None:
    """Its states are read for the fit; a loss of it alone is not shown."""
    base_alone(tmp_path / "base", hidden_size=48)
    save_reader(tmp_path / "whole", "llama", seed=1)
    recipe = {
        "donors": {"base": {"model": "base"}, "whole": {"model": "whole"}},
        "embeddings": "whole",
        "head": "whole",
        "slots": [{"from": "whole", "layer": 0}, {"from": "base", "layers": "0-1"}],
        "calibration": {"data": [write_text(tmp_path)], "tokens": 2000, "length": 32},
    }
    plan = plan_of(tmp_path, recipe)
    assert "donor 'base' has no output head: alone, it has no loss" in plan.notes
    built = build_in(tmp_path, recipe)
    assert built.fit is not None
    assert list(built.fit["losses"]["donors"]) == ["whole"]
    fit_table(built.fit)
    ours, theirs = load(built.folder), load(tmp_path / "base")
    for mine, other in zip(ours.model.layers[1].parameters(), theirs.model.layers[0].parameters(),
                           strict=True):  # fmt: skip
        assert torch.equal(mine, other)


def test_the_states_of_a_donor_without_a_head_can_be_read(tmp_path: Path) -> None:
    """Phi's head has a bias, which is not there either."""
    model = tiny_model("phi")
    model.model.save_pretrained(tmp_path)
    donor = load_donor(tmp_path, name="a", source="a", place="a")
    assert not donor.has_head
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours = Weights({"a": donor}).alone("a")(ids, output_hidden_states=True)
        theirs = model(ids, output_hidden_states=True)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(mine, other)


def test_a_tied_key_with_another_head_keeps_both(tmp_path: Path) -> None:
    """transformers ties only what is equal: so does whatever opens a folder."""
    save_donor(tmp_path / "a", "llama")
    file = tmp_path / "a/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours = load_folder(tmp_path / "a").model(ids).logits
        assert torch.equal(ours, load(tmp_path / "a")(ids).logits)
    stack = read_model_tensors(tmp_path / "a")
    assert not stack.tied
    assert "lm_head.weight" in stack.by_name


def test_tiny_configs_say_what_they_mean() -> None:
    """The sweep above is about models whose own default differs."""
    assert not tiny_config("llama").tie_word_embeddings
    assert tiny_config("gemma2").tie_word_embeddings

"""Donors and recipes on disk for the tests of the assembler."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridize.assembler.assembly.assemble import Built, build
from hybridize.assembler.plan.planning import Plan, make_plan
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.recipe.file import load_recipe
from tests.support.tiny import tiny_model

#: For tests of something else: a bridge where the width changes, and no text that it is fitted to.
UNFITTED: dict[str, Any] = {"where": "width-changes", "init": "random", "bias": False}


def save_donor(folder: Path, model_type: str, *, seed: int = 0, **overrides: Any) -> Path:
    """A tiny donor under `folder`, saved as transformers saves it."""
    model = tiny_model(model_type, seed=seed, **overrides)
    model.save_pretrained(folder)
    return folder


def write_recipe(file: Path, recipe: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def plan_of(folder: Path, recipe: dict[str, Any]) -> Plan:
    return make_plan(load_recipe(write_recipe(folder / "recipe.yaml", recipe)))


def build_in(folder: Path, recipe: dict[str, Any], out: str = "out", **options: Any) -> Built:
    """Build in this process, which has torch already; donors are named relative to `folder`."""
    return build(plan_of(folder, recipe), folder / out, worker=LocalWorker(), **options)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for parameter in model.parameters():
        # Some processors' kernels round by where a tensor lies, and a mapped file lies anywhere.
        parameter.data = parameter.data.clone()
    return model.eval()


@cache
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a batch of two; the first row is padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return ids, mask


@torch.no_grad()
def assert_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Logits bit for bit: plain, left-padded, and of cached greedy generation."""
    ids, mask = tokens()
    assert torch.equal(one(ids).logits, other(ids).logits)
    padded = [model(ids, attention_mask=mask).logits for model in (one, other)]
    assert torch.equal(padded[0], padded[1])
    mine, theirs = (generate(model) for model in (one, other))
    assert torch.equal(mine.sequences, theirs.sequences)
    for a, b in zip(mine.logits, theirs.logits, strict=True):
        assert torch.equal(a, b)


def generate(model: PreTrainedModel, **options: Any) -> Any:
    ids, mask = tokens()
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )

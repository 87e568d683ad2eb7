"""Dropout: none of the donors', and that of the recipe is the same however a training is run.

A donor's config may ask for dropout in layers that are frozen: then no two passes would agree.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridize.cpt.train.dropout import Dropout
from hybridize.cpt.train.forward import Forward, checkpoint_slots
from tests.support.forwards import gradients, of_transformers, opened, rows
from tests.support.processes import done, start
from tests.support.stacks import load, save_donor
from tests.support.tiny import FAMILIES, tiny_config, tiny_model
from tests.support.trainings import broken_off, changed, ended, lines, prepare, train

ALONE = {"opt", "bloom", "phimoe", "falcon", "xglm"}  # with other kinds of draws: dropped layers
SHARE = {"dropout": 0.3, "tokens": 6 * 4 * 32, "save_every": 2, "evaluate_every": 3}


def noisy(model_type: str) -> dict[str, float]:
    """All that a config leaves out or jitters by chance, at a half."""
    fields = tiny_config(model_type).to_dict()
    wanted = re.compile("drop|jitter")
    return {
        name: 0.5
        for name, value in fields.items()
        if wanted.search(name) and type(value) in (int, float)
    }


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in {"llama", "gpt2", "opt"} else [pytest.mark.slow])
        for name in sorted({*FAMILIES, *ALONE})
    ],
)
def test_what_donors_configs_draw_is_off(tmp_path: Path, model_type: str) -> None:
    """Loss and gradients are those of transformers in evaluation, in a model that is trained."""
    save_donor(tmp_path, model_type, **noisy(model_type))
    tuned, forward = opened(tmp_path, "full")
    tuned.model.train()
    loss, _ = of_transformers(load(tmp_path))
    assert forward(*rows())["loss"].item() == pytest.approx(loss, rel=1e-5)
    one, other = gradients(tuned, forward), gradients(tuned, forward)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_transformers_own_draws_would_show() -> None:
    model = tiny_model("gpt2", **noisy("gpt2"))
    quiet, _ = of_transformers(model)
    loud, _ = of_transformers(model.train())
    assert abs(loud / quiet - 1) > 0.01


# ---- What the recipe asks for ------------------------------------------------------------------


def test_a_draw_depends_on_row_and_slot_alone() -> None:
    dropout = Dropout(0.25, {1}, seed=3, length=400)
    given, gave = torch.zeros(3, 400, 32), torch.ones(3, 400, 32)
    found = dropout(given, gave, torch.tensor([5, 6, 7]), 1)
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(found[found != 0], torch.full_like(found[found != 0], 4 / 3))
    alone = dropout(given[:1, :9], gave[:1, :9], torch.tensor([6]), 1)
    assert torch.equal(alone[0], found[1, :9])
    others = [dropout(given[:1], gave[:1], torch.tensor([n]), slot) for n, slot in ((5, 2), (8, 1))]
    others.append(Dropout(0.25, {1}, seed=4, length=400)(given[:1], gave[:1], torch.tensor([5]), 1))
    assert not any(torch.equal(other[0], found[0]) for other in others)


def test_slots_that_learn_are_disturbed_and_no_others(tmp_path: Path) -> None:
    save_donor(tmp_path, "llama")
    tuned, _ = opened(tmp_path, {"deep": 1})
    numbers = torch.tensor([0, 1])
    quiet = Forward(tuned)(*rows())["nats"]
    for slots, same in (({3}, False), (set(), True)):
        forward = Forward(tuned, dropout=Dropout(0.5, slots, seed=0, length=12))
        assert torch.equal(forward(*rows(), rows=numbers)["nats"], quiet) is same
        assert torch.equal(forward(*rows())["nats"], quiet)  # evaluation draws nothing
    forward = Forward(tuned, dropout=Dropout(0.5, {3}, seed=0, length=12))
    plain = gradients(tuned, forward, rows=numbers)
    checkpoint_slots(tuned.model, 3)
    again = gradients(tuned, forward, rows=numbers)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a training with dropout, and what it told of itself."""
    recipe = prepare(tmp_path_factory.mktemp("dropout"), train=["bridges", {"deep": 1}], **SHARE)
    ended(recipe, "plain")
    return recipe


def assert_same_as_plain(recipe: Path, out: str) -> None:
    for one, other in zip(lines(recipe.parent / "plain"), lines(recipe.parent / out), strict=True):
        for key in one.keys() - {"tokens_per_second"}:
            assert one[key] == pytest.approx(other[key], abs=1e-4), key


@pytest.mark.parametrize(
    "how", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"cache_prefix": True}]
)
def test_dropout_is_the_same_in_other_batches(noisy_run: Path, how: dict[str, Any]) -> None:
    out = "-".join(how)
    ended(changed(noisy_run, **how), f"{out}{how.get('micro_batch_size')}")
    assert_same_as_plain(noisy_run, f"{out}{how.get('micro_batch_size')}")


def test_dropout_is_the_same_after_a_kill(noisy_run: Path) -> None:
    broken_off(noisy_run, "killed")
    assert train(noisy_run, "killed", "--resume").exit_code == 0
    assert_same_as_plain(noisy_run, "killed")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_dropout_is_the_same_in_several_processes(noisy_run: Path, engine: str) -> None:
    done(start(noisy_run, engine, "--processes", "2", "--engine", engine))
    assert_same_as_plain(noisy_run, engine)


def test_dropout_shows(noisy_run: Path) -> None:
    ended(changed(noisy_run, dropout=0.0), "quiet")
    quiet, noisy = (lines(noisy_run.parent / out)[0]["loss"] for out in ("quiet", "plain"))
    assert abs(quiet - noisy) > 1e-3


def test_dropout_wants_a_slot_that_learns(noisy_run: Path) -> None:
    found = train(changed(noisy_run, train=["bridges"]), "wrong")
    assert found.exit_code == 2
    assert "dropout is for slots that learn, and none does" in found.stderr

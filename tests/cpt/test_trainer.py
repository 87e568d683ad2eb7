"""What is overridden of transformers' Trainer is what it was when that was written."""

from __future__ import annotations

import ast
import hashlib
import inspect

import pytest
import transformers
from transformers import Trainer

from hybridize.cpt.train.trainer import CHECKED, CptTrainer
from tests.support.arrows import ROOT, modules


@pytest.mark.parametrize("name", sorted(CHECKED))
def test_transformers_has_not_changed_what_is_overridden(name: str) -> None:
    source = inspect.getsource(getattr(Trainer, name))
    now = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert now == CHECKED[name], (
        f"transformers {transformers.__version__} has another Trainer.{name} than the one that "
        f"cpt/train/trainer.py overrides: read what changed, mend the override if need be, and "
        f"note {now} in CHECKED"
    )


def test_every_override_is_noted() -> None:
    overridden = {n for n in vars(CptTrainer) if n in vars(Trainer) and not n.startswith("__")}
    assert overridden == set(CHECKED)


def test_no_other_module_knows_the_trainer() -> None:
    """Its events (TrainerCallback) and its arguments are public."""
    users = {
        str(module)
        for module in modules()
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "transformers"
        for alias in node.names
        if alias.name == "Trainer"
    }
    assert users == {"cpt/train/trainer.py"}

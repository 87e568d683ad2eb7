"""transformers' Trainer with checkpoints that are whole or not there (torch side).

A checkpoint holds the tensors that learn, the optimizer's state, the generators' states, and a
manifest with the hash of each file and of all that decides the training. It is written under
another name and then renamed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hybridize.cpt.blocks import Blocks
from hybridize.cpt.tuning import rows_of, trained_state
from hybridize.errors import CheckFailed

TRAINED, MANIFEST = "trained.safetensors", "checkpoint.json"
KEPT = 2  # newest checkpoints that stay


class Rows(Dataset[dict[str, Any]]):
    """Rows of several sources in the order of a training."""

    def __init__(
        self, sources: Sequence[Blocks], order: Sequence[tuple[int, int]], *, packed: bool
    ) -> None:
        self.sources, self.order, self.packed = sources, order, packed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self.order[index]
        found = rows_of(self.sources[source], [row], packed=self.packed)
        return {name: value[0] for name, value in found.items()}


class WholeCheckpoints(Trainer):
    """Goes through its rows in their order, and writes checkpoints that are whole.

    Args:
        key: of all that decides the training; a checkpoint of another one is not taken up.
        rates: role -> learning rate; `roles`: name of a tensor that learns -> its role.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        rows: Rows,
        *,
        key: str,
        roles: Mapping[str, str],
        rates: Mapping[str, float],
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))
        self.key, self.roles, self.rates = key, roles, rates
        self._staged: str | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a rate for each role; gains and biases do not decay."""
        if self.optimizer is None:
            groups: dict[tuple[str, bool], list[Any]] = {}
            tuned: Any = model or self.model
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((self.roles[name], parameter.ndim > 1), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": self.rates.get(role, self.args.learning_rate),
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (role, decays), parameters in groups.items()
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def _get_output_dir(self, trial: Any) -> str:
        return self._staged or str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        out = Path(str(self.args.output_dir))
        staged = out / f".{name}"
        shutil.rmtree(staged, ignore_errors=True)
        self._staged = str(staged)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = None
        _write_manifest(staged / name, self.key)
        shutil.rmtree(out / name, ignore_errors=True)
        (staged / name).rename(out / name)
        staged.rmdir()
        for old in _checkpoints(out)[KEPT:]:
            shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tuned: Any = self.model
        tensors = {name: value.cpu().contiguous() for name, value in trained_state(tuned)}
        broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
        if broken:
            raise CheckFailed(
                f"{broken[0]} holds numbers that are not finite at step {self.state.global_step}",
                fix="lower the learning rate; the last checkpoint is from before",
                place=str(self.args.output_dir),
            )
        save_file(tensors, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / TRAINED)


def load_trained(model: Any, file: Path) -> None:
    """Put saved tensors in the place of a model's own."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(file).items():
            parameters[name].copy_(value)


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = (p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit())
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def _write_manifest(folder: Path, key: str) -> None:
    files = {file.name: _hash(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"key": key, "files": files}, indent=1))


def newest_whole(folder: Path, key: str) -> Path | None:
    """The newest checkpoint of which every file is what its manifest says; None: there is none.

    Raises:
        CheckFailed: it is of another training: other text, another policy, other settings.
    """
    for candidate in _checkpoints(folder):
        try:
            manifest = json.loads((candidate / MANIFEST).read_text())
            whole = all(_hash(candidate / n) == h for n, h in manifest["files"].items())
        except (OSError, ValueError, KeyError):
            continue
        if whole:
            if manifest["key"] != key:
                raise other_training(candidate)
            return candidate
    return None


def other_training(place: Path) -> CheckFailed:
    """What is there cannot be gone on with."""
    return CheckFailed(
        "this checkpoint is of another training: model, policy, text or settings differ",
        fix="train into another folder, or begin anew with --force",
        place=str(place),
    )


def _hash(file: Path) -> str:
    return blake3(file.read_bytes()).hexdigest()


class Watch(TrainerCallback):
    """Stops what goes wrong, and tells of each step.

    Args:
        tell: called with the number of steps done, and the loss of the last.
    """

    def __init__(self, tell: Callable[[int, float | None], None]) -> None:
        self.tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A loss that is no number ends the training at once."""
        loss = (logs or {}).get("loss")
        if loss is not None:
            if not math.isfinite(float(loss)):
                raise CheckFailed(
                    f"the loss is {loss} at step {state.global_step}",
                    fix="lower the learning rate; the last checkpoint is from before",
                    place=str(args.output_dir),
                )
            self.tell(int(state.global_step), float(loss))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """In the first step, every tensor that learns has a gradient."""
        if state.global_step == 0:
            without = [
                name
                for name, parameter in given["model"].named_parameters()
                if parameter.requires_grad and parameter.grad is None
            ]
            if without:
                raise CheckFailed(
                    f"{len(without)} tensors that are to learn get no gradient, {without[0]} among "
                    "them",
                    fix="leave them out of the policy: nothing that is trained depends on them",
                )

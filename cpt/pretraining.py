"""From a built model to a trained one: text, stages, checks, export (torch side)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import save_file
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hybridize.assembler.fingerprints import file_hash
from hybridize.assembler.staging import MANIFEST
from hybridize.assembler.windows import Reader
from hybridize.checkpoint import read_json
from hybridize.console import say
from hybridize.cpt.blocks import digest, mixture
from hybridize.cpt.export import export
from hybridize.cpt.stack import Stack
from hybridize.cpt.stages import Stage, plan_stages
from hybridize.cpt.text import Source, gather_sources
from hybridize.cpt.trainer import (
    Rows,
    Watch,
    WholeCheckpoints,
    load_trained,
    newest_whole,
    other_training,
)
from hybridize.cpt.tuning import (
    apply,
    check_frozen,
    frozen_hashes,
    isolates,
    loss,
    open_model,
    round_as_stored,
)
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.recipe import RecipeFile
from hybridize.recipe_sections import CptSpec

SCHEDULES = {
    "cosine": "cosine",
    "wsd": "warmup_stable_decay",
    "constant": "constant_with_warmup",
}
HALF = (torch.bfloat16, torch.float16)
DECAY = 0.1  # share of a stage's steps in which wsd decays
DONE, START = "done.safetensors", "start.json"
MARK, KEY = "hybridize-training", "key.txt"  # what says that a folder is ours, and of what training

Tell = Callable[[int, int, float | None], None]  # steps done, in all, and the last loss


@dataclass(frozen=True)
class Trained:
    """A training that has come to its end."""

    folder: Path
    record: dict[str, Any]


def train(
    recipe: RecipeFile,
    stack: Stack,
    out: Path,
    *,
    device: str,
    resume: bool,
    force: bool,
    offline: bool,
    tell: Tell,
) -> Trained:
    """Train a built model as its recipe says, and write the result as a model folder.

    Args:
        resume: go on with a training that was broken off; `force`: begin it anew.

    Raises:
        HybridizeError: text cannot be read, the target is in the way.
        CheckFailed: a loss that is no number, a tensor without a gradient, a frozen one that
            changed, or a checkpoint of another training.
    """
    stages = plan_stages(recipe, stack)
    work = out.with_name(f"{out.name}.work")
    if resume and (record := _finished(out, work)) is not None:
        shutil.rmtree(work)
        return Trained(out, record)
    resumed = _prepare(out, work, resume=resume, force=force)
    try:
        session = _Session(
            recipe, stack, stages, work, device=device, resumed=resumed, offline=offline
        )
    except HybridizeError:
        if not resumed:  # nothing has been trained yet
            shutil.rmtree(work)
        raise
    session.run(tell)
    record = session.finish()
    record["unmoved"] = export(stack.folder, out, session.learnt, record, staged=work / "export")
    shutil.rmtree(work)
    return Trained(out, record)


def _finished(out: Path, work: Path) -> dict[str, Any] | None:
    """The record of a training that was killed after its result appeared; None: it was not."""
    if not ((out / MANIFEST).is_file() and (work / KEY).is_file()):
        return None
    records = read_json(out / MANIFEST).get("training") or [{"base": {}}]
    same = records[-1]["base"].get("key") == (work / KEY).read_text()
    return dict(records[-1]) if same else None


def _prepare(out: Path, work: Path, *, resume: bool, force: bool) -> bool:
    """The working folder; whether there is a training in it to go on with."""
    if out.exists():
        raise HybridizeError("is there already", fix="choose another --out", place=str(out))
    if resume and force:
        raise HybridizeError("to go on and to begin anew exclude each other", fix="choose one")
    if work.exists() and force:
        if not (work / MARK).is_file():
            raise HybridizeError(
                "is in the way, and is no training of hybridize",
                fix="move it elsewhere",
                place=str(work),
            )
        shutil.rmtree(work)
    if work.exists() and not resume:
        raise HybridizeError(
            "a training was broken off here",
            fix="add --resume to go on with it, or --force to begin anew",
            place=str(work),
        )
    found = work.exists()
    if resume and not found:
        raise HybridizeError(
            "there is no training to go on with", fix="leave out --resume", place=str(work)
        )
    work.mkdir(parents=True, exist_ok=True)
    (work / MARK).touch()
    return found


class _Session:
    """One training, stage by stage."""

    def __init__(
        self,
        recipe: RecipeFile,
        stack: Stack,
        stages: Sequence[Stage],
        work: Path,
        *,
        device: str,
        resumed: bool,
        offline: bool,
    ) -> None:
        self.resumed = resumed
        self.spec = recipe.recipe.cpt or CptSpec()
        self.stack, self.stages, self.work, self.device = stack, stages, work, device
        self.model = open_model(stack.folder, device)
        # Asked before anything is made fp32 to learn.
        self.half = any(p.dtype in HALF for p in self.model.parameters())
        reader = Reader(recipe.name, stack.folder, rows=stack.vocabulary)
        self.packed = isolates(self.model, self.spec.length)
        self.sources: list[Source] = gather_sources(
            recipe,
            reader,
            work / "rows",
            packed=self.packed,
            tokens=self.spec.tokens,
            offline=offline,
        )
        self.key = self._key()
        _keep_key(work / KEY, self.key)
        self.before = self._start()
        self.learnt: dict[str, torch.Tensor] = {}
        self.predicted = 0  # tokens, in all rows that come
        self._frozen: dict[str, str] = {}

    def run(self, tell: Tell) -> None:
        """All stages, or those that are left of them."""
        names = {t.name for stage in self.stages for t in stage.policy.trained}
        everything = frozen_hashes(self.model)
        self._frozen = {name: h for name, h in everything.items() if name not in names}
        total = sum(stage.steps for stage in self.stages)
        rows = total * self.spec.batch
        shares = [source.share for source in self.sources]
        sizes = [len(source.train) for source in self.sources]
        order = mixture(sizes, shares, rows, seed=self.spec.seed)
        targets = [source.train.targets for source in self.sources]
        self.predicted = sum(int(targets[source][row]) for source, row in order)
        done = 0
        for i, stage in enumerate(self.stages):
            first = done * self.spec.batch
            part = order[first : first + stage.steps * self.spec.batch]
            before = done

            def told(steps: int, loss: float | None, before: int = before) -> None:
                tell(before + steps, total, loss)

            self._stage(i, stage, part, told)
            done += stage.steps

    def _stage(
        self,
        index: int,
        stage: Stage,
        order: Sequence[tuple[int, int]],
        tell: Callable[[int, float | None], None],
    ) -> None:
        folder = self.work / f"stage-{index}"
        folder.mkdir(exist_ok=True)
        trained = apply(self.model, stage.policy)
        if (folder / DONE).is_file():
            load_trained(self.model, folder / DONE)
        else:
            trainer = WholeCheckpoints(
                self.model,
                self._arguments(folder, stage.steps, seed=self.spec.seed + index),
                Rows([source.train for source in self.sources], order, packed=self.packed),
                key=f"{self.key} {index}",
                roles=stage.policy.roles,
                rates={str(role): rate for role, rate in self.spec.rates.items()},
                callbacks=[Watch(tell)],
            )
            trainer.remove_callback(PrinterCallback)
            checkpoint = newest_whole(folder, f"{self.key} {index}")
            if self.resumed:
                where = f"from {checkpoint.name}" if checkpoint else "from its beginning"
                say(f"stage {index} goes on {where}")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            self._save_done(folder, trained)
        self.learnt |= {name: tensor.detach() for name, tensor in trained.items()}

    def _save_done(self, folder: Path, trained: dict[str, torch.Tensor]) -> None:
        staged = folder / f".{DONE}"
        save_file({n: t.detach().cpu().contiguous() for n, t in trained.items()}, staged)
        staged.rename(folder / DONE)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def _arguments(self, folder: Path, steps: int, *, seed: int) -> TrainingArguments:
        spec = self.spec
        decay = {"num_decay_steps": math.ceil(DECAY * steps)} if spec.schedule == "wsd" else {}
        found = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=spec.batch,
            learning_rate=spec.learning_rate,
            lr_scheduler_type=SCHEDULES[spec.schedule],
            lr_scheduler_kwargs=decay,
            warmup_steps=math.ceil(spec.warmup * steps),
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.clip,
            save_steps=spec.save_every,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=self.device == "cpu",
            bf16=self.half,
            seed=seed,
            data_seed=seed,
        )
        if found.device.type == "cuda":
            found._n_gpu = 1  # else Trainer spreads the rows over every GPU that it sees
        return found

    def _key(self) -> str:
        """Of all that decides the result: base, policies, text, settings."""
        files = sorted(self.stack.folder.glob("*.safetensors"))
        decisive = {
            "base": [file_hash(file) for file in files],
            "stages": [[stage.policy.blake3, stage.steps] for stage in self.stages],
            "config": blake3((self.stack.folder / "config.json").read_bytes()).hexdigest(),
            "rows": [[s.kind, s.share, digest(s.train), digest(s.held_out)] for s in self.sources],
            "device": self.device,
            "settings": self.spec.model_dump(exclude={"data", "save_every"}, mode="json"),
            "packed": self.packed,
        }
        return blake3(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _start(self) -> dict[str, float]:
        """Losses before the training: measured once, whatever is broken off."""
        file = self.work / START
        if file.is_file():
            noted = json.loads(file.read_text())
            if noted["key"] == self.key:
                return dict(noted["losses"])
        losses = self._losses()
        staged = file.with_name(f".{START}")
        staged.write_text(json.dumps({"key": self.key, "losses": losses}))
        staged.rename(file)
        return losses

    def _losses(self) -> dict[str, float]:
        with _autocast(self.model, half=self.half):
            return {
                f"{source.name} ({source.kind})": loss(
                    self.model, source.held_out, packed=self.packed
                )
                for source in self.sources
            }

    def finish(self) -> dict[str, Any]:
        """What has come of it, once nothing frozen has changed."""
        check_frozen(self.model, self._frozen)
        for stage in self.stages:  # what is measured is what will be written
            round_as_stored(self.learnt, stage.policy)
        after = self._losses()
        if not all(math.isfinite(value) for value in after.values()):
            raise CheckFailed(
                "the loss after the training is no number",
                fix="lower the learning rate, and begin anew with --force",
                place=str(self.work),
            )
        return {
            "base": {"folder": str(self.stack.folder), "key": self.key},
            "settings": self.spec.model_dump(mode="json", exclude={"data"}),
            "tokens": self.predicted,
            "packed": self.packed,
            "stages": [{"steps": s.steps, **s.policy.as_dict()} for s in self.stages],
            "text": [source.noted for source in self.sources],
            "losses": {
                name: {"before": self.before[name], "after": value} for name, value in after.items()
            },
            "frozen": len(self._frozen),
        }


@contextmanager
def _autocast(model: PreTrainedModel, *, half: bool) -> Iterator[None]:
    """As the training computes: a 16-bit base in bf16, though its trained tensors are fp32."""
    if not half:
        yield
    else:
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            yield


def _keep_key(file: Path, key: str) -> None:
    """Note what a working folder is of, or see that it is of the same.

    Raises:
        CheckFailed: it is of another training.
    """
    if file.is_file():
        if file.read_text() != key:
            raise other_training(file.parent)
        return
    staged = file.with_name(f".{file.name}")
    staged.write_text(key)
    staged.rename(file)

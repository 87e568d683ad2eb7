"""From a built model to a trained one: text, stages, checks, export (torch side)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from hybridize.cpt.backends import engines, processes
from hybridize.cpt.data.text import Source, gather_sources
from hybridize.cpt.plan.planning import CptPlan
from hybridize.cpt.state.export import export
from hybridize.cpt.state.identity import FILE, Identity, check_same, identity_of, key_of
from hybridize.cpt.state.metrics import FILE as METRICS
from hybridize.cpt.state.tensors import State
from hybridize.cpt.train.isolation import isolates
from hybridize.cpt.train.options import RunOptions
from hybridize.cpt.train.stage import RESULT, StageResult, TrainingRun, run_stage
from hybridize.cpt.train.trainable_model import Names, open_model
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.files.publishing import publish
from hybridize.files.staging import MANIFEST
from hybridize.machine import ranks
from hybridize.model.checkpoint import read_json
from hybridize.model.manifest import read_manifest
from hybridize.recipe.portable import portable
from hybridize.torch_model.windows import Reader


@dataclass(frozen=True)
class Trained:
    """A training that has come to its end."""

    folder: Path
    record: dict[str, Any]


def run_training(plan: CptPlan, out: Path, options: RunOptions) -> Trained:
    """Train a built model as its recipe says, and write the result as a model folder.

    Raises:
        HybridizeError: text cannot be read, the target is in the way.
        CheckFailed: a loss that is no number or leaps, a tensor without a gradient, a frozen one
            that changed, old text that is forgotten, or a checkpoint of another training.
    """
    engines.join(options.engine, options.device)
    identity = identity_of(plan.stack, plan.stages, plan.spec)
    work = out.with_name(f"{out.name}.work")
    finished = processes.by_main(lambda: _finished(out, work, identity) if options.resume else None)
    if finished is None:
        finished = _train(plan, out, work, options, identity)
    processes.barrier()
    if ranks.is_main():
        _remove(work)
    processes.leave()
    return Trained(out, finished)


def _train(
    plan: CptPlan, out: Path, work: Path, options: RunOptions, identity: Identity
) -> dict[str, Any]:
    processes.by_main(lambda: _prepare(out, work, identity, options))
    try:
        return _train_stages(plan, out, work, options, identity)
    except HybridizeError:
        # Nothing that a user would miss; what was there before this run stays.
        if ranks.is_main() and not options.resume and not _has_learnt(work):
            _remove(work)
        raise


def _has_learnt(work: Path) -> bool:
    return any(any(work.glob(f"stage-*/{name}")) for name in ("checkpoint-*", RESULT))


def _train_stages(
    plan: CptPlan, out: Path, work: Path, options: RunOptions, identity: Identity
) -> dict[str, Any]:
    run, names = _open(plan, work, options, identity)
    results: list[StageResult] = []
    learnt: State = {}
    done = 0
    with processes.progress("training", "steps") as tell:
        for i, stage in enumerate(plan.stages):

            def told(steps: int, loss: float, before: int = done) -> None:
                tell(before + steps, plan.steps, f"loss {loss:.3f}")

            results.append(run_stage(run, i, stage, learnt, told))
            learnt |= load_file(results[-1].file)
            done += stage.steps
    record = _record(plan, run, results)
    return processes.by_main(lambda: _export(plan, names, learnt, record, work, out))


def _open(
    plan: CptPlan, work: Path, options: RunOptions, identity: Identity
) -> tuple[TrainingRun, Names]:
    """Text in rows, and what all stages share."""
    tuned = open_model(
        plan.stack.folder, "cpu" if options.engine == engines.FSDP else options.device
    )
    if options.engine == engines.FSDP:
        engines.check_wrapped(tuned.model)
    for stage in plan.stages:
        tuned.names.learning(stage.policy)  # else a later stage would fail after hours
    packed = processes.by_main(lambda: isolates(tuned, plan.spec.length))
    reader = Reader(
        plan.recipe.name,
        plan.stack.folder,
        rows=plan.stack.vocabulary,
        start_token=plan.recipe.recipe.start_token,
    )
    with processes.progress("reading text", "tokens") as told:

        def gather() -> list[Source]:
            return gather_sources(
                plan.recipe,
                reader,
                packed=packed,
                tokens=plan.spec.tokens,
                offline=options.offline,
                progress=told,
            )

        processes.by_main(lambda: len(gather()))  # it packs; then all find what it has left
        sources = gather()
    whole = {**identity, "packed": packed, "text": [_text(source) for source in sources]}
    processes.by_main(lambda: _note_training(work / FILE, whole))
    return TrainingRun(plan, sources, work, options, whole, packed), tuned.names


def _text(source: Source) -> dict[str, Any]:
    """What of a source decides a training and what is measured of it."""
    noted = source.noted
    held_out = noted["held_out"]["rows_blake3"]
    kept = {key: noted[key] for key in ("name", "kind", "share", "rows_blake3")}
    return {**kept, "held_out_blake3": held_out}


def _record(plan: CptPlan, run: TrainingRun, results: Sequence[StageResult]) -> dict[str, Any]:
    """What is noted of a training, but for what the export finds."""
    before, after = run.before().whole, results[-1].losses
    if not all(math.isfinite(value) for value in after.values()):
        raise CheckFailed(
            "the loss after the training is not finite",
            fix="lower the learning rate, and start over with --force",
            place=str(run.work),
        )
    return {
        "base": {"folder": str(plan.stack.folder), "key": key_of(run.identity)},
        "settings": plan.spec.model_dump(mode="json", exclude={"data"}),
        "recipe": _recipe(plan),
        "tokens": run.predicted,
        "packed": run.packed,
        "stages": [
            {**stage.as_dict(), **result.as_dict()}
            for stage, result in zip(plan.stages, results, strict=True)
        ],
        "text": portable([source.noted for source in run.sources], plan.recipe.folder),
        "losses": {n: {"before": before[n], "after": value} for n, value in after.items()},
        "frozen": min(result.frozen for result in results),
        "trained": len({t.name for stage in plan.stages for t in stage.policy.trained}),
        "warnings": [text for result in results for text in result.warnings],
    }


def _recipe(plan: CptPlan) -> dict[str, Any]:
    """The section `cpt` as it was carried out, with what differs from the defaults."""
    section = plan.spec.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    found: dict[str, Any] = portable(section, plan.recipe.folder)
    return found


def _export(
    plan: CptPlan, names: Names, learnt: State, record: dict[str, Any], work: Path, out: Path
) -> dict[str, Any]:
    record["unmoved"] = export(
        plan.stack.folder,
        out,
        names.on_disk(learnt),
        record,
        staged=work / "export",
        metrics=work / METRICS,
        states=plan.stack.states,
    )
    return record


def _finished(out: Path, work: Path, identity: Identity) -> dict[str, Any] | None:
    """The record of a training that was killed after its result appeared; None: it was not."""
    if not ((out / MANIFEST).is_file() and (work / FILE).is_file()):
        return None
    noted = read_json(work / FILE)
    records: list[dict[str, Any]] = read_manifest(out).get("training") or []
    if not records or records[-1]["base"].get("key") != key_of(noted):
        return None
    check_same(noted, identity, work)
    return records[-1]


def _prepare(out: Path, work: Path, identity: Identity, options: RunOptions) -> None:
    """Make the working folder, or see that there is a training in it to go on with."""
    if out.exists():
        raise HybridizeError("is there already", fix="choose another --out", place=str(out))
    if options.resume and options.force:
        raise HybridizeError("--resume and --force exclude each other", fix="choose one")
    if work.exists() and options.force:
        if not (work / FILE).is_file():
            raise HybridizeError(
                "is in the way, and hybridize did not make it",
                fix="move it elsewhere",
                place=str(work),
            )
        _remove(work)
    if work.exists() and not options.resume:
        raise HybridizeError(
            "an interrupted training is here",
            fix="add --resume to continue it, or --force to start over",
            place=str(work),
        )
    if options.resume:
        if not (work / FILE).is_file():
            raise HybridizeError(
                "there is no training to resume", fix="leave out --resume", place=str(work)
            )
        check_same(read_json(work / FILE), identity, work)
        return
    staged = work.with_name(f".{work.name}.new")  # a folder is never there without its note
    shutil.rmtree(staged, ignore_errors=True)
    publish(staged / FILE, json.dumps(identity, indent=1))
    staged.rename(work)


def _remove(work: Path) -> None:
    """Away in one step, and then from the disk."""
    away = work.with_name(f".{work.name}.old")
    shutil.rmtree(away, ignore_errors=True)
    if work.exists():
        work.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _note_training(file: Path, whole: Identity) -> None:
    """Note what a working folder is of, or see that it is of the same."""
    check_same(read_json(file), whole, file.parent)
    publish(file, json.dumps(whole, indent=1))

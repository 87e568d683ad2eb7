"""Plan to model folder: copy, compute what cannot be copied, check, publish."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

import hybridize
from hybridize.assembler.assembly.carrying import Carried, Carrier, compare_tokens
from hybridize.assembler.assembly.copying import copy_outputs
from hybridize.assembler.assembly.provenance import load_line, manifest_json, model_card
from hybridize.assembler.assembly.verify import compare_with_donors
from hybridize.assembler.plan.outputs import (
    donor_shapes,
    hybrid_config,
    hybrid_outputs,
    native_outputs,
)
from hybridize.assembler.plan.planning import HELD_OUT, TO_BE_COMPARED, Plan
from hybridize.assembler.worker.worker import Worker, WorkerProcess
from hybridize.console import byte_progress, say, size, token_progress
from hybridize.errors import HybridizeError
from hybridize.files.ranges import hash_ranges
from hybridize.files.reading import system_error
from hybridize.files.staging import MANIFEST, Staging, check_disk
from hybridize.machine.precision import AUTO
from hybridize.model.checkpoint import INDEX, TORCH_NAMES, same_bytes
from hybridize.model.donors import Donor, whole_configs
from hybridize.model.heads import matrices
from hybridize.model.manifest import frame_hash, small_hashes
from hybridize.model.shards import Output, Shard, index_json, lay_out
from hybridize.text.calibration import gather

Check = Literal["forward", "structure"]
RUNTIME = Path(hybridize.__file__).parent / "runtime"
ELSEWHERE = "choose an --out on another disk"


@dataclass(frozen=True)
class Built:
    """What a build has made."""

    folder: Path
    plan: Plan  # as it was carried out: its target may have changed to hybrid
    nbytes: int
    num_tensors: int
    resumed: int  # files that an earlier, killed build had finished
    seconds: float
    checks: tuple[str, ...]
    fit: dict[str, Any] | None  # how bridges were fitted, and what the result is worth
    manifest: str  # BLAKE3 of hybridize.json

    def summary(self) -> str:
        """What a user wants to know at the end."""
        speed = f"{size(self.nbytes)} in {self.seconds:.1f} s"
        resumed = f", {self.resumed} files from an earlier build" if self.resumed else ""
        lines = [f"built {self.folder} ({self.plan.target}, {speed}{resumed})"]
        if self.plan.target == "native":
            lines.append("  proved: every layer equals its donor's in class, shapes and settings")
        lines += [f"  checked: {check}" for check in self.checks]
        lines.append(f"  manifest: {self.manifest} (for verify --expect)")
        lines.append(f"  load it: {load_line(self.plan, str(self.folder))}")
        if self.plan.tokenizer:
            tokenizer = load_line(self.plan, str(self.folder), "AutoTokenizer")
            lines.append(f"           {tokenizer}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "target": self.plan.target,
            "reason": self.plan.reason,
            "bytes": self.nbytes,
            "tensors": self.num_tensors,
            "resumed_files": self.resumed,
            "seconds": round(self.seconds, 3),
            "checks": list(self.checks),
            "fit": self.fit,
            "manifest": self.manifest,
        }


def build(
    plan: Plan,
    out: Path | str,
    *,
    force: bool = False,
    check: Check = "forward",
    offline: bool = False,
    compute_dtype: str = AUTO,
    worker: Worker | None = None,
) -> Built:
    """Assemble the model of a plan under `out`, which appears only when all checks have passed.

    Args:
        force: replace a target that hybridize made earlier, in one step, at the end.
        check: `forward` loads the result and runs it; `structure` compares names and shapes only.
        offline: never ask the network, for calibration text.
        compute_dtype: that models compute in while bridges are fitted and the result is measured,
            or `auto`, see `precision.compute_dtype`.
        worker: who answers what needs torch; default: a second process.

    Raises:
        HybridizeError: the target is in the way, the disk is too small, a donor is broken, or was
            changed since the plan was made.
        CheckFailed: the result is not what the plan says.
    """
    start, folder = time.monotonic(), Path(out)
    if plan.tied:
        _check_tie(plan)
    with Staging(folder, force=force) as staging, closing(worker or WorkerProcess()) as process:
        job = _Job(staging, process, plan)
        try:
            compared = compare_tokens(plan, process)
            job.fit_bridges(offline=offline, compute_dtype=compute_dtype)
            job.run()
            checks = [*job.check(check), *compared]
            for donor in plan.donors.values():
                donor.checkpoint.refuse_changed()
            staging.publish()
        except OSError as error:
            raise _removed(error, folder) from None
    return Built(
        folder=folder,
        plan=job.plan,
        nbytes=sum(shard.nbytes for shard in job.shards),
        num_tensors=len(job.hashes),
        resumed=job.resumed,
        seconds=time.monotonic() - start,
        checks=tuple(checks),
        fit=job.fit,
        manifest=job.manifest,
    )


def prove_target(plan: Plan, worker: Worker | None = None) -> Plan:
    """Prove a native target now, and compare tokens; the plan with the verdict in its reason."""
    if plan.target == "hybrid" and not plan.uncompared:
        return plan
    with closing(worker or WorkerProcess()) as process:
        compared = compare_tokens(plan, process)
        notes = tuple(note for note in plan.notes if TO_BE_COMPARED not in note)
        plan = replace(plan, notes=(*notes, *compared))
        if plan.target == "hybrid":
            return plan
        verdict = _submit_proof(plan, process).result()
    if verdict["reason"] is None:
        return plan.as_proved()
    return _refuted(plan, verdict["reason"])


def _submit_proof(plan: Plan, worker: Worker) -> Future[Any]:
    return worker.submit(
        "prove",
        configs=plan.configs,
        picks=plan.picks,
        embeddings=plan.embeddings,
        head=plan.head,
        tied=plan.tied,
    )


def _refuted(plan: Plan, reason: str) -> Plan:
    """The plan as a hybrid; an error where the recipe insists on a native target."""
    if plan.recipe.recipe.target == "native":
        raise HybridizeError(
            f"this stack is not a native model: {reason}",
            fix="write target: auto (or hybrid)",
            place=plan.recipe.place("target"),
        )
    return plan.as_hybrid(reason)


class _Job:
    """One build: the plan as it stands, and what has been written so far."""

    def __init__(self, staging: Staging, worker: Worker, plan: Plan) -> None:
        self.staging = staging
        self.worker = worker
        self.plan = plan
        self.config: dict[str, Any] = {}
        self.shards: list[Shard] = []
        self.hashes: dict[str, str] = {}
        self.resumed = 0
        self.manifest = ""
        self.fit: dict[str, Any] | None = None
        self.carrier: Carrier | None = None
        self.carried: Carried | None = None
        self.parameters = staging.folder / "bridges.safetensors"

    def fit_bridges(self, *, offline: bool, compute_dtype: str) -> None:
        """Fit and measure on calibration text, before a byte is copied."""
        plan, calibration = self.plan, self.plan.calibration
        if calibration is None:
            return
        documents = self.staging.folder / "calibration.jsonl"
        tokens = plan.calibration_tokens
        text = gather(calibration, plan.recipe, documents, tokens=tokens, offline=offline)
        readers = {name: _tokenizer(donor) for name, donor in plan.tokenizers.items() if donor}
        with token_progress("fitting bridges" if plan.fitted else "measuring") as progress:
            found = self.worker.submit(
                "fit",
                progress=progress,
                config=hybrid_config(plan),
                donors={name: donor.folder for name, donor in plan.donors.items()},
                tokenizers=readers,
                tokenizer=_tokenizer(plan.tokenizer)
                if plan.tokenizer
                else readers[plan.embeddings],
                bridges=[asdict(bridge) for bridge in plan.bridges.values()],
                text={
                    "file": documents,
                    "domains": [
                        {"name": domain.name, "tokens": share, "place": domain.place}
                        for domain, share in calibration.shares(tokens)
                    ],
                    "length": calibration.length,
                    "seed": calibration.seed,
                    "stream": calibration.stream,
                    "held_out": HELD_OUT,
                    "measure": calibration.measure,
                },
                parameters=self.parameters,
                compute_dtype=compute_dtype,
            ).result()
        self.fit = {**found, "text": text}

    def run(self) -> None:
        if self.plan.target == "native" and not self._native():
            say(f"not native: {self.plan.reason}; building a hybrid")
        if self.plan.target == "hybrid":
            self._hybrid()
        self._write_small_files()

    def _native(self) -> bool:
        """Copy while the proof runs; False (and a new plan) where it is refuted."""
        plan = self.plan
        proof = _submit_proof(plan, self.worker)
        if plan.dtype is None:
            self._write_weights(native_outputs(plan))
        verdict = proof.result()
        if verdict["reason"] is not None:
            self.plan = _refuted(plan, verdict["reason"])
            return False
        self.plan = plan.as_proved()
        if plan.dtype is not None:
            shapes = {output.name: (output.dtype, output.shape) for output in native_outputs(plan)}
            kept = self.worker.submit(
                "native_fp32", config=verdict["config"], tensors=shapes
            ).result()
            self._write_weights(native_outputs(plan, keep_fp32=kept))
        self.config = verdict["config"] | {"dtype": TORCH_NAMES[plan.main_dtype]}
        return True

    def _hybrid(self) -> None:
        config = hybrid_config(self.plan)
        layout = self.worker.submit(
            "layout",
            config=config,
            donors=donor_shapes(self.plan),
            wholes=whole_configs(self.plan.donors.values()),
        ).result()
        self.config = layout["config"]
        self._write_weights(hybrid_outputs(self.plan, layout["tensors"]))

    def _write_weights(self, outputs: Sequence[Output]) -> None:
        self.shards = lay_out(outputs, self.plan.recipe.recipe.shard_size)
        self.hashes = {}  # those of a native layout that was refuted do not count
        self.carrier = self.carrier or Carrier(self.plan, self.worker)
        done = self._resume()
        total = sum(shard.nbytes for shard in self.shards if shard.name not in done)
        check_disk(self.staging.folder, total, fix=ELSEWHERE)
        with byte_progress("copying", total) as progress:
            for shard in self.shards:
                if shard.name not in done:
                    self._write_shard(shard, progress)

    def _resume(self) -> set[str]:
        finished = self.staging.resume(self._digest())
        sound = set()
        for shard in self.shards:
            hashes = finished.get(shard.name)
            if hashes is not None and hashes == _hashes_on_disk(shard, self.staging.model):
                self.hashes |= hashes
                self.staging.finished(shard.name, hashes)
                sound.add(shard.name)
        self.resumed = len(sound)
        return sound

    def _digest(self) -> str:
        """Of everything that decides the bytes of the weights."""
        files = sorted({r.file for s in self.shards for o in s.outputs for r in o.ranges})
        states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        bridges = [asdict(bridge) for bridge in self.plan.bridges.values()]
        fitted = blake3(self.parameters.read_bytes()).hexdigest() if self.fit else None
        shards = [asdict(shard) for shard in self.shards]
        parts = [hybridize.__version__, states, bridges, fitted, shards]
        return blake3(json.dumps(parts, default=str).encode()).hexdigest()

    def _write_shard(self, shard: Shard, progress: Any) -> None:
        growing = self.staging.model / f"{shard.name}.growing"
        hashes = copy_outputs(shard, growing, progress)
        if computed := [
            {**asdict(output), "offset": offset}
            for output, offset in shard.placed()
            if not output.copied
        ]:
            bridges = {where: asdict(bridge) for where, bridge in self.plan.bridges.items()}
            hashes |= self.worker.submit(
                "compute",
                file=str(growing),
                outputs=computed,
                bridges=bridges,
                fitted=str(self.parameters) if self.fit else None,
            ).result()
        growing.rename(self.staging.model / shard.name)
        self.hashes |= hashes
        self.staging.finished(shard.name, hashes)

    def _write_small_files(self) -> None:
        plan, folder = self.plan, self.staging.model
        if index := index_json(self.shards):
            (folder / INDEX).write_text(index)
        if plan.target == "hybrid":
            for file in sorted(RUNTIME.glob("*.py")):
                if file.name != "__init__.py":
                    shutil.copyfile(file, folder / file.name)
        assert self.carrier is not None
        self.carried = self.carrier.write(folder, self.config)
        (folder / "README.md").write_text(model_card(plan, self.fit), encoding="utf-8")
        weights = {shard.name: frame_hash(folder / shard.name) for shard in self.shards}
        manifest = manifest_json(
            plan,
            self.shards,
            hashes=self.hashes,
            files=small_hashes(folder, weights),
            weights=weights,
            fit=self.fit,
            tokenizer_ids=self.carried.ids,
            out=self.staging.target,
        )
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
        self.manifest = blake3(manifest.encode()).hexdigest()

    def check(self, how: Check) -> list[str]:
        """Open what was written, as a user would."""
        folder = self.staging.model
        compared = compare_with_donors(self.shards, folder)
        answer = self.worker.submit("check", folder=str(folder), mode=how).result()
        assert self.carried is not None
        return [
            f"{compared} tensors read back equal their donors'",
            *answer["checks"],
            self.carried.check,
        ]


def _tokenizer(donor: Donor) -> dict[str, str]:
    """What the second process opens a donor's tokenizer by."""
    return {"folder": str(donor.folder), "start_token": donor.start_token}


def _check_tie(plan: Plan) -> None:
    """The plan compared a sample of head and embedding; before the head is dropped, all of it."""
    anatomy = plan.donors[plan.head].anatomy
    for tensor in matrices(anatomy):
        if not same_bytes(tensor, anatomy.embedding, whole=True):
            raise HybridizeError(
                f"'{tensor.name}' differs from the embeddings that the config ties it to",
                fix="set tie_word_embeddings to false in the donor's config.json to keep both",
                place=str(tensor.file),
            )


def _hashes_on_disk(shard: Shard, folder: Path) -> Mapping[str, str] | None:
    if (folder / shard.name).stat().st_size != shard.nbytes:
        return None
    return {output.name: hash_ranges([here]) for output, here in shard.written(folder)}


def _removed(error: OSError, out: Path) -> HybridizeError:
    """A failure of the system, in a build that leaves nothing behind."""
    told = system_error(error).findings[0]
    found = f"{told.found}; what was written has been removed"
    return HybridizeError(found, fix=told.fix, place=told.place or str(out.parent))

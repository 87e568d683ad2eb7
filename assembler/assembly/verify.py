"""Is a built model still what its manifest says, and what its donors hold?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from hybridize.assembler.assembly.provenance import header_hash
from hybridize.assembler.merge.merging import merge_folder
from hybridize.assembler.worker.worker import Worker, WorkerProcess
from hybridize.console import byte_progress
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.files.hashes import content_hash
from hybridize.files.ranges import hash_ranges
from hybridize.files.staging import MANIFEST
from hybridize.model.anatomy import dissect
from hybridize.model.checkpoint import Checkpoint, open_checkpoint
from hybridize.model.donors import Donor, locate
from hybridize.model.manifest import (
    files_of,
    frame_hash,
    is_sealed,
    read_manifest,
    some,
    strangers_of,
)
from hybridize.model.shards import Shard

SAMPLE = 16  # tensors that are compared with their donors


@dataclass(frozen=True)
class Outcome:
    """One thing that was checked."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """Everything that was checked in a model folder."""

    folder: Path
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes)

    def table(self) -> str:
        """A line for each check, and the verdict."""
        lines = [f"{'ok  ' if o.ok else 'FAIL'}  {o.what}: {o.detail}" for o in self.outcomes]
        wrong = sum(not o.ok for o in self.outcomes)
        verdict = "all checks passed" if self.ok else f"{wrong} of {len(lines)} checks failed"
        return "\n".join([*lines, f"{self.folder}: {verdict}"])

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "checks": [vars(o) for o in self.outcomes],
        }


def verify(
    folder: Path | str,
    *,
    load: Literal["forward", "structure", "none"] = "forward",
    whole: bool = False,
    expect: str | None = None,
    worker: Worker | None = None,
) -> Verification:
    """Check a built model against its manifest and, where they are found, its donors.

    Args:
        load: whether to load and run it, to compare names and shapes with its class, or neither.
        whole: compare every copied tensor with its donor, not a sample.
        expect: BLAKE3 of the manifest, as `build` printed it.

    Raises:
        HybridizeError: the folder has no readable manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, damaged=True)
    outcomes = [_manifest(folder, expect), _files(folder, manifest)]
    checkpoint, headers = _headers(folder, manifest)
    outcomes.append(headers)
    if checkpoint is not None:
        outcomes.append(_hashes(checkpoint, manifest))
        outcomes += _donors(folder, manifest, whole=whole)
        if load != "none":
            outcomes += _load(folder, manifest, load, worker)
    return Verification(folder, tuple(outcomes))


def _manifest(folder: Path, expect: str | None) -> Outcome:
    data = (folder / MANIFEST).read_bytes()
    digest = blake3(data).hexdigest()
    if not is_sealed(data):
        return Outcome("manifest", False, f"{MANIFEST} was changed after it was written")
    if expect is not None and digest != expect.lower():
        return Outcome("manifest", False, f"{digest}, not the expected {expect}")
    return Outcome("manifest", True, digest)


def _files(folder: Path, manifest: dict[str, Any]) -> Outcome:
    """Every file beside the weights is what was written, and there is no other."""
    noted, found = manifest["files"], files_of(folder)
    changed = []
    for name, digest in noted.items():
        if name not in found:
            changed.append(f"{name} is missing")
        elif not found[name].is_file() or content_hash(found[name]) != digest:
            changed.append(f"{name} was changed")
    changed += [f"{name} was added" for name in strangers_of(folder, manifest)]
    return Outcome("files", not changed, some(changed) or f"{len(noted)} unchanged, none added")


def _headers(folder: Path, manifest: dict[str, Any]) -> tuple[Checkpoint | None, Outcome]:
    try:
        checkpoint = open_checkpoint(folder)
    except HybridizeError as error:
        return None, Outcome("tensors", False, str(error.findings[0]))
    planned, found = manifest["tensors"], checkpoint.tensors
    wrong = [f"{name} is missing" for name in planned if name not in found]
    wrong += [f"{name} is not of the plan" for name in found if name not in planned]
    for name in planned.keys() & found.keys():
        want, have = planned[name], found[name]
        if (want["dtype"], tuple(want["shape"])) != (have.dtype, have.shape):
            wrong.append(f"{name} is {have.dtype} {list(have.shape)}")
    files = {name: checkpoint.folder / name for name in manifest["weights"]}
    read = {tensor.file for tensor in found.values()}
    wrong += [f"{name} holds no tensor" for name, file in files.items() if file not in read]
    wrong += [
        f"the header of {name} was changed"
        for name, file in files.items()
        if file in read and frame_hash(file) != manifest["weights"][name]
    ]
    detail = some(sorted(wrong)) or f"{len(planned)}, names, dtypes and shapes as planned"
    return checkpoint, Outcome("tensors", not wrong, detail)


def _hashes(checkpoint: Checkpoint, manifest: dict[str, Any]) -> Outcome:
    wrong = []
    with byte_progress("hashing", checkpoint.nbytes) as progress:
        for name, tensor in checkpoint.tensors.items():
            planned = manifest["tensors"].get(name)
            if planned and hash_ranges([tensor.range], progress) != planned["blake3"]:
                wrong.append(name)
    detail = f"changed: {some(wrong)}" if wrong else f"{len(checkpoint.tensors)} equal"
    return Outcome("hashes", not wrong, detail)


def _donors(folder: Path, manifest: dict[str, Any], *, whole: bool) -> Iterator[Outcome]:
    for name, noted in manifest["donors"].items():
        donor = _find_donor(folder, name, noted)
        if donor is None:
            yield Outcome(f"donor {name}", True, f"not here ({noted['source']}): not compared")
        elif header_hash(donor) != noted["headers"]:
            yield Outcome(f"donor {name}", False, "is not the donor of the build: it has changed")
        else:
            yield _compare_donor(donor, manifest, whole=whole)


def _find_donor(folder: Path, name: str, noted: dict[str, Any]) -> Donor | None:
    try:
        if noted["commit"]:
            found, _ = locate(
                noted["source"], revision=noted["commit"], base=Path(), place=None, offline=True
            )
        elif merge := noted.get("merge"):
            found = merge_folder(merge["key"])
        else:
            found = Path(os.path.normpath(folder.absolute() / noted["folder"]))
        checkpoint = open_checkpoint(found)
        return Donor(name, noted["source"], noted["commit"], checkpoint, dissect(checkpoint))
    except HybridizeError:
        return None


def _compare_donor(donor: Donor, manifest: dict[str, Any], *, whole: bool) -> Outcome:
    copied = [
        (name, tensor)
        for name, tensor in manifest["tensors"].items()
        if tensor["donor"] == donor.name and tensor["copied"] and not tensor["part"]
    ]
    chosen = copied if whole else _sample(copied)
    wrong = []
    for name, tensor in chosen:
        sources = [donor.checkpoint.tensors.get(source) for source in tensor["from"]]
        found = [source.range for source in sources if source is not None]
        if len(found) < len(sources) or hash_ranges(found) != tensor["blake3"]:
            wrong.append(name)
    detail = f"differ: {some(wrong)}" if wrong else f"{len(chosen)} of {len(copied)} equal"
    return Outcome(f"donor {donor.name}", not wrong, detail)


def _sample(items: Sequence[Any]) -> Sequence[Any]:
    step = max(1, len(items) // SAMPLE)
    return items[::step]


def _load(
    folder: Path, manifest: dict[str, Any], how: str, worker: Worker | None
) -> Iterator[Outcome]:
    where = str(folder.absolute())
    with closing(worker or WorkerProcess()) as process:
        try:
            answer = process.submit("check", folder=where, mode=how).result()
            yield Outcome("load", True, "; ".join(answer["checks"]))
        except HybridizeError as error:
            yield Outcome("load", False, str(error.findings[0].found))
        if wanted := manifest.get("tokenizer_ids"):
            yield _tokenizer(where, wanted, manifest["versions"], process)


def _tokenizer(folder: str, wanted: str, versions: dict[str, str], process: Worker) -> Outcome:
    try:
        if process.submit("tokenizer_ids", folder=folder).result() == wanted:
            return Outcome("tokenizer", True, "gives the ids that its donor's gave in the build")
    except HybridizeError as error:
        return Outcome("tokenizer", False, str(error.findings[0].found))
    was, now = versions.get("transformers"), version("transformers")
    reason = "" if was == now else f" (built with transformers {was}, this is {now})"
    return Outcome("tokenizer", False, f"gives other ids than its donor's in the build{reason}")


def compare_with_donors(shards: Sequence[Shard], folder: Path) -> int:
    """Read a sample of freshly written tensors back and compare them with their donors' bytes.

    Returns:
        The number of tensors compared.

    Raises:
        CheckFailed: the disk gave back something else.
    """
    written = [pair for shard in shards for pair in shard.written(folder) if pair[0].copied]
    sample = _sample(written)
    for output, here in sample:
        if hash_ranges([here]) != hash_ranges(output.ranges):
            raise CheckFailed(
                f"tensor '{output.name}' does not read back as its donor has it",
                fix="check the disk",
                place=str(here.file),
            )
    return len(sample)

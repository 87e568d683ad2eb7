"""Merged donors: a mergekit config becomes a checkpoint on this machine, once.

The result lies in a cache under the hash of everything that decides its bytes, and appears there
by a rename, after it was checked: mergekit loses tensors silently and leaves half models behind.
No torch here; mergekit runs in a process of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.assembler.merge.merge_file import MergeFile, lost, read_merge_file
from hybridize.console import byte_progress, say, size
from hybridize.errors import Finding, HybridizeError
from hybridize.files.hashes import cache_folder, file_hash
from hybridize.files.staging import check_disk
from hybridize.model.checkpoint import INDEX, open_checkpoint, weight_files
from hybridize.model.donors import Donor
from hybridize.model.tokenizer_files import tokenizer_files
from hybridize.recipe.portable import portable, portable_text

FORMAT = 1  # part of the hash; a change to how merges are run wants another number
LIBRARIES = ("mergekit", "torch", "transformers")
SMALL_FILES = ("config.json", "generation_config.json", INDEX)
GLANCE = 0.5  # seconds between two looks at how far a merge is


@dataclass(frozen=True)
class Merged:
    """A donor that a merge has made."""

    folder: Path
    record: dict[str, Any]  # merge config as given, its donors and their hashes: for provenance


def merged_donor(merge_file: Path, *, place: str, offline: bool) -> Merged:
    """Run a mergekit config, or find what an earlier run of it has made.

    Args:
        merge_file: a mergekit config; paths in it start at its folder.
        place: where the recipe names it, for errors.

    Raises:
        HybridizeError: the config or its donors are wrong, mergekit fails, or its result is not
            whole.
    """
    if not merge_file.is_file():
        raise HybridizeError(
            f"no merge file {merge_file}", fix="paths start at the recipe", place=place
        )
    merge = read_merge_file(merge_file, offline=offline)
    record = _record(merge)
    folder = merge_folder(_key(merge, record))
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(folder.parent):
                if not folder.exists():  # made while we waited
                    _make(merge, folder)
    except OSError as error:
        raise HybridizeError(
            f"the cache of merges: {error.strerror}",
            fix="set HYBRIDIZE_CACHE to a folder that can be written",
            place=str(error.filename or folder.parent),
        ) from None
    return Merged(folder, {"key": folder.name, **record})


def merge_folder(key: str) -> Path:
    """Where the result of a merge lies, if it was made on this machine."""
    return cache_folder() / "merges" / key


def _record(merge: MergeFile) -> dict[str, Any]:
    return {
        "method": merge.method,
        "text": portable_text(merge.document),
        "donors": [
            {
                "source": portable(donor.source, merge.document.path.absolute().parent),
                "commit": donor.commit,
                "license": donor.license,
                "model_type": donor.model_type,
                "files": _hashes(donor),
            }
            for donor in merge.donors
        ],
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _hashes(donor: Donor) -> dict[str, str]:
    small = [donor.folder / name for name in SMALL_FILES]
    files = [file for file in small if file.exists()]
    files += [*donor.tokenizer_files, *weight_files(donor.folder)]
    return {file.relative_to(donor.folder).as_posix(): file_hash(file) for file in files}


def _key(merge: MergeFile, record: dict[str, Any]) -> str:
    # Not of the text, nor of the donors' names: a comment or another folder changes no weight.
    files = [donor["files"] for donor in record["donors"]]
    parts = json.dumps([FORMAT, record["versions"], merge.config, files], sort_keys=True)
    return blake3(parts.encode()).hexdigest()[:32]


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two merges side by side would want twice the memory, and might be the same one."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another merge on this machine")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(merge: MergeFile, folder: Path) -> None:
    for left in folder.parent.glob(".*.staging"):  # by a killed merge: we hold the lock
        shutil.rmtree(left)
    staging = folder.parent / f".{folder.name}.staging"
    check_disk(folder.parent, merge.nbytes(), fix="set HYBRIDIZE_CACHE to a folder elsewhere")
    (staging / "donors").mkdir(parents=True)
    try:
        for number, donor in enumerate(merge.donors):
            # Numbers for names: the order in which mergekit works follows the names of its models.
            (staging / "donors" / str(number)).symlink_to(donor.folder.resolve())
        (staging / "job.json").write_text(
            json.dumps({"config": merge.config, "stack": merge.stack, "parent": os.getpid()})
        )
        say(
            f"merging {len(merge.donors)} donors by {merge.method} ({size(merge.nbytes())}), "
            f"kept in {folder} for later runs"
        )
        _run(merge, staging)
        _check(merge, staging / "model")
        _add_small_files(merge, staging / "model")
        for donor in merge.donors:
            donor.checkpoint.refuse_changed()
        (staging / "model").rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run(merge: MergeFile, staging: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    with (staging / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hybridize.assembler.worker.merge_process", str(staging)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            _wait(process, staging / "model", merge.nbytes())
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if (staging / "findings.json").exists():
        mistakes = json.loads((staging / "findings.json").read_bytes())
        document = merge.document
        mistakes.sort(key=lambda mistake: document.position(tuple(mistake[0])))
        raise HybridizeError.of(
            Finding(found, fix, document.place(tuple(where))) for where, found, fix in mistakes
        )
    if process.returncode:
        raise _failure(process.returncode, said, str(merge.document.path))


def _wait(process: subprocess.Popen[bytes], folder: Path, total: int) -> None:
    done = 0
    with byte_progress("merging", total) as progress:
        while True:
            try:
                process.wait(GLANCE)
                return
            except subprocess.TimeoutExpired:
                written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                now = min(written, total)
                if now > done:
                    progress(now - done)
                    done = now


def _failure(status: int, said: str, place: str) -> HybridizeError:
    lines = [line for line in said.strip().splitlines() if not line.startswith((" ", "Traceback"))]
    if status == -signal.SIGKILL:
        lines.append("the system ended it: out of memory?")
    return HybridizeError(
        "mergekit failed" + "".join(f"\n    {line[:300]}" for line in lines[-3:]), place=place
    )


def _check(merge: MergeFile, folder: Path) -> None:
    result = open_checkpoint(folder)
    if missing := lost(merge, result):
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise HybridizeError(
            f"mergekit lost {len(missing)} tensors of {merge.donors[0].model_type}: {names}",
            fix="it does not know this architecture well: stack donors by the slots of a recipe",
            place=str(merge.document.path),
        )


def _add_small_files(merge: MergeFile, folder: Path) -> None:
    """Those of the base model, where mergekit did not bring any."""
    base = merge.donors[0]
    present = {file.name for file in folder.iterdir()}
    missing = [base.folder / "generation_config.json"]
    if not merge.new_tokenizer and not tokenizer_files(folder):
        missing += base.tokenizer_files
    for file in missing:
        name = file.relative_to(base.folder)
        if name.name not in present and file.exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)

"""A folder that appears whole or not at all: files grow beside it and are renamed into place."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridize.console import size
from hybridize.errors import HybridizeError
from hybridize.files.publishing import make_folder

MANIFEST = "hybridize.json"
SPARE = 16 << 20  # bytes of disk for everything that is no weight


class Staging:
    """The workshop of one build: `.NAME.staging` beside the target.

    It holds `model/`, the target to be, and a journal of finished files, so that the next build
    goes on where a killed one stopped. Left by an error, it is removed; left by an interrupt or
    a kill, it stays.
    """

    def __init__(self, target: Path, *, force: bool = False) -> None:
        self.target = target
        self.force = force
        self.folder = target.parent / f".{target.name}.staging"
        self.model = self.folder / "model"
        self._journal: dict[str, Any] = {}
        self._lock = -1

    def __enter__(self) -> Staging:
        check_target(self.target, force=self.force)
        make_folder(self.folder)
        self._lock = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise HybridizeError(
                "another build is writing this target",
                fix="wait for it, or choose another --out",
                place=str(self.target),
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def resume(self, digest: str) -> dict[str, dict[str, str]]:
        """Files that an earlier, killed build of the same plan has finished.

        Everything else that lies here is removed.

        Returns:
            For each file name the hashes of its tensors, as the journal has them.
        """
        try:
            journal = json.loads((self.folder / "journal.json").read_bytes())
        except (FileNotFoundError, ValueError):
            journal = {}
        finished = journal.get("files", {}) if journal.get("digest") == digest else {}
        self.model.mkdir(exist_ok=True)
        for path in sorted(self.model.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in finished:
                path.unlink()
        self._journal = {"digest": digest, "files": {}}
        return {name: found for name, found in finished.items() if (self.model / name).exists()}

    def finished(self, name: str, hashes: dict[str, str]) -> None:
        """Note that a file is whole."""
        self._journal["files"][name] = hashes
        growing = self.folder / "journal.json.growing"
        growing.write_text(json.dumps(self._journal))
        growing.replace(self.folder / "journal.json")

    def publish(self) -> None:
        """Rename the finished model to the target's name; a target replaced by force is removed."""
        check_target(self.target, force=self.force)
        if self.target.exists():
            _exchange(self.model, self.target)
        else:
            self.model.rename(self.target)


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless by force, and never one that hybridize did not make.

    Raises:
        HybridizeError: it is in the way.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise HybridizeError(
            "the target exists",
            fix="choose another --out, or --force to replace it",
            place=str(target),
        )
    if not (target / MANIFEST).is_file():
        raise HybridizeError(
            f"the target exists and has no {MANIFEST}: hybridize did not make it",
            fix="remove it yourself, or choose another --out",
            place=str(target),
        )


def check_disk(folder: Path, nbytes: int, *, fix: str) -> None:
    """Find out before the work that a disk is too small for it.

    Raises:
        HybridizeError: `nbytes` and a little more do not fit.
    """
    free, needed = shutil.disk_usage(folder).free, nbytes + SPARE
    if free < needed:
        raise HybridizeError(
            f"the disk has {size(free)} free, the result needs {size(needed)}",
            fix=f"make room, or {fix}",
            place=str(folder.parent),
        )


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step, so that there is no moment without a target."""
    if sys.platform == "linux":
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename and rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0:
            return
    old = one.with_name("replaced")
    other.rename(old)
    one.rename(other)

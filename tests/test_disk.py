"""A disk that is full, or that nothing can be written to: one message, and nothing half-made."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hybridize.assembler.assembly import assemble
from hybridize.assembler.assembly import verify as verifying
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cli import main
from hybridize.files import staging
from tests.support.commands import COMMANDS, filled
from tests.support.trained_donors import save_trained

SIZES = 10
PAGE = resource.getpagesize()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("commands"))


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(assemble, "WorkerProcess", LocalWorker)
    monkeypatch.setattr(verifying, "WorkerProcess", LocalWorker)
    monkeypatch.chdir(folder)


@contextmanager
def disk(at: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of that size; only root may have one."""
    at.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(at)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def run(command: str, out: Path, *options: str) -> Result:
    words = [str(out) if word == "OUT" else word for word in COMMANDS[command]]
    return CliRunner().invoke(main, [*words, *options, "--offline"])


def pages(folder: Path) -> int:
    """That all files take."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(-(-file.stat().st_size // PAGE) for file in files)


def told(done: Result) -> str:
    """The one message of a failure."""
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done.stderr


def fill_and_go_on(command: str, where: Path, sizes: int) -> None:
    """Run a command on disks of `sizes` sizes, from none to almost enough, then on a large one."""
    with disk(where, 64 << 10):
        assert (done := run(command, where / "made")).exit_code == 0, done.output
        needed = pages(where)
    failed = 0
    for free in sorted({needed * i // sizes for i in range(sizes)}):
        # A disk of no size would be one without bounds: one page is in use from the start.
        with disk(where, (1 + free) * PAGE >> 10):
            (where / "other").write_bytes(bytes(PAGE))
            done = run(command, where / "made")
            if done.exit_code == 0:
                continue
            failed += 1
            text = told(done)
            assert "the disk is full: No space left on device" in text, text
            assert text.count("\n  fix: ") == 1
            assert not (where / "made").exists() or command == "diagnose"
            subprocess.run(["mount", "-o", "remount,size=64m", str(where)], check=True)
            work = where / "made.work"  # of a training, which goes on
            again = run(command, where / "made", *(["--resume"] if work.exists() else []))
            assert again.exit_code == 0, again.output
    assert failed >= min(needed, sizes, 2)


@pytest.fixture
def where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The check before the copy would refuse all of these disks.
    monkeypatch.setattr(staging, "SPARE", -(10**12))
    return folder / "disk"


@pytest.mark.parametrize("command", ["build", "diagnose"])
def test_a_full_disk_is_one_message(command: str, where: Path) -> None:
    fill_and_go_on(command, where, 2)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_disks_of_ten_sizes(command: str, where: Path, folder: Path) -> None:
    if command == "recommend":
        save_trained(folder / "sound")
        save_trained(folder / "hurt", damaged=(2, 3))
    fill_and_go_on(command, where, SIZES)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_lies_below_a_file_is_refused_at_once(command: str, folder: Path) -> None:
    (folder / "file").write_text("x")
    text = told(run(command, folder / "file/below/made"))
    assert "Not a directory" in text
    assert "diagnosing" not in text
    assert (folder / "file").read_text() == "x"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_cannot_be_written_to_is_refused_at_once(command: str, folder: Path) -> None:
    with disk(folder / "readonly", 1024) as where:
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
        text = told(run(command, where / "made"))
        assert "Read-only file system" in text
        assert "diagnosing" not in text
        assert list(where.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_no_file_can_have_is_refused(command: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    text = told(run(command, folder / ("x" * 5000)))
    assert "File name too long" in text
    assert len(text) < 1000
    assert sorted(folder.iterdir()) == before
    shutil.rmtree(folder / "out", ignore_errors=True)

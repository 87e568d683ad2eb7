"""Hashes of donors' files are remembered, and never out of date."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from hybridize.files import hashes as fingerprints
from hybridize.files.hashes import file_hash


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose hash is remembered, though it is small and young."""
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "SMALL", 0)
    monkeypatch.setattr(fingerprints, "RACY", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_a_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan with merged donors of 30 GB answers at once the second time."""
    assert file_hash(file) == blake3(b"one").hexdigest()
    monkeypatch.setattr(fingerprints, "hash_ranges", lambda _: pytest.fail("read again"))
    assert file_hash(file) == blake3(b"one").hexdigest()


def test_a_changed_file_is_read_again(file: Path) -> None:
    """Where size and time of change were set back, too."""
    state = file.stat()
    assert file_hash(file) == blake3(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_hash(file) == blake3(b"two").hexdigest()


def test_a_young_file_is_not_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within one tick of the clock."""
    monkeypatch.setattr(fingerprints, "RACY", 60.0)
    file_hash(file)
    assert not (file.parent / "cache").exists()


def test_a_broken_note_is_no_obstacle(file: Path) -> None:
    """A killed run, a full disk: the file itself is still there."""
    file_hash(file)
    (note,) = (file.parent / "cache" / "hashes").iterdir()
    note.write_text("{")
    assert file_hash(file) == blake3(b"one").hexdigest()

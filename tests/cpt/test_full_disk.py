"""A disk that becomes full: one message, the checkpoint before stays, and the training goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hybridize.cpt.backends.engines import check_wrapped
from hybridize.cpt.state import checkpoints
from hybridize.errors import HybridizeError
from tests.support.tiny import tiny_model
from tests.support.trainings import broken_off, changed, ended, prepare, tensors, train

# No file may grow beyond a limit: the system's error is that of a full disk in all but its number.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from hybridize.cli import main
import hybridize.cpt.train.training
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 40 steps with a checkpoint after every third, and its undisturbed result."""
    found = prepare(tmp_path_factory.mktemp("full"))
    ended(found, "whole")
    return found


def limited(recipe: Path, out: str, limit: int) -> subprocess.CompletedProcess[str]:
    folder = recipe.parent
    arguments = ["cpt", str(recipe), "--built", str(folder / "out"), "--out", str(folder / out)]
    command = [sys.executable, "-c", LIMITED, str(limit), *arguments, "--device", "cpu"]
    return subprocess.run(
        [*command, "--offline", "--resume"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# A checkpoint's tensors, its moments, and the copy of the model at the end do not fit.
@pytest.mark.parametrize(
    "limit", [20_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (60_000, 150_000))]
)
def test_a_full_disk_costs_no_checkpoint(recipe: Path, limit: int) -> None:
    out = f"limited-{limit}"
    folder = broken_off(recipe, out)
    before = {path.name for path in folder.glob("checkpoint-*")}
    done = limited(recipe, out, limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("the disk is full: File too large") == 1
    assert before <= {path.name for path in folder.glob("checkpoint-*")} or limit > 60_000
    assert not (recipe.parent / out).exists()
    assert train(recipe, out, "--resume").exit_code == 0
    assert tensors(recipe.parent / out) == tensors(recipe.parent / "whole")


def test_a_full_disk_at_the_first_checkpoint_leaves_nothing_half_made(recipe: Path) -> None:
    known = changed(recipe, save_every=2)
    folder = recipe.parent
    arguments = ["cpt", str(known), "--built", str(folder / "out"), "--out", str(folder / "first")]
    command = [sys.executable, "-c", LIMITED, "20000", *arguments, "--device", "cpu", "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert done.stderr.count("the disk is full") == 1
    assert not (folder / "first").exists()
    assert train(known, "first", "--force").exit_code == 0


def test_errors_of_other_libraries_are_told_as_the_system_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.write_tensors({}, tmp_path / "a")
    assert caught.value.errno == 28


def test_a_layer_that_is_absent_cannot_be_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's configuration names the class of another model's layers."""
    model = tiny_model("llama")
    check_wrapped(model)
    monkeypatch.setitem(os.environ, "FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    check_wrapped(model)
    monkeypatch.setitem(os.environ, "FSDP_TRANSFORMER_CLS_TO_WRAP", "Qwen3DecoderLayer")
    with pytest.raises(
        HybridizeError, match="class Qwen3DecoderLayer, and the model has none"
    ) as e:
        check_wrapped(model)
    assert "fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer" in str(e.value)

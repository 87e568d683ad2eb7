"""What happens to donors while a stage reads them: noticed before anything is published."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cpt.train import training as pretraining
from hybridize.diagnostics import command as diagnosing
from hybridize.errors import HybridizeError
from hybridize.files import mapping
from tests.support.readers import prose, save_reader
from tests.support.stacks import UNFITTED, plan_of, save_donor
from tests.support.trainings import prepare, train

HYBRID: dict[str, Any] = {
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    "bridges": UNFITTED,
    "target": "hybrid",
}


class Meddler(LocalWorker):
    """Does something once a request was answered."""

    def __init__(self, after: str, do: Callable[[], object]) -> None:
        self.after, self.do = after, do

    def submit(self, operation: str, **options: Any) -> Future[Any]:
        answer = super().submit(operation, **options)
        if operation == self.after:
            self.do()
        return answer


def other_weights(folder: Path) -> Path:
    """As large as before, and under the same name."""
    save_donor(folder / "other", "llama", seed=9)
    return (folder / "other/model.safetensors").replace(folder / "a/model.safetensors")


def other_config(folder: Path) -> Path:
    file = folder / "a/config.json"
    file.write_text(file.read_text() + "\n")
    return file


def other_template(folder: Path) -> Path:
    file = folder / "b/chat_template.jinja"
    file.write_text("x")
    return file


@pytest.mark.parametrize("after", ["layout", "check"])
@pytest.mark.parametrize("change", [other_weights, other_config, other_template])
def test_a_donor_that_changes_during_a_build_is_noticed(
    tmp_path: Path, change: Callable[[Path], Path], after: str
) -> None:
    """Else bridges would be fitted to one model and stand in another."""
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "qwen3")
    changed: list[Path] = []
    worker = Meddler(after, lambda: changed.append(change(tmp_path)))
    with pytest.raises(HybridizeError) as caught:
        build(plan_of(tmp_path, HYBRID), tmp_path / "out", worker=worker, check="structure")
    assert str(caught.value) == (
        f"{changed[0]}: changed while it was in use\n  fix: run this again"
    )
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


CUT = """
import os, sys
from pathlib import Path
from hybridize.files.mapping import map_file
mapped = map_file(Path(sys.argv[1]))
assert mapped[90_000] == 7
os.truncate(sys.argv[1], 5000)
print(mapped[90_000])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the signal is not taken")
def test_a_file_that_is_cut_short_while_it_is_mapped_ends_in_a_message(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"\7" * 100_000)
    command = [sys.executable, "-c", CUT, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{file}: cut short while it was in use: 5000 of 100000 bytes are left\n"
        "  fix: copy it again, and run this again\n"
    )


def test_a_file_that_was_replaced_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was mapped is still whole then."""
    monkeypatch.setattr(mapping, "_lengths", {tmp_path / "gone": 10, tmp_path / "short": 10})
    (tmp_path / "short").write_bytes(bytes(9))
    assert "short: cut short" in str(mapping.cut_file())
    os.truncate(tmp_path / "short", 10)
    assert "a file that was in use became shorter" in str(mapping.cut_file())


def test_a_model_that_changes_while_it_is_diagnosed_gets_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_reader(tmp_path / "a", "llama")
    (tmp_path / "text.txt").write_text(prose())
    monkeypatch.setattr(diagnosing, "diagnose_models", lambda *_, **__: other_config(tmp_path))
    report, text = tmp_path / "report", str(tmp_path / "text.txt")
    with pytest.raises(HybridizeError, match=r"config\.json: changed while it was in use"):
        diagnosing.diagnose(str(tmp_path / "a"), text=[text], out=report, offline=True)
    assert not report.exists()


def test_a_base_that_changes_while_it_is_trained_gives_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy would be of another model than the one that has learnt."""
    recipe = prepare(tmp_path, tokens=512)
    record = pretraining._record

    def change(*arguments: Any) -> dict[str, Any]:
        (tmp_path / "out/README.md").write_text("another")
        return record(*arguments)

    monkeypatch.setattr(pretraining, "_record", change)
    done = train(recipe)
    assert done.exit_code == 2, done.output
    assert "README.md: changed while it was in use" in done.stderr
    assert not (tmp_path / "trained").exists()

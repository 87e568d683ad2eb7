"""The command as a user meets it: output, errors, exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hybridize.assembler.assembly import assemble
from hybridize.assembler.assembly import verify as verifying
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cli import main
from tests.support.stacks import UNFITTED, save_donor, write_recipe

RECIPE: dict[str, Any] = {
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    "bridges": UNFITTED,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("cli")
    save_donor(found / "a", "llama")
    save_donor(found / "b", "qwen3")
    write_recipe(found / "stack.yaml", RECIPE)
    return found


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(assemble, "WorkerProcess", LocalWorker)
    monkeypatch.setattr(verifying, "WorkerProcess", LocalWorker)
    monkeypatch.chdir(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_names_every_command() -> None:
    text = run("--help").output
    for command in main.commands:
        assert f"\n  {command} " in text


def test_from_plan_to_verify() -> None:
    """The main path, by the command alone."""
    planned = run("plan", "stack.yaml")
    assert planned.exit_code == 0
    assert 'target     hybrid: model_type differs: a has "llama", b has "qwen3"' in planned.output
    built = run("build", "stack.yaml")
    assert built.exit_code == 0, built.output
    assert "built out/stack (hybrid" in built.output
    verified = run("verify", "out/stack")
    assert verified.exit_code == 0
    assert "out/stack: all checks passed" in verified.output
    again = run("build", "stack.yaml")
    assert again.exit_code == 2
    assert again.stderr == (
        "out/stack: the target exists\n  fix: choose another --out, or --force to replace it\n"
    )
    assert run("build", "stack.yaml", "--force").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [["plan", "stack.yaml"], ["inspect", "a"], ["schema"], ["build", "stack.yaml", "--out", "j"],
     ["verify", "ready"]],
)  # fmt: skip
def test_json_is_one_document(folder: Path, arguments: list[str]) -> None:
    if arguments[0] == "verify" and not (folder / "ready").exists():
        assert run("build", "stack.yaml", "--out", "ready").exit_code == 0
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_a_users_mistake_is_one_message_and_status_2() -> None:
    result = run("plan", "absent.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "absent.yaml: no such file\n"
    document = json.loads(run("plan", "absent.yaml", "--json").stdout)
    assert document["errors"] == [{"found": "no such file", "fix": None, "place": "absent.yaml"}]


def test_a_failed_check_has_status_1(folder: Path) -> None:
    assert run("build", "stack.yaml", "--out", "broken").exit_code == 0
    (folder / "broken/config.json").write_text("{}")
    result = run("verify", "broken", "--load", "none")
    assert result.exit_code == 1
    assert "FAIL  files: config.json was changed" in result.output
    assert "1 of 6 checks failed" in result.output


def test_verify_says_what_it_needs() -> None:
    result = run("verify", "a")
    assert result.exit_code == 2
    assert result.stderr.startswith("a: hybridize did not build this: hybridize.json is missing")


def test_unknown_options_have_status_2() -> None:
    assert run("plan", "stack.yaml", "--nope").exit_code == 2
    assert run("biuld").exit_code == 2


def test_inspect_shows_the_depth_map() -> None:
    text = run("inspect", "b").output
    assert "qwen3, 4 layers, width 32, vocabulary 64" in text
    assert text.count("self_attn (full)") == 2


def test_an_interrupt_has_status_130_and_leaves_no_target(folder: Path) -> None:
    """Ctrl-C in the middle of a build, in the real command."""
    command = [sys.executable, "-m", "hybridize", "build", "stack.yaml", "--out", "stopped"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 30
    while not (folder / ".stopped.staging").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors
    assert not (folder / "stopped").exists()
    assert run("build", "stack.yaml", "--out", "stopped").exit_code == 0

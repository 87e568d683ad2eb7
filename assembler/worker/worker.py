"""The second process of a build: it imports torch, so that the one that copies need not.

It proves native targets, says which tensors a hybrid has, computes what cannot be copied, and
loads the result. Requests and answers are JSON lines; it ends with its parent.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from hybridize.console import Tell
from hybridize.errors import CheckFailed, Finding, HybridizeError
from hybridize.files.mapping import tell_by
from hybridize.machine.lifeline import end_with_parent


class Worker(Protocol):
    """Whatever answers requests: a process, or (in tests) this one."""

    def submit(
        self, operation: str, *, progress: Tell | None = None, **arguments: Any
    ) -> Future[Any]: ...

    def close(self) -> None: ...


def perform(operation: str, arguments: dict[str, Any], progress: Tell | None = None) -> Any:
    """Answer a request here; this imports torch."""
    from hybridize.assembler.worker import requests

    told = {"progress": progress} if progress else {}
    return getattr(requests, operation)(**arguments, **told)


class LocalWorker:
    """Answers in this process, which then imports torch."""

    def submit(
        self, operation: str, *, progress: Tell | None = None, **arguments: Any
    ) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            # Through JSON and back, so that what works here works between processes.
            future.set_result(_plain(perform(operation, _plain(arguments), progress)))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


class WorkerProcess:
    """Answers in a process of its own."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hybridize.assembler.worker.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        self.pool = ThreadPoolExecutor(1)

    def submit(
        self, operation: str, *, progress: Tell | None = None, **arguments: Any
    ) -> Future[Any]:
        return self.pool.submit(self._ask, operation, arguments, progress)

    def _ask(self, operation: str, arguments: dict[str, Any], progress: Tell | None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        told = progress is not None
        request = {"operation": operation, "arguments": arguments, "progress": told}
        try:
            self.process.stdin.write(json.dumps(request, default=str) + "\n")
            self.process.stdin.flush()
            while (line := self.process.stdout.readline()) and progress:
                if "progress" not in (answer := json.loads(line)):
                    break
                progress(*answer["progress"])
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._died(operation)
        answer = json.loads(line)
        if "result" in answer:
            return answer["result"]
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        findings = [Finding(**finding) for finding in answer["findings"]]
        kind = CheckFailed if answer["exit_status"] == CheckFailed.exit_status else HybridizeError
        raise kind.of(findings)

    def _died(self, operation: str) -> HybridizeError:
        status = self.process.wait()
        self.errors.seek(0)
        tail = self.errors.read().strip().splitlines()[-12:]
        memory = " (out of memory?)" if status == -signal.SIGKILL else ""
        return HybridizeError(
            f"the second process of the build ended with status {status}{memory} at '{operation}'"
            + "".join(f"\n    {line}" for line in tail)
        )

    def close(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.pool.shutdown()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()

    def tell(done: int, total: int, *note: str) -> None:
        send({"progress": [done, total, *note]})

    def tell_end(error: HybridizeError) -> None:
        send({"findings": list(map(vars, error.findings)), "exit_status": error.exit_status})

    tell_by(tell_end)
    _import_quickly()
    from hybridize.machine.device import keep_freed_memory

    keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        told = tell if request["progress"] else None
        try:
            answer = {"result": perform(request["operation"], request["arguments"], told)}
        except HybridizeError as error:
            findings = [vars(finding) for finding in error.findings]
            answer = {"findings": findings, "exit_status": error.exit_status}
        except OSError as error:  # a full disk is told by the parent, as its own would be
            answer = {"os_error": [error.errno, error.strerror, error.filename]}
        send(answer)


def _import_quickly() -> None:
    """The imports make a million objects that stay: to look for garbage among them is in vain."""
    gc.disable()
    from hybridize.assembler.worker import requests  # noqa: F401

    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    # A killed build must not leave a process that goes on writing into its files.
    end_with_parent(int(sys.argv[1]))
    _serve()

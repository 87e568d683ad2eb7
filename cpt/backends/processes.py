"""The processes of a training: how many, which is the main one, and what they do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

from torch import Tensor, distributed

from hybridize.console import token_progress
from hybridize.errors import Finding, HybridizeError
from hybridize.machine import ranks

T = TypeVar("T")

# The others wait while the main process tokenizes, writes and hashes.
PATIENCE = timedelta(hours=12)


def meet(*, cpu: bool) -> None:
    """Join the other processes, if there are any."""
    if ranks.processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=cpu, timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes: threads that still wait for them end a process badly."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def barrier() -> None:
    """All processes have come to this place."""
    if distributed.is_initialized():
        distributed.barrier()


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def agreed(value: Any) -> Any:
    """What the main process has, on all of them."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def by_main(work: Callable[[], T]) -> T:
    """Done by the main process; what comes of it, or its error, on all of them."""
    found: Any = None
    if ranks.is_main():
        try:
            found = (work(), None)
        except HybridizeError as error:
            found = (None, (type(error), error.findings))
        except BaseException as error:  # a full disk, say: the others must not wait for ever
            agreed((None, (HybridizeError, (Finding(f"process 0 failed: {error}"),))))
            raise
    value, failed = agreed(found)
    if failed is not None:
        kind, findings = failed
        raise kind.of(findings)
    return cast(T, value)


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """`token_progress`, shown by the main process alone."""
    if not ranks.is_main():
        yield lambda *told: None
    else:
        with token_progress(label, unit) as tell:
            yield tell

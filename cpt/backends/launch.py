"""Several processes on this machine that train together: started, watched, ended with this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hybridize.errors import HybridizeError

THREADS = "OMP_NUM_THREADS"


def launch(arguments: Sequence[str], *, processes: int, config: Path | None) -> int:
    """Run the command in several processes, by torchrun or by `accelerate launch`.

    Args:
        arguments: of `hybridize`, without those that say how many processes there are.
        config: a configuration of accelerate; it says which engine, and then accelerate starts.

    Returns:
        The exit status of the first process that failed; 0: none did. Where accelerate starts
        them, nothing: this process becomes accelerate's.

    Raises:
        HybridizeError: there is no such configuration.
    """
    if config is None:
        return _torchrun(arguments, processes)
    if not config.is_file():
        raise HybridizeError("no such file", fix="make one: accelerate config", place=str(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if processes > 1:  # else those of the configuration
        command += ["--num_processes", str(processes)]
    command += ["--module", "hybridize", *arguments]
    # This process becomes accelerate's: whoever ends it ends the training.
    return os.execve(
        sys.executable, command, _environment(processes) if processes > 1 else dict(os.environ)
    )


def _torchrun(arguments: Sequence[str], processes: int) -> int:
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.update(_environment(processes))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "hybridize", *arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return int(first.exitcode) if first.exitcode > 0 else 1
    except SignalException:
        raise KeyboardInterrupt from None
    return 0


def _environment(processes: int) -> dict[str, str]:
    """Processors are shared out, where nobody says otherwise."""
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return {**os.environ, THREADS: os.environ.get(THREADS, str(share))}

"""What accelerate 1.15 does not do on processors, done for it."""

from __future__ import annotations

from hybridize.machine import ranks


def fsdp_on_cpu() -> None:
    """Let accelerate shard on processors, too.

    Its state leaves out FSDP where processes have no accelerator, without a word, and runs DDP;
    what it does afterwards works there as well.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = Accelerator(cpu=True).state  # one state for all accelerators of a process
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def deepspeed_on_cpu() -> None:
    """Let accelerate see the processes that DeepSpeed has joined on processors.

    There it counts one, and gives every process the same rows.
    """
    from accelerate import PartialState

    state = PartialState()
    state.num_processes, state.process_index = ranks.processes(), ranks.rank()
    state.local_process_index = ranks.local_rank()

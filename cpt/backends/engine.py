"""The processes of a training and the engine that joins them: asked for, and found in use (torch).

The engines are accelerate's: one process, DDP, FSDP2, DeepSpeed. What is asked for comes from
`--engine`, or from the environment that `accelerate launch` makes of its configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from hybridize.console import token_progress
from hybridize.errors import CheckFailed, Finding, HybridizeError

T = TypeVar("T")

# The others wait while the main process tokenizes, writes and hashes.
PATIENCE = timedelta(hours=12)

SINGLE, DDP, FSDP, DEEPSPEED = "single", "ddp", "fsdp", "deepspeed"


def processes() -> int:
    """How many processes train together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


def one_machine() -> bool:
    """Whether all processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(processes()))) == processes()


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def asked_engine(option: str | None) -> str:
    """The engine that is asked for.

    Raises:
        HybridizeError: one for several processes, and there is one; or two that differ.
    """
    flags = ((FSDP, "ACCELERATE_USE_FSDP"), (DEEPSPEED, "ACCELERATE_USE_DEEPSPEED"))
    said = [name for name, flag in flags if os.environ.get(flag, "").lower() in ("true", "1")]
    if option and said and option != said[0]:
        raise HybridizeError(
            f"--engine {option}, and accelerate's configuration says {said[0]}",
            fix="leave out --engine",
        )
    wanted = option or (said[0] if said else None)
    if processes() == 1 and wanted in (FSDP, DDP):
        raise HybridizeError(
            f"{wanted} wants several processes, and there is one",
            fix="add --processes 2, say; or start it by torchrun or accelerate launch",
        )
    return wanted or (SINGLE if processes() == 1 else DDP)


def join(engine: str, device: str) -> None:
    """Meet the other processes, with the environment that the engine wants.

    Raises:
        HybridizeError: accelerate's configuration asks for FSDP's first version.
    """
    # The dtypes are the model's own and the policy's, in every engine.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    if engine == FSDP:
        if os.environ.setdefault("FSDP_VERSION", "2") != "2":
            raise HybridizeError(
                "FSDP's first version cannot shard what learns beside what does not",
                fix="write fsdp_version: 2 into accelerate's configuration",
            )
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in ("true", "1"):
            raise HybridizeError(
                "FSDP's offloading of parameters is not supported",
                fix="write fsdp_offload_params: false into accelerate's configuration; "
                "gradient_checkpointing: true and micro_batch_size save memory, too",
            )
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
        os.environ.setdefault("FSDP_RESHARD_AFTER_FORWARD", "true")
        # Files are mapped: every process reads the pages that it needs.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=uses_cpu(engine, device), timeout=PATIENCE)


def check_wrapped(model: Any) -> None:
    """See that the layers which accelerate's configuration wants to shard are in the model.

    Raises:
        HybridizeError: it has none of that name.
    """
    wanted = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    there = {type(module).__name__ for module in model.modules()}
    missing = [name for name in map(str.strip, wanted) if name and name not in there]
    if missing:
        slots = ",".join(sorted({type(layer).__name__ for layer in model.model.layers}))
        raise HybridizeError(
            f"accelerate is to wrap layers of class {missing[0]}, and the model has none",
            fix=f"write fsdp_transformer_layer_cls_to_wrap: {slots}, or leave it out",
        )


def uses_cpu(engine: str, device: str) -> bool:
    """What accelerate is to be told; of DeepSpeed it takes a yes for a no to DeepSpeed."""
    return device == "cpu" and engine != DEEPSPEED


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
    if is_main():
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
    if not is_main():
        yield lambda *told: None
    else:
        with token_progress(label, unit) as tell:
            yield tell


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
    state.num_processes, state.process_index = processes(), rank()
    state.local_process_index = int(os.environ.get("LOCAL_RANK", "0"))


@dataclass(frozen=True)
class InUse:
    """The engine that was found at work.

    Attributes:
        sharded: parameters that are split over the processes, of `parameters` in all.
    """

    engine: str
    processes: int
    device: str
    sharded: int
    parameters: int

    def __str__(self) -> str:
        if self.engine == SINGLE:
            return f"one process, {self.device}"
        split = f", {self.sharded} of {self.parameters} parameters sharded" if self.sharded else ""
        return f"{self.engine}, {self.processes} processes, {self.device}{split}"


def engine_in_use(
    asked: str, wrapped: nn.Module, distributed_type: str, num_processes: int
) -> InUse:
    """See that what was asked for is what runs.

    Args:
        wrapped: the model as the engine has wrapped it.
        distributed_type, num_processes: what accelerate says, and shares out rows by.

    Raises:
        CheckFailed: another engine runs, or with other processes, or parameters are left unsharded.
    """
    parameters = list(wrapped.parameters())
    sharded = sum(isinstance(parameter, DTensor) for parameter in parameters)
    names = {"NO": SINGLE, "FSDP": FSDP, "DEEPSPEED": DEEPSPEED}
    found = names.get(distributed_type, DDP)
    is_ddp = isinstance(wrapped, nn.parallel.DistributedDataParallel)
    whole = sharded == len(parameters) if found == FSDP else sharded == 0
    if found != asked or is_ddp != (found == DDP) or not whole:
        raise CheckFailed(
            f"{asked} was asked for, and accelerate runs {distributed_type} "
            f"({type(wrapped).__name__}, {sharded} of {len(parameters)} parameters sharded)",
            fix="see the configuration of accelerate",
        )
    if num_processes != processes():
        raise CheckFailed(
            f"{processes()} processes were started, and accelerate sees {num_processes}",
            fix="see the configuration of accelerate",
        )
    device = "cpu" if not torch.cuda.is_available() else str(parameters[0].device.type)
    return InUse(found, processes(), device, sharded, len(parameters))

"""The engine that joins the processes of a training: asked for, and found in use.

The engines are accelerate's: one process, DDP, FSDP2, DeepSpeed. What is asked for comes from
`--engine`, or from the environment that `accelerate launch` makes of its configuration.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hybridize.cpt.backends.processes import meet
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.machine import ranks

SINGLE, DDP, FSDP, DEEPSPEED = "single", "ddp", "fsdp", "deepspeed"


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
    if ranks.processes() == 1 and wanted in (FSDP, DDP):
        raise HybridizeError(
            f"{wanted} wants several processes, and there is one",
            fix="add --processes 2, say; or start it by torchrun or accelerate launch",
        )
    return wanted or (SINGLE if ranks.processes() == 1 else DDP)


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
    meet(cpu=uses_cpu(engine, device))


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
    if num_processes != ranks.processes():
        raise CheckFailed(
            f"{ranks.processes()} processes were started, and accelerate sees {num_processes}",
            fix="see the configuration of accelerate",
        )
    device = "cpu" if not torch.cuda.is_available() else str(parameters[0].device.type)
    return InUse(found, ranks.processes(), device, sharded, len(parameters))

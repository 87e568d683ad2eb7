"""Tensors of a training, whole or sharded over processes."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

State = dict[str, Tensor]


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, on the device of a parameter and sharded as that is."""
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    # Every process has the whole: nothing is to be sent.
    return distribute_tensor(
        value.to(parameter.to_local().device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor whole and on the CPU; where it is sharded, all processes must ask together."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()

"""Plan to outputs: which tensors the result has, and of which bytes of the donors each is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridize.assembler.plan.planning import Plan
from hybridize.assembler.plan.stack import ENTER, LEAVE, Swap
from hybridize.files.ranges import Range
from hybridize.model.checkpoint import BITS, TORCH_NAMES, TensorHeader
from hybridize.model.donors import tensors_of
from hybridize.model.heads import matrices
from hybridize.model.shards import ZEROS, Output

AUTO_MAP = {
    "AutoConfig": "configuration_hybridize.HybridConfig",
    "AutoModel": "modeling_hybridize.HybridModel",
    "AutoModelForCausalLM": "modeling_hybridize.HybridForCausalLM",
}


def native_outputs(plan: Plan, keep_fp32: Sequence[str] = ()) -> list[Output]:
    """Tensors of a native result: the donors' own names, with the slot's number in the layer's.

    Args:
        keep_fp32: names that a cast leaves alone.
    """
    return [
        Output(
            name=name,
            dtype=plan.dtype_of(tensor.dtype, donor, keep_fp32=name in keep_fp32),
            shape=tensor.shape,
            donor=donor,
            ranges=(tensor.range,),
        )
        for name, donor, tensor in _native_names(plan)
    ]


def _native_names(plan: Plan) -> Iterator[tuple[str, str, TensorHeader]]:
    prefix = plan.donors[plan.embeddings].anatomy.prefix
    base = plan.donors[plan.embeddings].anatomy.base

    def renamed(tensor: TensorHeader, donor: str) -> str:
        # One donor may have been saved with the base model's prefix, and another without.
        own = plan.donors[donor].anatomy.base
        return base + tensor.name.removeprefix(own) if tensor.name.startswith(own) else tensor.name

    embedding, head = plan.donors[plan.embeddings].anatomy, plan.donors[plan.head].anatomy
    yield embedding.embedding.name, plan.embeddings, embedding.embedding
    for tensor in embedding.others:
        yield tensor.name, plan.embeddings, tensor
    for i, slot in enumerate(plan.slots):
        for name, tensor in plan.layer(slot).tensors.items():
            yield f"{prefix}{i}.{name}", slot.donor, tensor
    for tensor in head.norm:
        yield renamed(tensor, plan.head), plan.head, tensor
    for tensor in plan.head_tensors:
        is_embedding = tensor is head.embedding  # a tied donor's head, in an untied result
        if not (plan.tied and (is_embedding or tensor in matrices(head))):
            name = "lm_head.weight" if is_embedding else tensor.name
            yield name, plan.head, tensor


def hybrid_config(plan: Plan) -> dict[str, Any]:
    """config.json of a hybrid, without what the runtime derives from it."""
    slots = []
    for i, slot in enumerate(plan.slots):
        entry: dict[str, Any] = {"donor": slot.donor, "layer": slot.layer}
        if slot.made:
            entry["made"] = True
        if slot.swaps:
            entry["swap"] = {swap.path: _swap(plan, i, swap) for swap in slot.swaps}
        slots.append(entry)
    bridges = {
        where: bridge.options() for where, bridge in plan.bridges.items() if "." not in where
    }
    return {
        "model_type": "hybridize",
        "architectures": ["HybridForCausalLM"],
        "auto_map": AUTO_MAP,
        "donors": plan.configs,
        "slots": slots,
        "embeddings": plan.embeddings,
        "head": plan.head,
        "bridges": bridges,
        "tie_word_embeddings": plan.tied,
        "dtype": TORCH_NAMES[plan.main_dtype],
        **({"max_position_embeddings": plan.positions} if plan.positions else {}),
    }


def _swap(plan: Plan, index: int, swap: Swap) -> dict[str, Any]:
    entry: dict[str, Any] = {"donor": swap.donor, "layer": swap.layer, "module": swap.module}
    sides = {side: plan.bridges.get(f"{index}.{swap.path}.{side}") for side in (ENTER, LEAVE)}
    if bridges := {side: bridge.options() for side, bridge in sides.items() if bridge}:
        entry["bridges"] = bridges
    return entry


def donor_shapes(plan: Plan) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Dtype and shape of every tensor of every donor, as the layout of a hybrid wants them."""
    return {name: tensors_of(donor) for name, donor in plan.donors.items()}


def hybrid_outputs(plan: Plan, layout: Sequence[Mapping[str, Any]]) -> list[Output]:
    """Tensors of a hybrid, from the layout that the runtime's own class gives.

    Args:
        layout: name, dtype, shape, keep_fp32 and pieces of each tensor; a piece is a stretch of
            elements of one donor tensor. Without pieces it is a bridge's, or zeros.
    """
    return [_hybrid_output(plan, tensor) for tensor in layout]


def _hybrid_output(plan: Plan, tensor: Mapping[str, Any]) -> Output:
    name, shape, keep = tensor["name"], tuple(tensor["shape"]), tensor["keep_fp32"]
    if not tensor["pieces"]:
        dtype = "F32" if keep else plan.main_dtype
        init = (ZEROS, name) if tensor["zero"] else _init(plan, name)
        return Output(name, dtype, shape, donor=None, ranges=(), init=init)
    ranges = tuple(_range(plan, piece) for piece in tensor["pieces"])
    donor = tensor["pieces"][0]["donor"]
    dtype = plan.dtype_of(tensor["dtype"], donor, keep_fp32=keep)
    return Output(name, dtype, shape, donor=donor, ranges=ranges)


def _range(plan: Plan, piece: Mapping[str, Any]) -> Range:
    tensor = plan.donors[piece["donor"]].checkpoint.tensors[piece["tensor"]]
    item = BITS[tensor.dtype] // 8
    return Range(
        file=tensor.file,
        start=tensor.start + piece["start"] * item,
        nbytes=(piece["stop"] - piece["start"]) * item,
        dtype=tensor.dtype,
        tensor=tensor.name,
    )


def _init(plan: Plan, name: str) -> tuple[str, str]:
    """(bridge, parameter of it)."""
    prefixes = {where: f"{tensor_prefix(where)}." for where in plan.bridges}
    where = next(where for where, prefix in prefixes.items() if name.startswith(prefix))
    return where, name.removeprefix(prefixes[where])


def tensor_prefix(where: str) -> str:
    """Where the parameters of a bridge lie among the hybrid's tensors."""
    return f"model.layers.{where}" if "." in where else f"model.bridges.{where}"

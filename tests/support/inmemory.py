"""Hybrids out of models in memory, through the same layout that a build copies bytes by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.runtime import HybridConfig, HybridForCausalLM
from hybridize.torch_model.layout import OutTensor, hybrid_layout

SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
State = Mapping[str, Tensor]
Slot = tuple[str, int] | dict[str, Any]


def as_disk(state: State) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the safetensors headers of a state dict would say."""
    return {k: (SAFETENSORS_DTYPES[v.dtype], tuple(v.shape)) for k, v in state.items()}


def gather(out: OutTensor, states: Mapping[str, State]) -> Tensor:
    """The output tensor that the layout describes, out of the donors' tensors."""
    parts = [states[p.donor][p.tensor].reshape(-1)[p.start : p.stop] for p in out.pieces]
    return torch.cat(parts).reshape(out.shape)


def hybrid_config(
    donors: Mapping[str, PreTrainedModel],
    slots: Sequence[Slot],
    *,
    embeddings: str | None = None,
    head: str | None = None,
    bridges: Mapping[Any, dict[str, Any]] | None = None,
    tie: bool = False,
    **options: Any,
) -> HybridConfig:
    """Slots as ("donor", layer) or as the dicts of config.json."""
    spelt = [{"donor": s[0], "layer": s[1]} if isinstance(s, tuple) else s for s in slots]
    return HybridConfig(
        donors={name: json.loads(m.config.to_json_string()) for name, m in donors.items()},
        slots=spelt,
        embeddings=embeddings or spelt[0]["donor"],
        head=head or spelt[-1]["donor"],
        bridges={str(k): v for k, v in (bridges or {}).items()},
        tie_word_embeddings=tie,
        **options,
    )


def assemble(
    donors: Mapping[str, PreTrainedModel],
    slots: Sequence[Slot],
    *,
    states: Mapping[str, State] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> HybridForCausalLM:
    """A hybrid in evaluation mode; computed tensors (bridges) keep their seeded initialisation."""
    config = hybrid_config(donors, slots, **options)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        model = HybridForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    fill(model, states or {name: donor.state_dict() for name, donor in donors.items()})
    return model


def fill(model: HybridForCausalLM, states: Mapping[str, State]) -> None:
    """Load the donors' tensors into a hybrid."""
    disks = {name: as_disk(state) for name, state in states.items()}
    layout = hybrid_layout(model.config.to_dict(), disks)
    given = {out.name: gather(out, states) for out in layout if out.pieces}
    missing, unexpected = model.load_state_dict(given, strict=False)
    computed = {out.name for out in layout if not out.pieces}
    assert not unexpected, unexpected
    assert set(missing) == computed | set(model.all_tied_weights_keys), missing


def depth(donor: PreTrainedModel) -> int:
    return len(donor.config.get_text_config().per_layer_config)


def identity(donor: PreTrainedModel, **options: Any) -> HybridForCausalLM:
    """All layers of one donor, in order."""
    return assemble({"only": donor}, [("only", i) for i in range(depth(donor))], **options)

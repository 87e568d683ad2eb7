"""Layers called by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Picks = Sequence[tuple[str, int]]


IDS = torch.randint(3, 64, (2, 11), generator=torch.Generator().manual_seed(0))


MASK = torch.ones_like(IDS)


def parts(model: PreTrainedModel) -> tuple[str, nn.ModuleList, str]:
    """Path of the layers, the layers, and the path of the final norm."""
    depth = model.config.num_hidden_layers
    path, layers = next(
        (p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth
    )
    parent = path.rpartition(".")[0]
    norms = [
        n for n, _ in model.get_submodule(parent).named_children() if "norm" in n or n == "ln_f"
    ]
    return path, layers, f"{parent}.{norms[-1]}"


@torch.no_grad()
def by_hand(
    donors: Mapping[str, PreTrainedModel], picks: Picks, embeddings: str, head: str
) -> Tensor:
    """Logits of a stack whose layers are called one after the other, as their donors call them."""
    calls: dict[tuple[str, int], tuple[Any, Any]] = {}
    step = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
    for name, donor in donors.items():
        handles = []
        for index, layer in enumerate(parts(donor)[1]):

            def keep(_: Any, args: Any, kwargs: Any, key: tuple[str, int] = (name, index)) -> None:
                calls[key] = (args, kwargs)

            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
        donor(**step)
        for handle in handles:
            handle.remove()

    hidden = calls[embeddings, 0][0][0]
    for donor_name, index in picks:
        args, kwargs = calls[donor_name, index]
        out = parts(donors[donor_name])[1][index](hidden, *args[1:], **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out

    def stack(_: Any, args: Any, out: Any) -> Any:
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = parts(donors[head])[1][-1].register_forward_hook(stack)
    logits: Tensor = donors[head](**step).logits
    handle.remove()
    return logits

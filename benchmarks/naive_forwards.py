"""Sensitivity the naive way: one whole forward pass for each perturbed layer, by forward hooks.

The model is any that transformers loads, and nothing of our engine runs in it. Only what is done to
an update is shared (`Variant.change`), so that both ways draw the same numbers.

Shapes: W variants, L layers, N scored positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.diagnostics.measure.variants import Variant

# As the architectures of transformers call what mixes tokens, and what does not.
MIXERS = ("self_attn", "linear_attn", "attention", "attn", "mamba", "mixer", "conv")
MLPS = ("mlp", "feed_forward", "block_sparse_moe")


def layers_of(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of a model's layers: the one that is as long as the model is deep."""
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


@torch.no_grad()
def naive_js(
    model: nn.Module,
    tokens: Tensor,
    places: tuple[Tensor, Tensor],
    variants: Sequence[Variant],
    *,
    depth: int,
) -> Tensor:
    """Divergence of the outcome under each variant of each layer, by W x L + 1 forward passes.

    Args:
        tokens: (batch, tokens).
        places: rows and columns of the scored positions, (N,) each.

    Returns:
        (W, L, N), in nats; NaN where a layer has no such part.
    """
    clean = naive_logits(model, tokens, places)
    js = torch.full((len(variants), depth, len(clean)), torch.nan, dtype=torch.float64)
    for w, variant in enumerate(variants):
        for layer in range(depth):
            with perturbing(layers_of(model, depth)[layer], variant, layer) as there:
                if there:
                    js[w, layer] = _divergence(clean, naive_logits(model, tokens, places))
    return js


@torch.no_grad()
def naive_logits(model: nn.Module, tokens: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """What the model itself says at some positions, (N, V), float32."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[places].float()


@contextmanager
def perturbing(layer: nn.Module, variant: Variant, index: int) -> Iterator[bool]:
    """Hooks on a layer, or on its mixer or MLP; False: it has none."""
    assert variant.acts_on in ("update", "output"), "a hook behind a module sees no more"
    names = {"layer": (), "mixer": MIXERS, "mlp": MLPS}[variant.part]
    parts = [child for name, child in layer.named_children() if name in names]
    modules = [layer] if variant.part == "layer" else parts
    # A layer gives the stream, with what came from below; its parts give updates alone.
    adds = variant.part == "layer" and variant.acts_on == "update"
    hook = _hook(variant.change(index), adds=adds)
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield bool(handles)
    finally:
        for handle in handles:
            handle.remove()


def _hook(change: Callable[[Tensor], Tensor], *, adds: bool) -> Callable[..., Any]:
    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        gave = output[0] if isinstance(output, tuple) else output
        if adds:
            given = next(iter(inspect.signature(module.forward).bind(*args, **kwargs).args))
            changed = given + change(gave - given)
        else:
            changed = change(gave)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return after


def _divergence(logits_NV: Tensor, others_NV: Tensor) -> Tensor:
    """Jensen-Shannon, as the entropy of the middle less the mean of the entropies, (N,)."""
    p, q = logits_NV.double().softmax(-1), others_NV.double().softmax(-1)

    def entropy(one: Tensor) -> Tensor:
        return -torch.special.xlogy(one, one).sum(-1)

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2

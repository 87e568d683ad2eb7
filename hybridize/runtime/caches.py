"""What a cache that several donors share is asked beside keys, values and states.

Part of the code of every hybrid: see `modeling_hybridize`.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer


def count_tokens(cache: Cache | None) -> None:
    """Give the cache of a stack without any attention layer one more entry that counts tokens.

    Recurrent layers do not know how many tokens they have seen, but donors like Qwen3-Next ask the
    cache for it. An ordinary entry whose keys have width one can all that generation asks for;
    transformers takes one of width zero for empty.
    """
    if cache is not None and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        cache.layers.append(DynamicLayer())


def note_length(cache: Cache | None) -> None:
    """Note in a cache that has recurrent states how many tokens are in them."""
    length = croppable_length(cache)
    if length is not None:
        cache.__dict__["_hybridize_length"] = length


def refuse_cropped(cache: Cache | None) -> None:
    """`Cache.crop` takes tokens back from attention, but leaves a recurrent state as it is."""
    length = croppable_length(cache)
    if length is not None and 0 < length < cache.__dict__.get("_hybridize_length", 0):
        raise ValueError(
            "this cache was cropped, but its recurrent states cannot go back to an earlier token: "
            "start again with an empty cache"
        )


def croppable_length(cache: Cache | None) -> int | None:
    """Tokens in a cache that has recurrent states beside entries that can be cropped, else None."""
    if cache is None or torch.compiler.is_compiling():
        return None
    recurrent = any(
        any(getattr(layer, "is_recurrent_states_initialized", {}).values())
        for layer in cache.layers
    )
    counter = next((layer for layer in cache.layers if isinstance(layer, DynamicLayer)), None)
    return counter.get_seq_length() if recurrent and counter is not None else None

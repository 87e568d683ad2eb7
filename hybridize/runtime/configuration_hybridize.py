"""Configuration of a causal language model assembled from the layers of several pretrained ones.

This file is copied into the folder of every hybrid, where it is remote code: it imports nothing
but the standard library and transformers.
"""

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

# A sub-module with one of these words in its name is an MLP; any other is a mixer, and brings
# its own kind of cache into the slot where it is put.
MLP_NAME = re.compile(r"mlp|moe|ffn|feed_forward|expert")

# What a donor's own config says about its outputs is not for us: the hybrid's config decides.
OUTPUT_FLAGS = (
    "dtype",
    "torch_dtype",
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)
# Read by `generate`, serving engines and trainers; the head donor's value, else any donor's.
INHERITED = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "max_position_embeddings",
    "initializer_range",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
# What transformers' caches read of each layer, and what stands for slots that do not have it.
PER_LAYER = {
    "sliding_window": None,
    "attention_chunk_size": None,
    "number_of_conv_states": 1,
    "num_key_value_heads": None,
    "head_dim": None,
    "qk_head_dim": None,
}
WITHOUT_KEYS = ("linear_attention", "conv", "dummy")
# The files beside config.json, for processes without hybridize.
AUTO_MAP = {
    "AutoConfig": "configuration_hybridize.HybridConfig",
    "AutoModel": "modeling_hybridize.HybridModel",
    "AutoModelForCausalLM": "modeling_hybridize.HybridForCausalLM",
}
DERIVED = ("layer_types", "per_layer_config", "num_hidden_layers", "hidden_size", "vocab_size")


class HybridConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Which donor's layer stands in each slot, and who embeds, reads out, and bridges.

    Args:
        donors: name -> the content of that donor's config.json, unedited.
        slots: one entry per depth, from the embedding upwards: `{"donor": name, "layer": index}`,
            with `"swap": {path: {"donor", "layer", "module"}}` where a sub-module of the layer is
            replaced by one of another donor. Around a swap of another width or lineage stand
            `"bridges": {"enter": {"kind", "in", "out", ...}, "leave": {...}}`. `"made": true` marks
            a layer that was made as a bridge, and not taken over as it was.
        embeddings: the donor whose embedding, and whatever it does to it, makes the first state.
        head: the donor whose final norm, output head and loss are used.
        bridges: slot index, or "head" -> `{"kind", "in", "out", ...}`: stands before that slot,
            or before the final norm.

    Everything else that transformers reads from a config (`layer_types`, `num_hidden_layers`,
    `vocab_size`, token ids, ...) is derived from the donors each time, never stored by hand.
    """

    model_type = "hybridize"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        donors: dict[str, dict[str, Any]] | None = None,
        slots: list[dict[str, Any]] | None = None,
        embeddings: str = "",
        head: str = "",
        bridges: dict[str, dict[str, Any]] | None = None,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.donors = donors or {}
        self.slots = slots or []
        self.embeddings = embeddings
        self.head = head
        self.bridges = {str(where): bridge for where, bridge in (bridges or {}).items()}
        self.use_cache = use_cache
        for key in DERIVED:
            kwargs.pop(key, None)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        # A transformers default without arguments (`HybridConfig()`) has no slots to derive from.
        derived = self._derive() if self.slots else {}
        super().__init__(**{**derived, **kwargs, "tie_word_embeddings": tie_word_embeddings})

    def donor_config(self, name: str) -> PreTrainedConfig:
        """The part of a donor's config that is a language model's."""
        return self.whole_donor_config(name).get_text_config(decoder=True)

    def whole_donor_config(self, name: str) -> PreTrainedConfig:
        """One donor's config as its own class reads it, with other modalities if it has any."""
        return read_config({k: v for k, v in self.donors[name].items() if k not in OUTPUT_FLAGS})

    def set_vocab_size(self, name: str, vocab_size: int) -> None:
        """After a resize of the embeddings: all that is ever edited in a donor's config."""
        content = dict(self.donors[name])
        if "text_config" in content:
            content["text_config"] = {**content["text_config"], "vocab_size": vocab_size}
        else:
            content["vocab_size"] = vocab_size
        self.donors = {**self.donors, name: content}

    def cache_donors(self) -> list[str]:
        """Whose cache each slot fills: its donor's, unless its mixer is another donor's."""
        return [self._cache_source(slot)["donor"] for slot in self.slots]

    @staticmethod
    def _cache_source(slot: dict[str, Any]) -> dict[str, Any]:
        swaps: dict[str, dict[str, Any]] = slot.get("swap", {})
        for source in swaps.values():
            if not MLP_NAME.search(source["module"]):
                return source
        return slot

    def _derive(self) -> dict[str, Any]:
        configs = {name: self.donor_config(name) for name in self.donors}
        derived = self._derive_cache(configs)
        first, last = configs[self.embeddings], configs[self.head]
        derived["num_hidden_layers"] = len(self.slots)
        derived["hidden_size"] = first.hidden_size
        derived["vocab_size"] = first.vocab_size
        for key in INHERITED:
            # Plain getattr raises on donors whose layers differ in this field (Gemma4).
            values = (
                c._getattr_without_heterogeneous_validation(key, None)
                for c in (last, *configs.values())
            )
            value = next((v for v in values if v is not None), None)
            if value is not None or key.endswith("token_id"):
                derived.setdefault(key, value)
        return derived

    def _derive_cache(self, configs: dict[str, PreTrainedConfig]) -> dict[str, Any]:
        """`layer_types` and what goes with them: all that transformers' caches are made from."""
        kinds = {name: get_layer_types_and_kwargs(config) for name, config in configs.items()}
        layer_types, per_layer = [], []
        for slot in self.slots:
            source = self._cache_source(slot)
            layer_type, options = (of_layer[source["layer"]] for of_layer in kinds[source["donor"]])
            # "dummy" is what transformers turns "moe" into, but a config that says it is refused.
            layer_types.append("moe" if layer_type == "dummy" else layer_type)
            if "config" in options:
                model_type = configs[source["donor"]].model_type
                raise NotImplementedError(f"{model_type}: the cache of {layer_type} is its own")
            fields = {}
            if "sliding_window" in options:
                chunked = layer_type == "chunked_attention"
                fields["attention_chunk_size" if chunked else "sliding_window"] = options[
                    "sliding_window"
                ]
            if options.get("number_of_states", 1) != 1:
                fields["number_of_conv_states"] = options["number_of_states"]
            if layer_type not in WITHOUT_KEYS:
                fields |= _head_shape(configs[source["donor"]].per_layer_config[source["layer"]])
            per_layer.append(fields)
        return {"layer_types": layer_types, **_shared_or_per_layer(per_layer)}


def read_config(content: dict[str, Any]) -> PreTrainedConfig:
    """The content of a config.json, as `from_pretrained` would read it.

    Keys that this version of transformers expects may be missing and old names may stand there:
    only the config class knows the defaults. Infinity is spelt `{"__float__": "Infinity"}`.
    """
    content = PreTrainedConfig._decode_special_floats(content)
    return CONFIG_MAPPING[content["model_type"]].from_dict(content)


def _head_shape(layer: PreTrainedConfig) -> dict[str, Any]:
    """Of the keys and values that a layer caches, in the names and by the rule of transformers.

    Two sizes, of keys and of values (latent attention), are told by `qk_head_dim`: a static cache
    then waits for the first keys.
    """
    heads = getattr(layer, "num_attention_heads", None)
    if heads is None:
        return {}
    shape = {
        "num_key_value_heads": getattr(layer, "num_key_value_heads", None) or heads,
        "head_dim": getattr(layer, "head_dim", None) or layer.hidden_size // heads,
    }
    latent = getattr(layer, "qk_head_dim", None)
    return shape if latent is None else {**shape, "qk_head_dim": latent}


def _shared_or_per_layer(per_layer: list[dict[str, Any]]) -> dict[str, Any]:
    """One value for the model where all slots that have the field agree, else one for each slot.

    Two donors may have different windows: transformers expresses that by `per_layer_config`, and
    refuses to read such a field of the whole model.
    """
    shared: dict[str, Any] = {}
    for key, default in PER_LAYER.items():
        values = {fields[key] for fields in per_layer if key in fields}
        if len(values) == 1:
            shared[key] = values.pop()
            per_layer = [{k: v for k, v in fields.items() if k != key} for fields in per_layer]
        elif values:
            shared[key] = default
    if any(per_layer):
        shared["per_layer_config"] = {i: fields for i, fields in enumerate(per_layer) if fields}
    return shared


__all__ = ["HybridConfig", "read_config"]

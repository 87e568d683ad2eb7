"""Can a stack be a model of its donors' own architecture? What their configs alone say (no torch).

Two questions, both about config.json: do the donors agree in everything that reaches a layer from
outside it (`obstacle`), and what does the config of the stack look like (`rewrite_depth`)? Neither
is a proof: `hybridize.assembler.worker.proof` builds the models and compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]


class NotExpressible(Exception):
    """The architecture's config has no way to say which layers stand where."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# ---- fields that speak of depth ------------------------------------------------------------------

NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")

# Lists with one entry per layer.
PER_LAYER = (
    "activation_sparsity_pattern",
    "attention_layers",
    "block_types",
    "indexer_types",
    "intermediate_size",  # of Gemma3n; a number elsewhere
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
)

# Lists of the layers that have some property.
LAYER_SETS = (
    "attn_layer_indices",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "moe_layers",
    "ple_layer_ids",
)

# How many layers at the bottom have a dense MLP.
DENSE_PREFIXES = ("first_k_dense_replace", "num_dense_layers")

# (period, offset) of a property: layer i has it if i % period == offset.
PERIODS = (
    ("attn_layer_period", "attn_layer_offset"),
    ("expert_layer_period", "expert_layer_offset"),
)

EXPERTS_RANGE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")

# Rules by which a config class fills a per-layer list that its file leaves out; the list counts.
LIST_RULES = (
    "_sliding_window_pattern",
    "attention_types",
    "global_attn_every_n_layers",
    "hybrid_override_pattern",
    "interleave_moe_layer_step",
    "layer_group_size",
    "max_window_layers",
    "no_rope_layer_interval",
    "sliding_window_pattern",
)

# How many layers above the stack predict further tokens. transformers leaves them out and they are
# not copied; other programs would look for them.
FURTHER_TOKENS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")

DEPTH = frozenset(
    {
        *NUM_LAYERS,
        *PER_LAYER,
        *LAYER_SETS,
        *DENSE_PREFIXES,
        *(field for pair in PERIODS for field in pair),
        *EXPERTS_RANGE,
        *LIST_RULES,
        *FURTHER_TOKENS,
        "decoder_sparse_step",
        "mlp_only_layers",
        "num_kv_shared_layers",
        "per_layer_config",
    }
) - {"intermediate_size"}

# ---- fields that donors need not agree in --------------------------------------------------------

# Every other field decides, also one that nobody has heard of.
INDIFFERENT = frozenset(
    {
        # who wrote the file, and which class it was written for: the stack's own are written anew
        "_name_or_path",
        "architectures",
        "auto_map",
        "model_name",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # what a call returns, and the labels of classifiers
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "use_cache",
        # the dtype and the tying of the stack are decided by the plan
        "dtype",
        "tie_word_embeddings",
        "torch_dtype",
        # the vocabulary is that of the embeddings' donor, with its token ids
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "vocab_size",
        # values that fresh weights are drawn with
        "final_w_init_variance_scale",
        "init_std",
        "initializer_range",
    }
)

NESTED = ("text_config", "language_config", "llm_config", "thinker_config")


def obstacle(configs: Mapping[str, Config]) -> str | None:
    """Why these donors cannot go into one model of their architecture, as far as configs tell.

    A field that one donor's file leaves out has a default that only its class knows, so it is no
    obstacle here; the proof asks again with all defaults filled in.

    Args:
        configs: donor name -> content of its config.json.

    Returns:
        A reason that names the field, both donors and both values; None if there is none.
    """
    for name, config in configs.items():
        if nested := next((field for field in NESTED if field in config), None):
            return f"{name} is a multimodal model: its language model's config is nested ({nested})"
    (first, ours), *others = configs.items()
    for second, theirs in others:
        if ours.get("model_type") != theirs.get("model_type"):
            return _differ("model_type", first, ours, second, theirs)
        for field in sorted(deciding(ours) & deciding(theirs)):
            if ours[field] != theirs[field]:
                return _differ(field, first, ours, second, theirs)
    return None


def deciding(config: Config) -> set[str]:
    """The fields of a config that every donor of one native model must agree in."""
    fields = set(config) - DEPTH - INDIFFERENT
    if isinstance(config.get("intermediate_size"), list):
        fields.discard("intermediate_size")
    if _rotates_by_position_alone(config):
        # Fine-tunes of one base often state another length; no layer of theirs reads it.
        fields.discard("max_position_embeddings")
    if config.get("use_sliding_window") is False:
        fields.discard("sliding_window")
    return fields


def _rotates_by_position_alone(config: Config) -> bool:
    """Whether rotary frequencies are the plain ones, which do not depend on the longest input."""
    scaling = [config.get("rope_scaling"), config.get("rope_parameters")]
    spelt = [rope for rope in scaling if isinstance(rope, dict)]
    nested = [kind for rope in spelt for kind in rope.values() if isinstance(kind, dict)]
    kinds = {rope.get("rope_type", rope.get("type")) for rope in (*spelt, *nested)}
    has_rotary = bool(spelt) or "rope_theta" in config
    return has_rotary and kinds <= {"default", None}


def _differ(field: str, first: str, ours: Config, second: str, theirs: Config) -> str:
    a, b = ours.get(field), theirs.get(field)
    while isinstance(a, dict) and isinstance(b, dict):
        key = min(key for key in {*a, *b} if a.get(key) != b.get(key))
        field, a, b = f"{field}.{key}", a.get(key), b.get(key)
    return f"{field} differs: {first} has {_short(a)}, {second} has {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- the config of the stack ---------------------------------------------------------------------

# Of each slot: its donor's config, and which of its layers stands there.
Slots = Sequence[tuple[Config, int]]


def rewrite_depth(
    config: Config, picks: Sequence[tuple[str, int]], configs: Mapping[str, Config]
) -> dict[str, Any]:
    """The config of a stack: each field that speaks of depth says it of the slots.

    Args:
        config: what the result is made from (the embeddings' donor's), with all defaults filled in.
        picks: (donor, layer) of each slot, from the embedding upwards; layers count from 0.
        configs: donor name -> its config, with all defaults filled in.

    Raises:
        NotExpressible: the architecture can state a pattern only (a dense prefix, a period), and
            the slots follow none.
    """
    slots = [(configs[donor], layer) for donor, layer in picks]
    new = dict(config)
    for rewrite in (
        _counts_and_lists,
        _layer_sets,
        _dense_mlps,
        _dense_prefix,
        _periods,
        _experts_range,
        _shared_keys,
        _overrides,
    ):
        new |= rewrite(config, slots)
    return new


def _counts_and_lists(config: Config, slots: Slots) -> dict[str, Any]:
    counts = {field: len(slots) for field in NUM_LAYERS if isinstance(config.get(field), int)}
    lists = {
        field: [_entry(c, field, layer) for c, layer in slots]
        for field in PER_LAYER
        if isinstance(config.get(field), list)
    }
    if "attention_layers" in lists:  # GPT-Neo writes its list a second time, as repeated patterns
        lists["attention_types"] = [[lists["attention_layers"], 1]]
    if lists.get("indexer_types", ["full"])[0] == "shared":
        raise NotExpressible("the lowest slot would take its choice of tokens from a layer below")
    return counts | lists | {field: 0 for field in FURTHER_TOKENS if config.get(field)}


def _entry(config: Config, field: str, layer: int) -> Any:
    entries = config[field]
    # RecurrentGemma spells one period, which its class repeats.
    return entries[layer % len(entries)] if field == "block_types" else entries[layer]


def _where(slots: Slots, has: Callable[[Config, int], bool]) -> list[int]:
    """The slots whose layer has a property in its own donor."""
    return [slot for slot, (config, layer) in enumerate(slots) if has(config, layer)]


def _layer_sets(config: Config, slots: Slots) -> dict[str, Any]:
    return {
        field: [slot for slot, (c, layer) in enumerate(slots) if layer in (c.get(field) or ())]
        for field in LAYER_SETS
        if any(c.get(field) is not None for c, _ in slots)
    }


def _dense_mlps(config: Config, slots: Slots) -> dict[str, Any]:
    """Qwen's experts: a list of dense layers can say what its step cannot."""

    def dense(c: Config, layer: int) -> bool:
        return layer in (c["mlp_only_layers"] or ()) or (layer + 1) % c["decoder_sparse_step"] != 0

    if not {"mlp_only_layers", "decoder_sparse_step"} <= set(config):
        return {}
    return {"mlp_only_layers": _where(slots, dense), "decoder_sparse_step": 1}


def _dense_prefix(config: Config, slots: Slots) -> dict[str, Any]:
    rewritten: dict[str, Any] = {}
    for field in DENSE_PREFIXES:
        if config.get(field) is None:
            continue
        dense = [slot for slot, (c, layer) in enumerate(slots) if layer < c[field]]
        if dense == list(range(len(dense))):
            rewritten[field] = len(dense)
        elif "mlp_layer_types" not in config:  # which says it slot by slot
            sparse = min(set(range(len(slots))) - set(dense))
            raise NotExpressible(
                f"{field} makes the lowest layers dense, but slot {dense[-1]} is dense "
                f"above slot {sparse}, which has experts"
            )
    return rewritten


def _periods(config: Config, slots: Slots) -> dict[str, Any]:
    """Jamba: the shortest period that puts the slots right."""
    rewritten: dict[str, Any] = {}
    for period, offset in PERIODS:
        if period not in config or "layers_block_type" in config:
            continue
        if period == "expert_layer_period" and config.get("num_experts") == 1:
            continue  # all MLPs are dense
        wanted = [s for s, (c, layer) in enumerate(slots) if layer % c[period] == c[offset]]
        rewritten[period], rewritten[offset] = step, first = _shortest_period(wanted, len(slots))
        if first >= step or [*range(first, len(slots), step)] != wanted:
            raise NotExpressible(
                f"{period} and {offset} can state a period only, and slots {_some(wanted)} follow "
                "none"
            )
    return rewritten


def _shortest_period(wanted: Sequence[int], depth: int) -> tuple[int, int]:
    """Period and offset that put a property into slots of a stack, if any do."""
    if not wanted:
        return depth + 1, depth  # longer than the stack: beyond its end
    first = wanted[0]
    return (wanted[1] - first if len(wanted) > 1 else max(first + 1, depth - first)), first


def _some(slots: Sequence[int]) -> str:
    return ", ".join(map(str, slots[:8])) + (", ..." if len(slots) > 8 else "")


def _experts_range(config: Config, slots: Slots) -> dict[str, Any]:
    """Ernie: every n-th layer between two has experts."""
    start, end, interval = EXPERTS_RANGE
    if start not in config:
        return {}

    def has_experts(c: Config, layer: int) -> bool:
        return layer in range(c[start], c[end] + 1) and (layer + 1) % c[interval] == 0

    wanted = _where(slots, has_experts)
    first, last = (wanted[0], wanted[-1]) if wanted else (len(slots), len(slots))
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
    if wanted != [i for i in range(first, last + 1) if (i + 1) % step == 0 and i < len(slots)]:
        raise NotExpressible(
            f"{start}, {end} and {interval} can state every n-th layer of a range only, and slots "
            f"{_some(wanted)} are none"
        )
    return {start: first, end: last, interval: step}


def _shared_keys(config: Config, slots: Slots) -> dict[str, Any]:
    """Gemma 3n and 4: how many layers at the top read the keys of layers below."""
    if not config.get("num_kv_shared_layers"):
        return {}
    sharing = _where(slots, lambda c, i: i >= c["num_hidden_layers"] - c["num_kv_shared_layers"])
    if sharing != list(range(len(slots) - len(sharing), len(slots))):
        raise NotExpressible(
            "num_kv_shared_layers makes the highest layers share keys, but slot "
            f"{sharing[0]} does so below one that does not"
        )
    return {"num_kv_shared_layers": len(sharing)}


def _overrides(config: Config, slots: Slots) -> dict[str, Any]:
    """What single layers override of the config around them."""
    if not config.get("per_layer_config"):
        return {}
    overrides = {}
    for slot, (c, layer) in enumerate(slots):
        own = {int(index): fields for index, fields in (c["per_layer_config"] or {}).items()}
        if layer in own:
            overrides[str(slot)] = own[layer]
    return {"per_layer_config": overrides}

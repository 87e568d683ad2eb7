"""Proves that a stack is a model of its donors' own architecture, or says why it is not.

Four steps, each of which must hold; none of them reads a weight:

1. Read through their class, with every default filled in, the donors' configs agree in all that
   reaches a layer from outside it (`native.obstacle`).
2. The config of the stack can be written (`native.rewrite_depth`) and its class accepts it.
3. Built without memory, each slot's layer equals its donor's: classes, shapes, attributes and the
   values of buffers; so does what stands around the layers.
4. Run with recorders in the layers' places, the architecture's own forward calls each slot with
   what the donor's calls that layer with: the same kind of mask, rotary angles, residual stream.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hybridize.architectures.native import (
    DEPTH,
    NUM_LAYERS,
    PER_LAYER,
    NotExpressible,
    obstacle,
    rewrite_depth,
)

Picks = Sequence[tuple[str, int]]

# A layer's number addresses its entry in the cache; no forward computes with it. What a class
# derives from the number when it is built is an attribute of its own, and compared.
LAYER_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"})


@dataclass(frozen=True)
class NativeProof:
    """Either the config.json of the native model, or the reason why there is none."""

    config: dict[str, Any] | None
    reason: str | None


class NotNative(Exception):
    """A step of the proof failed; the message is the reason."""


def prove_native(
    configs: Mapping[str, Mapping[str, Any]],
    picks: Picks,
    *,
    embeddings: str,
    head: str,
    tied: bool,
) -> NativeProof:
    """Prove that a stack of whole layers, without bridges, is a model that transformers knows.

    Args:
        configs: donor name -> content of its config.json; unused donors are ignored.
        picks: (donor, layer) of each slot, from the embedding upwards; layers count from 0.
        embeddings: donor of the embedding, the token ids, and parameters outside the layers.
        head: donor of final norm and output head.
        tied: whether the head is the embedding.
    """
    used = {embeddings, head, *(donor for donor, _ in picks)}
    raw = {name: config for name, config in configs.items() if name in used}
    try:
        return NativeProof(_prove(raw, picks, embeddings, head, tied), None)
    except (NotNative, NotExpressible) as refuted:
        return NativeProof(None, str(refuted))


def _prove(
    raw: Mapping[str, Mapping[str, Any]], picks: Picks, embeddings: str, head: str, tied: bool
) -> dict[str, Any]:
    _require_none(obstacle(raw))
    donors = {name: _config(name, config) for name, config in raw.items()}
    expanded = {name: config.to_dict() for name, config in donors.items()}
    fields = {field: None for config in expanded.values() for field in config}
    _require_none(obstacle({name: fields | config for name, config in expanded.items()}))
    if len({expanded[name].get("vocab_size") for name in (embeddings, head)}) > 1:
        raise NotNative(
            f"vocab_size differs: the embeddings of {embeddings} have "
            f"{expanded[embeddings]['vocab_size']} tokens, the head of {head} "
            f"{expanded[head]['vocab_size']}"
        )
    rewritten = rewrite_depth(expanded[embeddings], picks, expanded)
    rewritten["tie_word_embeddings"] = tied
    stack = _config("the stack", rewritten)

    models = {name: _build(name, config) for name, config in donors.items()}
    stack_model = _build("the stack", stack)
    if bool(stack_model.all_tied_weights_keys) is not tied:
        class_name = type(stack_model).__name__
        raise NotNative(f"{class_name} {'cannot tie' if tied else 'ties'} head and embedding")
    path = _layers_path(models[embeddings])
    _compare_parts(stack_model, models, path, picks, embeddings, head)
    calls = {name: _calls(name, config, path) for name, config in donors.items()}
    _compare_calls(_calls("the stack", stack, path), calls, picks, head)

    stack.architectures = [type(stack_model).__name__]
    return _plain(stack)


def _require_none(reason: str | None) -> None:
    if reason is not None:
        raise NotNative(reason)


# ---- configs and models --------------------------------------------------------------------------


def _config(name: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A config.json read through its class."""
    kept = {k: v for k, v in fields.items() if k not in ("_name_or_path", "auto_map")}
    model_type = str(kept.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise NotNative(f"transformers knows no model_type {model_type}")
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise NotNative(f"transformers has no causal language model of type {model_type}")
    decoded = config_class._decode_special_floats(kept)
    config: PreTrainedConfig = _attempt(
        f"{config_class.__name__} refuses the config of {name}", config_class.from_dict, decoded
    )
    return config


def _build(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A model on the meta device, whose buffers have the values that loading gives them."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model: PreTrainedModel = _attempt(
            f"the model class refuses the config of {name}", model_class, config
        )
    for parameter in model.parameters():
        vars(parameter)["_is_hf_initialized"] = True  # initialisation is to fill buffers alone
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.zeros_like(buffer, device="cpu")
    _attempt(f"the model class cannot fill the buffers of {name}", model.initialize_weights)
    return model


def _layers_path(model: PreTrainedModel) -> str:
    """Where the layers stand: the outermost list as long as the config says that there are."""
    depths = {getattr(model.config, field, None) for field in NUM_LAYERS}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) in depths:
            return str(path)
    raise NotNative(f"{type(model).__name__} does not have its layers in one list")


def _attempt(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call into transformers; whatever it raises refutes the proof, with its own words."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise NotNative(f"{what}: {words[:300]}") from error


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """What `save_pretrained` would write, in its order of keys."""
    encoded: dict[str, Any] = config._encode_special_floats(config.to_diff_dict())
    return {key: encoded[key] for key in sorted(encoded) if key != "_name_or_path"}


# ---- step 3: the parts ---------------------------------------------------------------------------


def _compare_parts(
    stack: PreTrainedModel,
    donors: Mapping[str, PreTrainedModel],
    path: str,
    picks: Picks,
    embeddings: str,
    head: str,
) -> None:
    slots = _layers(stack, path)
    if len(slots) != len(picks):
        raise NotNative(f"the config of the stack makes {len(slots)} layers of {len(picks)}")
    for slot, (donor, layer) in enumerate(picks):
        ours, theirs = _traits(slots[slot]), _traits(_layers(donors[donor], path)[layer])
        if difference := _first_difference(ours, theirs):
            raise NotNative(f"slot {slot} would not be layer {layer} of {donor}: {difference}")
    for donor in (embeddings, head):
        if difference := _first_difference(_around(stack, path), _around(donors[donor], path)):
            raise NotNative(f"beside its layers it would not be {donor}: {difference}")


def _layers(model: PreTrainedModel, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _around(model: PreTrainedModel, path: str) -> dict[str, Any]:
    """Shapes of the parameters beside the layers; what is done with them shows in step 4."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: tuple(p.shape) for name, p in parameters if not name.startswith(f"{path}.")}


def _first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            return f"only {'the donor' if name in theirs else 'the stack'} has {name}"
        if not _same(ours[name], theirs[name]):
            return f"{name} is {_words(ours[name])} instead of {_words(theirs[name])}"
    return None


def _traits(root: nn.Module) -> dict[str, Any]:
    """Everything that makes a module what it is, weights apart: path -> value."""
    traits: dict[str, Any] = {}
    for path, module in root.named_modules():
        dot = f"{path}." if path else ""
        traits[f"{dot}class"] = type(module).__qualname__
        for name, value in vars(module).items():
            whole_stack = name in LAYER_NUMBERS or (name in PER_LAYER and isinstance(value, list))
            if not name.startswith("_") and not whole_stack and _is_plain(value):
                traits[dot + name] = value
        for name, parameter in module._parameters.items():
            traits[dot + name] = None if parameter is None else tuple(parameter.shape)
        traits |= {dot + name: buffer for name, buffer in module._buffers.items()}
    return traits


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(_is_plain(entry) for entry in value.values())
    return value is None or isinstance(
        value, (str, int, float, bool, Tensor, torch.dtype, type, type(_is_plain))
    )


def _same(a: Any, b: Any) -> bool:
    """Equal values in equal containers; of objects such as a cache, equal classes."""
    ours, our_shape = pytree.tree_flatten(a)
    theirs, their_shape = pytree.tree_flatten(b)
    leaves = zip(ours, theirs, strict=False)
    return our_shape == their_shape and all(_same_leaf(x, y) for x, y in leaves)


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return alike and (a.is_meta or torch.equal(a, b))
    return type(a) is type(b) and (bool(a == b) if _is_plain(a) else True)


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        start = "" if value.is_meta else f": {value.flatten()[:4].tolist()}..."
        return f"a tensor of {list(value.shape)}{start}"
    return str(value)[:80]


# ---- step 4: the calls ---------------------------------------------------------------------------

# Five sequences, since `hidden, weights = layer(...)` would take two apart without an error.
BATCH, LENGTH, WINDOW, VOCABULARY = 5, 9, 4, 16


@dataclass(frozen=True)
class Calls:
    """What the architecture's own forward hands to each layer, and the logits."""

    layers: list[dict[str, Any]]
    logits: Tensor


class _Outputs(tuple):  # type: ignore[type-arg]
    """What a recorder returns where a layer returns `(hidden_states, something)`."""


class _Recorder(nn.Module):
    """Stands in a layer's place, hands the residual stream on, and notes the call."""

    def __init__(self, layer: nn.Module, calls: list[dict[str, Any]], *, bare: bool) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a sub-module: nothing may run or draw it
        self.calls, self.bare = calls, bare

    def __getattr__(self, name: str) -> Any:  # some forwards read e.g. `layer.block_type`
        return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        names = inspect.signature(self.__dict__["layer"].forward).parameters
        call = dict(zip(names, args, strict=False)) | kwargs
        stream = call.pop("hidden_states" if "hidden_states" in call else next(iter(names)))
        stream = stream[0] if isinstance(stream, _Outputs) else stream
        noted = pytree.tree_map_only(Tensor, torch.clone, call | {"hidden_states": stream})
        self.calls.append(noted)
        return stream if self.bare else _Outputs((stream, None))


def _unwrap(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """For `hidden_states = layer(...)`, whose next reader is a recorder or a norm."""
    return tuple(arg[0] if isinstance(arg, _Outputs) else arg for arg in args)


def _calls(name: str, config: PreTrainedConfig, path: str) -> Calls:
    """Run a model's own forward over recorders: left-padded, longer than its windows, eager."""
    small = _config(name, _shrunk(config.to_dict()))
    small._attn_implementation = "eager"  # so that every mask is spelt out
    try:
        return _run(name, small, path, bare=False)
    except NotNative as refuted:
        try:  # it may compute with what a layer returns
            return _run(name, small, path, bare=True)
        except NotNative:
            raise refuted from None


@torch.no_grad()
def _run(name: str, config: PreTrainedConfig, path: str, *, bare: bool) -> Calls:
    model = _build(name, config)
    calls: list[dict[str, Any]] = []
    recorders = [_Recorder(layer, calls, bare=bare) for layer in _layers(model, path)]
    model.set_submodule(path, nn.ModuleList(recorders))
    _draw_parameters(model)
    for module in model.modules():
        module.register_forward_pre_hook(_unwrap)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % VOCABULARY
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    out = _attempt(
        f"the model class cannot run {name}, with stand-ins for the layers",
        model.train(False),
        input_ids=ids,
        attention_mask=mask,
    )
    return Calls(calls, out.logits)


def _shrunk(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config with windows and vocabulary so small that nine tokens show what kinds there are.

    Both sides of the comparison are shrunk alike.
    """

    def shrink(field: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shrink(str(name), inner) for name, inner in value.items()}
        if isinstance(value, bool) or not isinstance(value, int):
            return [0] if field == "eos_token_id" and isinstance(value, list) else value
        if field in DEPTH:
            return value
        if "window" in field or field in ("attention_chunk_size", "local_attention"):
            return min(value, WINDOW)
        if field.startswith("vocab_size"):
            return VOCABULARY
        return 0 if field.endswith("_token_id") else value

    return {field: shrink(field, value) for field, value in fields.items()}


def _draw_parameters(model: nn.Module) -> None:
    """Give the parameters around the layers values that depend on their name alone."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                seed = zlib.crc32(f"{path}.{name}".encode())
                value = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _compare_calls(stack: Calls, donors: Mapping[str, Calls], picks: Picks, head: str) -> None:
    if len(stack.layers) != len(picks):
        raise NotNative(f"the model class runs {len(stack.layers)} layers of {len(picks)}")
    for slot, (donor, layer) in enumerate(picks):
        ours, theirs = stack.layers[slot], donors[donor].layers[layer]
        for argument in [*ours, *(name for name in theirs if name not in ours)]:
            if not _same(ours.get(argument), theirs.get(argument)):
                raise NotNative(
                    f"slot {slot} would be called with another {argument} than layer {layer} "
                    f"of {donor}"
                )
    if not torch.equal(stack.logits, donors[head].logits):
        raise NotNative(f"what follows the layers would differ from {head}")

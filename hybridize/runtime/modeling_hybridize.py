"""A causal language model whose slots hold layers of different pretrained donors.

There is no table of architectures here. Every donor keeps its unedited config and its own model
class, and four ideas make one model out of them:

1. Taking a donor apart (`DonorParts`). The donor's own model is built without memory, on the meta
   device. Its embedding, its layers and its final norm are taken out and become plain modules of
   the hybrid; what remains still knows how to prepare a step.
2. Recording (`Skeleton`). In the layers' places stand recorders. When the donor's own forward
   runs, they note what each layer would have been called with: masks, rotary embeddings,
   positions, everything as transformers itself makes it.
3. Running the slots (`HybridModel`). The real layers stand flat in `model.layers` and run in slot
   order with the noted arguments, sharing one cache. The embedding donor's skeleton gives the
   first hidden state. The head donor's skeleton runs last: where it reaches its last layer the
   whole stack runs instead, and what that donor does after its layers is done by its own code.
4. The head (`HybridForCausalLM`). The head donor's own `*ForCausalLM.forward` makes logits and
   loss out of the last hidden state.

This file is copied into the folder of every hybrid, where it is remote code: it imports nothing
but the standard library, torch, transformers and the configuration beside it.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import ast
import copy
import inspect
import re
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder

from .configuration_hybridize import HybridConfig

logger = logging.get_logger(__name__)

Arguments = dict[str, Any]

# What transformers' models call their cache: older and newer names of one thing.
CACHE_NAMES = ("past_key_values", "cache_params", "layer_past", "past_key_value")
INDICES = {"layer_idx", "layer_id"}
FUSED = (
    "Fused attention does not hand out its weights: `attentions` has those of eager slots alone. "
    "Load the model with attn_implementation='eager' for all of them."
)
WITHOUT_ATTENTION = ("linear_attention", "conv", "moe", "mlp")


# ---- 1. Taking a donor apart -------------------------------------------------------------------


class DonorParts:
    """One donor's model on the meta device, and its parts.

    Attributes:
        shell: the `*ForCausalLM`.
        base: the model around the layers, as deep inside as possible.
        embedding, layers, norm, head: what the hybrid takes (`norm` may be None).
    """

    def __init__(self, name: str, config: PreTrainedConfig) -> None:
        self.name = name
        with torch.device("meta"):
            self.shell = causal_class(config)(config)
        self.embedding = self.shell.get_input_embeddings()
        self.head = self.shell.get_output_embeddings()
        self.base, self.layers = self._find_layers(config.num_hidden_layers)
        self.norm = self._find_norm()
        layers_path = next(path for path, m in self.shell.named_modules() if m is self.layers)
        if any(name.startswith(f"{layers_path}.") for name in self.shell.all_tied_weights_keys):
            self.refuse("its layers share weights")
        self._taken: set[int] = set()
        for module in self.shell.modules():
            module.__dict__["_hybridize_donor"] = name  # whose rules initialise it
            own_class: Any = type(module)
            if forgets_its_state(own_class):
                module.__class__ = continuing(own_class)
                vars(module).setdefault("layer_idx", 0)  # RecurrentGemma's does not keep it

    def layer(self, index: int, *, copied: bool = False) -> nn.Module:
        """Layer `index`; an independent copy if it has been taken before, or is to be altered."""
        layer = self.layers[index]
        if index not in self._taken and not copied:
            self._taken.add(index)
            return layer
        # The configs stay shared: a switch of the attention implementation must reach the copy.
        values = (value for module in layer.modules() for value in vars(module).values())
        return copy.deepcopy(layer, {id(v): v for v in values if isinstance(v, PreTrainedConfig)})

    def refuse(self, reason: str) -> NoReturn:
        model_type = self.shell.config.model_type
        raise NotImplementedError(f"donor {self.name} ({model_type}) cannot be used: {reason}")

    def _find_layers(self, depth: int) -> tuple[PreTrainedModel, nn.ModuleList]:
        # Not `base_model_prefix`: Llama4's names nothing, and OPT's head calls a model within it.
        for path, module in self.shell.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                names = path.split(".")
                around = (self.shell.get_submodule(".".join(names[:i])) for i in range(len(names)))
                base = [m for m in around if isinstance(m, PreTrainedModel)][-1]
                if base is not self.shell:
                    return base, module
        return self.refuse(f"its class has no model inside with a list of {depth} layers")

    def _find_norm(self) -> nn.Module | None:
        """The final norm: it stands beside the list of layers, after it if there are several."""
        found, seen_layers = [], False
        for module in owner_of(self.base, self.layers)[0].children():
            if module is self.layers:
                seen_layers = True
            elif "norm" in type(module).__name__.lower() and module is not self.embedding:
                found.append((seen_layers, module))
        return max(found, key=lambda pair: pair[0])[1] if found else None


@lru_cache(maxsize=1024)
def forgets_its_state(module_class: Any) -> bool:
    """Whether a mixer does not go on from the state in the cache: read from its source.

    Mamba's scan takes no state to begin with, so that several tokens at once start from nothing.
    RecurrentGemma keeps its state in itself, where any other sequence finds it.
    """
    source = inspect.getsource(inspect.unwrap(module_class.forward))
    restarts = "update_recurrent_state" in source and "initial_state" not in source
    return restarts or "self.conv1d_state" in source


@lru_cache(maxsize=256)
def continuing(mixer_class: Any) -> type[nn.Module]:
    """A subclass of a recurrent mixer that goes on from the state in the cache.

    Several tokens at once, as in chunked prefill, are run one by one where there is a state; a
    state that the mixer keeps in itself is read from the cache and put back into it.
    """
    names = list(inspect.signature(mixer_class.forward).parameters)[1:]
    inside = "self.conv1d_state" in inspect.getsource(inspect.unwrap(mixer_class.forward))

    class Continuing(mixer_class):  # type: ignore[misc]
        conv1d_state: Any

        @wraps(mixer_class.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            cache = next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)
            if cache is None:
                return super().forward(**given)
            hidden = given.pop(names[0])
            one_call = partial(self._with_state, cache) if inside else super().forward
            tokens = hidden.shape[1]
            if tokens == 1 or not cache.has_previous_state(self.layer_idx):
                return one_call(hidden, **given)
            parts = [one_call(hidden[:, t : t + 1], **at(given, t, tokens)) for t in range(tokens)]
            states = torch.cat([unpair(part) for part in parts], dim=1)
            return (states, *parts[-1][1:]) if isinstance(parts[-1], tuple) else states

        def _with_state(self, cache: Cache, hidden: Tensor, **given: Any) -> Any:
            self.conv1d_state = cache.get_conv_state(self.layer_idx)
            self.rg_lru.recurrent_states = cache.get_recurrent_state(self.layer_idx)
            output = super().forward(hidden, **given | {"use_cache": True})
            cache.update_conv_state(self.conv1d_state, self.layer_idx)
            cache.update_recurrent_state(self.rg_lru.recurrent_states, self.layer_idx)
            self.conv1d_state = self.rg_lru.recurrent_states = None
            return output

        def __reduce__(self) -> tuple[Any, ...]:  # a class made here cannot be found by its name
            return new_of, (continuing, mixer_class), self.__dict__

    return named_like(Continuing, mixer_class)


def at(arguments: Arguments, token: int, tokens: int) -> Arguments:
    """One token's part of the arguments for several: masks and positions, (batch, tokens, ...)."""
    return {
        name: value[:, token : token + 1]
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens
        else value
        for name, value in arguments.items()
    }


def named_like(made: type[nn.Module], original: Any) -> type[nn.Module]:
    """Give a subclass made here the name of its original: accelerate and PEFT look at names."""
    made.__name__ = made.__qualname__ = original.__name__
    return made


def new_of(make: Callable[[Any], type[nn.Module]], original: Any) -> nn.Module:
    """An empty module of a class that is made here, for pickle and copy to fill."""
    return make(original).__new__(make(original))


def causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # type: ignore[return-value]


def owner_of(root: nn.Module, module: nn.Module) -> tuple[nn.Module, str]:
    """The module of `root` that holds `module`, and under which name."""
    path = next(path for path, candidate in root.named_modules() if candidate is module)
    parent, _, name = path.rpartition(".")
    return root.get_submodule(parent), name


def replace(root: nn.Module, module: nn.Module, stand_in: Any) -> None:
    """Put something that is no module of `root` in the place of one of its modules."""
    parent, name = owner_of(root, module)
    del parent._modules[name]
    parent.__dict__[name] = stand_in


def take_apart(config: HybridConfig) -> dict[str, DonorParts]:
    """All donors of a hybrid, built with the attention and experts implementation it asks for.

    Where it asks for none, each class chooses its own default, as it does when loaded natively.
    """
    donors = {}
    for name in config.donors:
        if hasattr(nn.ModuleDict, name):
            raise ValueError(f"no donor can be called {name!r}: torch's modules have that already")
        donor_config = config.donor_config(name)
        model_class = causal_class(donor_config)
        wanted = supported_attention(model_class, config._attn_implementation)
        donor_config._attn_implementation = wanted
        if model_class._can_set_experts_implementation():
            donor_config._experts_implementation = config._experts_implementation
        donors[name] = DonorParts(name, donor_config)
    return donors


def supported_attention(model_class: type[PreTrainedModel], wanted: str | None) -> str | None:
    """The attention implementation that a donor gets when the hybrid is asked for `wanted`."""
    supported = True
    if wanted == "sdpa":
        supported = model_class._supports_sdpa
    elif wanted == "flex_attention":
        supported = model_class._supports_flex_attn
    elif wanted is not None and "flash" in wanted:
        supported = model_class._supports_flash_attn
    if not supported and wanted != "sdpa":
        logger.warning_once(f"{model_class.__name__} has no {wanted}: its layers stay eager")
    return wanted if supported else "eager"


# ---- 2. Recording ------------------------------------------------------------------------------


class PerThread(threading.local):
    """What a forward leaves for another part of itself; two requests may run at a time.

    `own` is an object of its own, since torch.compile loses what a forward writes into a
    `threading.local` itself where the graph breaks.
    """

    def __init__(self, kind: Callable[[], Any]) -> None:
        self.kind, self.own = kind, kind()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind,)


class Tape:
    """What one skeleton's forward notes: the first hidden state and each layer's arguments."""

    def __init__(self) -> None:
        self.first: Any = None
        self.calls: dict[int, Arguments] = {}
        # Run in the place of the last layer: gives the hidden state after the whole stack.
        self.stack: Callable[[], Tensor] | None = None
        # The skeleton sees its own layers' part of the cache; the layers get the whole.
        self.view: Cache | None = None
        self.cache: Cache | None = None


MORE = object()  # stands for whatever a layer gives beside its hidden state


class Recorder:
    """Takes the place of one donor layer in the skeleton."""

    def __init__(self, layer: nn.Module, index: int, depth: int, tapes: PerThread) -> None:
        for name in {*vars(layer), *vars(type(layer))}:  # some forwards read e.g. `block_type`
            value = getattr(layer, name)
            if not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None))):
                setattr(self, name, value)
        self.index, self.depth, self.tapes = index, depth, tapes
        self.names = list(inspect.signature(layer.forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, object]:
        arguments, tape = dict(zip(self.names, args, strict=False)) | kwargs, self.tapes.own
        hidden = unpair(arguments.pop(self.names[0]))
        if self.index == 0:
            tape.first = hidden
        for name, value in arguments.items():
            if value is tape.view and value is not None:
                arguments[name] = tape.cache
            elif value is MORE:
                raise NotImplementedError(f"donor layers hand each other more than a state: {name}")
        tape.calls[self.index] = arguments
        if tape.stack is not None and self.index == self.depth - 1:
            hidden = tape.stack()
        return hidden, MORE  # a pair fits both `h = layer(...)` and `h, _ = layer(...)`


def unpair(hidden: Any) -> Any:
    return hidden[0] if isinstance(hidden, tuple) else hidden


class StandIn:
    """Stands for `owner.<name>` in a skeleton without being its module a second time.

    By name, since PEFT and `resize_token_embeddings` replace modules.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.__dict__.update(owner=owner, name=name)

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.owner, self.name)(unpair(hidden), *args, **kwargs)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy and pickle probe these before there is an owner
            raise AttributeError(key)
        return getattr(getattr(self.owner, self.name), key)


class NoNorm:
    """Takes the place of the final norm in a skeleton whose outcome nobody reads.

    NanoChat calls it on the embeddings too, where it counts; there it has no weights.
    """

    def __init__(self, norm: nn.Module, tapes: PerThread) -> None:
        self.norm = None if any(True for _ in norm.parameters()) else norm
        self.tapes = tapes

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if self.tapes.own.calls:
            return unpair(hidden)
        if self.norm is None:
            raise NotImplementedError("a donor that norms its embeddings too must be the head")
        return self.norm(hidden, *args, **kwargs)


class Accepts:
    """Picks the keyword arguments that a forward takes; its signature is read only once."""

    def __init__(self, module_class: type[nn.Module]) -> None:
        parameters = inspect.signature(module_class.forward).parameters
        self.names = frozenset(parameters)
        self.any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def __call__(self, arguments: Arguments) -> Arguments:
        if self.any:
            return arguments
        return {name: value for name, value in arguments.items() if name in self.names}


class Skeleton:
    """What is left of a donor: it prepares each step as transformers does.

    The donor's base model itself is `model.donors[name]`, so that its few parameters and buffers
    (GPT-2's positions, rotary tables) belong to the hybrid, and hooks of accelerate reach it.
    """

    def __init__(self, model: "HybridModel", donor: DonorParts) -> None:
        self.model, self.name, self.tapes = model, donor.name, PerThread(Tape)
        base, depth = donor.base, len(donor.layers)
        self.depth, self.width = depth, donor.shell.config.hidden_size
        self.layers_at = owner_of(base, donor.layers)
        recorders = [Recorder(m, i, depth, self.tapes) for i, m in enumerate(donor.layers)]
        replace(base, donor.layers, recorders)
        if any(module is donor.embedding for module in base.modules()):
            replace(base, donor.embedding, StandIn(model, "embed_tokens"))
        if donor.norm is not None:
            is_head = donor.name == model.config.head
            no_norm = NoNorm(donor.norm, self.tapes)
            replace(base, donor.norm, StandIn(model, "norm") if is_head else no_norm)
        self.accepts = Accepts(type(base))
        # Bamba counts positions from 0 at every step if it is not told them.
        counts = "get_seq_length" in inspect.getsource(inspect.unwrap(type(base).forward))
        self.needs_positions = not counts and "position_ids" in self.accepts.names
        self.cache_name = next((n for n in CACHE_NAMES if n in self.accepts.names), "")
        if not self.cache_name:
            donor.refuse("its model takes no cache of transformers")
        if "inputs_embeds" not in self.accepts.names:
            donor.refuse("its model takes no inputs_embeds")

    @property
    def tape(self) -> Tape:
        """What this thread's last run noted."""
        tape: Tape = self.tapes.own
        return tape

    def run(
        self,
        inputs: Arguments,
        step: Arguments,
        cache: Cache | None,
        stack: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Run the donor's own forward; the tape then holds the arguments of every layer.

        With `stack`, that runs in the place of the last layer, and the result is what the donor
        makes of its outcome: the last hidden state after the final norm.
        """
        tape = self.tape
        tape.cache, tape.view = cache, self._view(cache)
        tape.stack, tape.calls = stack, {}
        arguments = self.accepts(step) | inputs | {self.cache_name: tape.view}
        if self.needs_positions and cache is not None and arguments.get("position_ids") is None:
            ids = next(iter(inputs.values()))
            positions = torch.arange(ids.shape[1], device=ids.device)
            arguments["position_ids"] = (positions + cache.get_seq_length())[None]
        try:
            hidden = unpair(self.model.donors[self.name](**arguments)[0])
        finally:
            tape.stack = tape.cache = tape.view = None
        if len(tape.calls) != self.depth:  # a donor that drops layers while training
            raise RuntimeError(f"donor {self.name} called {len(tape.calls)} of {self.depth} layers")
        return hidden

    def placeholder(self, hidden: Tensor) -> Arguments:
        """Inputs for a run that only records: the right shape.

        Not a number: should the donor make an argument of its layers out of the embedded tokens,
        the result shows it at once, and no build of such a stack passes its check.
        """
        # Not one number expanded, which would take no memory: CTRL writes into its input.
        return {"inputs_embeds": hidden.new_full((*hidden.shape[:2], self.width), float("nan"))}

    def clear(self) -> None:
        self.tape.calls, self.tape.first = {}, None

    def _view(self, cache: Cache | None) -> Cache | None:
        """The cache as the donor's mask code must see it: only the slots that are its own.

        Two donors may have different windows: each must find its own when it looks for the first
        sliding layer. A donor whose slots are all recurrent is given one entry that knows the
        number of tokens.
        """
        if cache is None or len(self.model.donors) == 1:
            return cache
        owners = zip(cache.layers, self.model.cache_donors, strict=False)
        own = [layer for layer, owner in owners if owner == self.name]
        if not any(isinstance(layer, CacheLayerMixin) for layer in own):
            own.append(next(m for m in cache.layers if isinstance(m, CacheLayerMixin)))
        return Cache(layers=own)


# ---- 3. Running the slots ----------------------------------------------------------------------


class LinearBridge(nn.Module):
    """An affine map from one donor's stream to the next one's, after an optional RMS norm."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        width, eps = options["in"], options.get("eps", 1e-6)
        self.norm = nn.RMSNorm(width, eps=eps) if options.get("norm") else None
        self.proj = nn.Linear(width, options["out"], bias=bool(options.get("bias")))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.proj(hidden_states if self.norm is None else self.norm(hidden_states))


class IdentityBridge(nn.Module):
    """Nothing: the next donor reads the stream as it is."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        if options["in"] != options["out"]:
            raise ValueError(f"an identity bridge from width {options['in']} to {options['out']}")

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class LowRankBridge(nn.Module):
    """An affine map of low rank; at equal widths it is added to the stream."""

    def __init__(self, options: Arguments) -> None:
        super().__init__()
        width, rank, eps = options["in"], options["rank"], options.get("eps", 1e-6)
        self.norm = nn.RMSNorm(width, eps=eps) if options.get("norm") else None
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, options["out"], bias=bool(options.get("bias")))
        self.adds = width == options["out"]

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states if self.norm is None else self.norm(hidden_states)
        change = self.up(self.down(hidden))
        return hidden + change if self.adds else change


# A bridge of kind `block` is the linear map; the layer behind it stands in a slot of its own.
BRIDGES = {
    "linear": LinearBridge,
    "block": LinearBridge,
    "lowrank": LowRankBridge,
    "identity": IdentityBridge,
}


class SwappedModule(nn.Module):
    """A mixer or MLP of another donor in the place of one of a host layer's own.

    The host calls it as it called its own and gets back what it would have got; the arguments
    that the other donor's layer would have passed on are laid ready by `SwapHost`.
    """

    def __init__(self, module: nn.Module, replaced: nn.Module, spec: Arguments) -> None:
        super().__init__()
        self.module, self.ready = module, PerThread(dict)  # the arguments laid ready for it
        self.accepts, self.returns_tuple = Accepts(type(module)), returns_tuple(type(replaced))
        bridges = {side: BRIDGES[b["kind"]](b) for side, b in spec.get("bridges", {}).items()}
        self.enter, self.leave = bridges.get("enter"), bridges.get("leave")

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given, names = dict(self.ready.own), self.accepts.names
        cache = next((given.pop(name) for name in CACHE_NAMES if name in given), None)
        taken = [name for name in CACHE_NAMES if name in names]
        if not taken and self.accepts.any:  # RecurrentGemma's passes it on unseen: `continuing`
            taken = [CACHE_NAMES[0]]
        given |= dict.fromkeys(taken, cache)
        if "cache_params" in names and "mamba_attention_mask" in given:
            given["attention_mask"] = given["mamba_attention_mask"]  # FalconH1 layers get two masks
        hidden = hidden_states if self.enter is None else self.enter(hidden_states)
        hidden = unpair(self.module(hidden, **self.accepts(given)))
        hidden = hidden if self.leave is None else self.leave(hidden)
        return (hidden, None) if self.returns_tuple else hidden


def returns_tuple(module_class: type[nn.Module]) -> bool:
    """Whether a module's forward gives `(hidden, something)`: read from its source."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(module_class.forward)))
    returns = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    return any(isinstance(node.value, ast.Tuple) for node in returns)


@lru_cache(maxsize=256)
def swap_host(layer_class: Any) -> type[nn.Module]:
    """A subclass of a donor's layer that hands its swapped sub-modules their arguments.

    A subclass, so that the arguments are part of what gradient checkpointing saves and replays:
    transformers' layers checkpoint their outermost forward.
    """

    class SwapHost(layer_class):  # type: ignore[misc]
        def forward(self, hidden_states: Any, *, swapped: Arguments, **kwargs: Any) -> Any:
            for path, arguments in swapped.items():
                self.get_submodule(path).ready.own.update(arguments)
            try:
                return super().forward(hidden_states, **kwargs)
            finally:
                for path in swapped:
                    self.get_submodule(path).ready.own.clear()

        def __reduce__(self) -> tuple[Any, ...]:  # a class made here cannot be found by its name
            return new_of, (swap_host, layer_class), self.__dict__

    return named_like(SwapHost, layer_class)


class HybridPreTrainedModel(PreTrainedModel):
    """What the hybrid's two model classes share: support flags, initialisation, switches."""

    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def _stack(self) -> "HybridModel":
        return self if isinstance(self, HybridModel) else self.model

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False
    ) -> None:
        """As for any model; a donor that lacks the implementation keeps eager attention."""
        if isinstance(attn_implementation, dict):
            attn_implementation = str(attn_implementation[""])
        wanted = self._check_and_adjust_attn_implementation(attn_implementation)
        self.config._attn_implementation_internal = wanted
        for base in self._stack.bases():
            supported = supported_attention(type(base), wanted) or "eager"
            base.set_attn_implementation(supported, allow_all_kernels)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        donor = getattr(module, "_hybridize_donor", None)
        if donor is not None:
            self._stack.donors[donor]._init_weights(module)
        elif isinstance(module, nn.Linear):  # of a bridge
            square = module.in_features == module.out_features
            (init.eye_ if square else init.orthogonal_)(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._stack.initialize_donors()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        resized = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing=mean_resizing
        )
        for name in {self.config.embeddings, self.config.head}:
            # The donors' own code counts the loss by it, and a later load derives it from there.
            self.config.set_vocab_size(name, self.config.vocab_size)
            self._stack.donors[name].config.vocab_size = self.config.vocab_size
        return resized


class HybridModel(HybridPreTrainedModel):
    """The stack: embedding, slots, bridges, final norm, and the donors' skeletons."""

    def __init__(self, config: HybridConfig, donors: dict[str, DonorParts] | None = None) -> None:
        donors = donors or take_apart(config)
        super().__init__(config)
        self.skeletons = {name: Skeleton(self, donor) for name, donor in donors.items()}
        self.donors = nn.ModuleDict({name: donor.base for name, donor in donors.items()})
        self.embed_tokens = donors[config.embeddings].embedding
        slots = enumerate(config.slots)
        self.layers = nn.ModuleList(self._fill_slot(donors, index, slot) for index, slot in slots)
        self.bridges = nn.ModuleDict({w: BRIDGES[b["kind"]](b) for w, b in config.bridges.items()})
        self.norm = donors[config.head].norm
        self.cache_donors = config.cache_donors()
        self.owners = [config.embeddings, *(s["donor"] for s in config.slots), config.head]
        self._adopt_class_rules(donors)
        self.gradient_checkpointing = False
        materialize(self)
        self.fill_buffers()
        self.register_load_state_dict_post_hook(fill_meta_buffers)
        self.post_init()

    @staticmethod
    def _fill_slot(donors: dict[str, DonorParts], index: int, slot: Arguments) -> nn.Module:
        layer = donors[slot["donor"]].layer(slot["layer"], copied="swap" in slot)
        for path, spec in slot.get("swap", {}).items():
            source = donors[spec["donor"]].layer(spec["layer"], copied=True)
            module = source.get_submodule(spec["module"])
            parent, _, name = path.rpartition(".")
            swapped = SwappedModule(module, layer.get_submodule(path), spec)
            setattr(layer.get_submodule(parent), name, swapped)
        if "swap" in slot:
            host: Any = type(layer)
            layer.__class__ = swap_host(host)
        for module in layer.modules():
            for name in INDICES & vars(module).keys():
                setattr(module, name, index)  # at run time only the cache is indexed with it
        return layer

    def _adopt_class_rules(self, donors: dict[str, DonorParts]) -> None:
        """What the donors' classes ask of a loader, each for its own tensors only."""
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            patterns = (
                rf"(?=*{pattern}){place}"  # transformers turns `*` into `.*`
                for name, donor in donors.items()
                for pattern in getattr(donor.shell, attribute) or ()
                for place in self._places(name)
            )
            setattr(self, attribute, set(patterns))
        self._no_split_modules = {type(m).__name__ for m in (*self.layers, *self.bridges.values())}
        shells = [donor.shell for donor in donors.values()]
        skipped = (key for shell in shells for key in shell._skip_keys_device_placement or ())
        self._skip_keys_device_placement = [*CACHE_NAMES, *skipped]
        self._is_stateful = any(shell._is_stateful for shell in shells)
        self._can_compile_fullgraph = all(shell._can_compile_fullgraph for shell in shells)

    def _places(self, name: str) -> Iterator[str]:
        """Where one donor's tensors lie, as the beginnings of patterns over tensor names."""
        for index, slot in enumerate(self.config.slots):
            if slot["donor"] == name:
                yield rf"layers\.{index}\."
            for path, spec in slot.get("swap", {}).items():
                if spec["donor"] == name:
                    yield rf"layers\.{index}\.{re.escape(path)}\."
        if name == self.config.head:
            yield from (r"^(?:model\.)?norm\.", r"^lm_head\.")
        if name == self.config.embeddings:
            yield r"embed_tokens\."

    def bases(self) -> list[PreTrainedModel]:
        return list(self.donors.values())  # type: ignore[arg-type]

    def layers_of(self, name: str) -> list[nn.Module]:
        slots = zip(self.layers, self.config.slots, strict=True)
        return [layer for layer, slot in slots if slot["donor"] == name]

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    @torch.no_grad()
    def initialize_donors(self) -> None:
        """Let each donor's own rules see its model with the layers that are here.

        transformers passes over modules without parameters of their own when a class is not its
        own, but some donors (FalconH1's `mup_vector`) fill buffers of their layers from there.
        """
        for name, skeleton in self.skeletons.items():
            parent, attribute = skeleton.layers_at
            recorders = parent.__dict__[attribute]
            parent.__dict__[attribute] = self.layers_of(name)
            self.donors[name]._init_weights(self.donors[name])
            parent.__dict__[attribute] = recorders

    @torch.no_grad()
    def fill_buffers(self) -> None:
        """Give the buffers that no checkpoint holds their donors' values; nothing else changes.

        Rotary tables, scales of embeddings: transformers fills them in a constructor, but a donor
        is built on meta; and its later initialisation can be switched off (`no_init_weights`).
        """
        owners = [module for module in self.modules() if module._non_persistent_buffers_set]
        if any(buffer.is_meta for _, buffer in self.named_non_persistent_buffers()):
            return
        ours = {id(buffer) for _, buffer in self.named_non_persistent_buffers()}
        others = [t for t in (*self.parameters(), *self.buffers()) if id(t) not in ours]
        with untouched(others):
            for module in owners:
                self._init_weights(module)
            self.initialize_donors()

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """One pass through the stack.

        Args:
            input_ids: (batch, tokens); or `inputs_embeds`, (batch, tokens, width).
            attention_mask: (batch, tokens seen before and now), 1 for real tokens.

        Returns:
            `last_hidden_state` after the final norm, (batch, tokens, width of the head donor).
            `hidden_states`: the first state and what each slot gave, the last one after the final
            norm: slots + 1 tensors, whose widths may differ. `attentions`, `router_logits`: those
            of the slots that have any.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if getattr(self, "_is_replica", False):
            raise RuntimeError("nn.DataParallel cannot copy a hybrid; use torchrun or accelerate")
        cache = self._prepare_cache(past_key_values, use_cache)
        self._refuse_packed(position_ids, attention_mask, cache, kwargs)
        masks = {"attention_mask": attention_mask, "position_ids": position_ids}
        step = {**masks, "use_cache": use_cache, **kwargs}
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        asked = self._asked("output_hidden_states", output_hidden_states)
        states: list[Tensor] | None = None if asked is None or asked is False else []
        first, last = self.skeletons[self.config.embeddings], self.skeletons[self.config.head]

        def run_stack() -> Tensor:
            hidden = first.tape.first
            for skeleton in self.skeletons.values():
                if skeleton not in (first, last):
                    skeleton.run(skeleton.placeholder(hidden), step, cache)
            return self._run_slots(hidden, cache, states)

        if first is not last:
            first.run(inputs, step, cache)
            inputs = last.placeholder(first.tape.first)
        flags = {"attentions": output_attentions, "router_logits": output_router_logits}
        with self._collecting(k for k, v in flags.items() if self._asked(f"output_{k}", v)) as more:
            hidden = last.run(inputs, step, cache, stack=run_stack)
        for skeleton in self.skeletons.values():
            skeleton.clear()
        return MoeModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache if use_cache else None,
            hidden_states=select(states, hidden, asked),
            **{key: tuple(values) for key, values in more.items()},  # type: ignore[arg-type]
        )

    def _asked(self, name: str, argument: Any) -> Any:
        return getattr(self.config, name, False) if argument is None else argument

    def _prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        if cache is None:
            cache = DynamicCache(config=self.config) if use_cache else None
        elif not cache.layers:  # a DynamicCache() made without a config
            cache.layers.extend(DynamicCache(config=self.config).layers)
            cache.layer_class_to_replicate = None
        count_tokens(cache)
        refuse_cropped(cache)
        return cache

    def _refuse_packed(
        self, positions: Tensor | None, mask: Tensor | None, cache: Cache | None, step: Arguments
    ) -> None:
        """Documents packed into one row, told apart by positions that start anew.

        Attention then masks one from the other, but a recurrent layer would run on from one into
        the next; only some can be told by `seq_idx` or `cu_seq_lens_q`.
        """
        if positions is None or mask is not None or cache is not None or positions.shape[-1] < 2:
            return
        recurrent = {"linear_attention", "conv", "hybrid"} & set(self.config.layer_types)
        if not recurrent or "seq_idx" in step or "cu_seq_lens_q" in step:
            return
        if not torch.compiler.is_compiling() and bool((positions.diff(dim=-1) < 1).any()):
            raise ValueError(
                "packed documents (position_ids that start anew) leak through the slots of type "
                f"{', '.join(sorted(recurrent))}: give one document a row, or seq_idx"
            )

    def _run_slots(
        self, hidden: Tensor, cache: Cache | None, states: list[Tensor] | None
    ) -> Tensor:
        stream, tokens = hidden.dtype, hidden.shape[1]
        for index in range(len(self.layers)):
            if states is not None:
                states.append(hidden)
            hidden = self.run_slot(index, self.cross(index, hidden, stream))
        if cache is not None and len(cache.layers) > len(self.layers):
            counted = hidden.new_zeros(hidden.shape[0], 1, tokens, 1)
            cache.layers[-1].update(counted, counted)  # see `count_tokens`
        note_length(cache)
        return self.cross(len(self.layers), hidden, stream)

    def cross(self, index: int, hidden: Tensor, stream: torch.dtype) -> Tensor:
        """What a slot gets of what arrives before it: over the bridge, if one stands there.

        Mamba keeps its residual in fp32; where the donor changes, the stream's own dtype is back.
        The index after the last slot is that of the final norm.
        """
        where = "head" if index == len(self.layers) else str(index)
        if where in self.bridges:
            return self.bridges[where](hidden.to(stream))
        before, after = self.owners[index : index + 2]
        return hidden if before == after else hidden.to(stream)

    def run_slot(self, index: int, hidden: Tensor) -> Tensor:
        """Run one slot's layer with the arguments that its donor's skeleton has noted."""
        slot, tokens = self.config.slots[index], hidden.shape[1]
        arguments = self._arguments(index, slot, tokens)
        if "swap" in slot:
            swaps = slot["swap"].items()
            arguments["swapped"] = {p: self._arguments(index, s, tokens) for p, s in swaps}
        return unpair(self.layers[index](hidden, **arguments))

    def _arguments(self, index: int, source: Arguments, tokens: int) -> Arguments:
        """What the donor would call its layer with, fit for this slot.

        Mamba-1 layers get the caller's 2D mask, over all tokens seen; natively `generate` drops it
        while decoding. Here it is cut to the tokens of this step.
        """
        arguments = dict(self.skeletons[source["donor"]].tape.calls[source["layer"]])
        arguments |= dict.fromkeys(INDICES & arguments.keys(), index)
        if self.config.layer_types[index] == "linear_attention":
            mask = arguments.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != tokens:
                arguments["attention_mask"] = None if tokens == 1 else mask[:, -tokens:]
        return arguments

    @contextmanager
    def _collecting(self, keys: Iterator[str]) -> Iterator[dict[str, list[Tensor]]]:
        """Collect, by hooks for one step, outputs of the modules inside the slots."""
        collected: dict[str, list[Tensor]] = {key: [] for key in keys}
        handles = []
        try:
            for key, values in collected.items():
                for module, place in self.recordable(key):
                    handles.append(module.register_forward_hook(partial(keep, values, place)))
            yield collected
        finally:
            for handle in handles:
                handle.remove()

    def recordable(self, key: str) -> list[tuple[nn.Module, int]]:
        """The modules that give `attentions` or `router_logits`, and where in their output.

        The donors' classes declare them, for transformers' own recording.
        """
        found: list[tuple[nn.Module, int]] = []
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            before = len(found)
            for path, module in layer.named_modules():
                place = self._place_of(key, path, module)
                if place is not None:
                    found.append((module, place))
            nothing = len(found) == before
            if key == "attentions" and nothing and layer_type not in WITHOUT_ATTENTION:
                raise ValueError(f"{type(layer).__name__} does not hand out its attention weights")
        return found

    def _place_of(self, key: str, path: str, module: nn.Module) -> int | None:
        owner: Any = getattr(module, "_hybridize_donor", None)  # none: a bridge, or PEFT's
        base: Any = None if owner is None else self.donors[owner]
        specs = (getattr(base, "_can_record_outputs", None) or {}).get(key, [])
        for spec in specs if isinstance(specs, list) else [specs]:
            spec = spec if isinstance(spec, OutputRecorder) else OutputRecorder(spec, index=1)
            inside = spec.layer_name is None or f".{spec.layer_name.strip('.')}." in f".{path}."
            if inside and isinstance(module, spec.target_class):
                if key == "attentions" and base.config._attn_implementation != "eager":
                    logger.warning_once(FUSED)
                return spec.index
        return None


def keep(values: list[Tensor], place: int, module: nn.Module, args: Any, output: Any) -> None:
    """A forward hook that keeps one of a module's outputs."""
    value = output[place] if isinstance(output, tuple) else output
    if value is not None:
        values.append(value)


def select(states: list[Tensor] | None, last: Tensor, asked: Any) -> tuple[Any, ...] | None:
    """All states; or, as transformers does, those at some indices and None elsewhere."""
    if states is None:
        return None
    states = [*states, last]
    if asked is True:
        return tuple(states)
    kept = {i % len(states) for i in ([asked] if isinstance(asked, int) else asked)}
    return tuple(state if i in kept else None for i, state in enumerate(states))


def materialize(model: nn.Module) -> None:
    """Give memory to what was built on meta, unless the hybrid itself is being built on meta.

    Probes tell the device of parameters and of buffers: accelerate's `init_empty_weights` patches
    the registration of parameters, leaves buffers real, and is not seen by the default device.
    """
    device, buffers = nn.Linear(1, 1).weight.device, torch.empty(0).device
    for module in model.modules():
        give_buffers(module, buffers)
        if device.type != "meta" and any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device=device, recurse=False)
            # Some rules leave out what a constructor fills (Qwen3-Next's router): no garbage there.
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data.zero_()


def give_buffers(module: nn.Module, device: torch.device) -> None:
    """Memory for the buffers of one module that are on meta."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta and device.type != "meta":
            module._buffers[name] = torch.zeros_like(buffer, device=device)


def fill_meta_buffers(model: HybridModel, _: Any) -> None:
    """After `load_state_dict(..., assign=True)` into a model on meta: what no checkpoint holds."""
    devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    if any(buffer.is_meta for _, buffer in model.named_non_persistent_buffers()) and devices:
        for module in model.modules():
            give_buffers(module, next(iter(devices)))
        model.fill_buffers()


@contextmanager
def untouched(tensors: list[Tensor]) -> Iterator[None]:
    """Keep initialisation away from some tensors, by the mark that transformers itself sets."""
    marked = [tensor for tensor in tensors if not getattr(tensor, "_is_hf_initialized", False)]
    for tensor in marked:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for tensor in marked:
            del tensor._is_hf_initialized  # type: ignore[attr-defined]


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


# ---- 4. The head -------------------------------------------------------------------------------


class HeadInput(tuple[Any, ...]):
    """What the head donor's forward gets from its base model: a hidden state and router logits."""

    last_hidden_state = property(lambda self: self[0])
    router_logits = property(lambda self: self[1])

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)


class HeadBase:
    """Takes the place of the base model inside the head donor's `*ForCausalLM`.

    The last hidden state comes in as `inputs_embeds` and goes out as the base model's output.
    """

    def __init__(self, owner: "HybridForCausalLM") -> None:
        self.owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> HeadInput:
        hidden = kwargs.get("inputs_embeds")
        hidden = next(a for a in args if isinstance(a, Tensor)) if hidden is None else hidden
        return HeadInput((hidden, kwargs.get("router_logits")))

    def __getattr__(self, key: str) -> Any:  # FalconH1 reads `self.model.lm_head_multiplier`
        if key.startswith("__") or key == "owner":
            raise AttributeError(key)
        return getattr(self.owner.model.donors[self.owner.config.head], key)


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The stack with the head donor's output head, logits and loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HybridConfig) -> None:
        donors = take_apart(config)
        super().__init__(config)
        self.model = HybridModel(config, donors)
        self.lm_head = donors[config.head].head
        materialize(self.lm_head)
        shell = self._empty_shell(donors[config.head])
        self.__dict__["head_shell"] = shell  # no module of the hybrid: it has no weights
        self.accepts = Accepts(type(shell))
        # Whether a trainer may leave the division by the number of tokens to the loss.
        self.accepts_loss_kwargs = self.accepts.any
        self._is_stateful = self.model._is_stateful
        self._can_compile_fullgraph = self.model._can_compile_fullgraph
        self.post_init()

    def _empty_shell(self, donor: DonorParts) -> PreTrainedModel:
        """The head donor's `*ForCausalLM` without weights: it scales, caps and counts the loss."""
        shell = donor.shell
        replace(shell, donor.base, HeadBase(self))
        replace(shell, donor.head, StandIn(self, "lm_head"))
        left = [name for name, _ in (*shell.named_parameters(), *shell.named_buffers())]
        if left:
            donor.refuse(f"as head; it reads out with more than one matrix ({', '.join(left[:4])})")
        return shell

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Arguments, *args: Any
    ) -> bool:
        made = super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args
        )
        count_tokens(model_kwargs.get("past_key_values"))
        return made

    @staticmethod
    def create_masks_for_generate(attention_mask: Any = None, **kwargs: Any) -> Any:
        return attention_mask  # every donor makes its own masks inside forward

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits (batch, tokens kept, vocabulary) and, with `labels`, the head donor's loss.

        With `output_router_logits` (off by default, whatever the donors' configs say) the loss has
        the head donor's auxiliary term over its own slots; routers of other donors are refused.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kwargs |= {"labels": labels, "logits_to_keep": logits_to_keep, "use_cache": False}
        kwargs["attention_mask"] = attention_mask  # the auxiliary loss passes over padding
        if out.router_logits is not None and self._routers_are_own(labels):
            kwargs |= {"output_router_logits": True, "router_logits": out.router_logits}
        read = self.read_out(out.last_hidden_state, **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=read.loss,
            aux_loss=getattr(read, "aux_loss", None),
            logits=read.logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            router_logits=out.router_logits,
        )

    def read_out(self, hidden: Tensor, **kwargs: Any) -> Any:
        """What the head donor's own forward makes of the last hidden state: logits and loss."""
        shell = self.head_shell
        shell.training = self.training
        return shell.forward(inputs_embeds=hidden, return_dict=True, **self.accepts(kwargs))

    def _routers_are_own(self, labels: Tensor | None) -> bool:
        """Whether all routers are the head donor's: its auxiliary loss fits no others' experts."""
        owners = {m._hybridize_donor for m, _ in self.model.recordable("router_logits")}
        if owners != {self.config.head} and labels is not None:
            others = ", ".join(sorted(owners - {self.config.head})) or "no donor"
            raise ValueError(
                f"output_router_logits: {others} has routers in this stack, but the loss is that "
                f"of the head donor, {self.config.head}"
            )
        return owners == {self.config.head}


HybridConfig.register_for_auto_class()
HybridModel.register_for_auto_class("AutoModel")
HybridForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["HybridForCausalLM", "HybridModel", "HybridPreTrainedModel"]

"""A donor taken apart: what of it goes into a hybrid, and what is left to prepare a step.

Part of the code of every hybrid: see `modeling_hybridize`.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import copy
import inspect
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from .configuration_hybridize import HybridConfig

logger = logging.get_logger(__name__)
Arguments = dict[str, Any]


# What transformers' models call their cache: older and newer names of one thing.
CACHE_NAMES = ("past_key_values", "cache_params", "layer_past", "past_key_value")


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


def unpair(hidden: Any) -> Any:
    return hidden[0] if isinstance(hidden, tuple) else hidden

"""A causal language model whose slots hold layers of different pretrained donors.

There is no table of architectures here. Every donor keeps its unedited config and its own model
class, and four ideas make one model out of them:

1. Taking a donor apart (`donor_parts`). The donor's own model is built without memory, on the meta
   device. Its embedding, its layers and its final norm are taken out and become plain modules of
   the hybrid; what remains still knows how to prepare a step.
2. Recording (`recording`). In the layers' places stand recorders. When the donor's own forward
   runs, they note what each layer would have been called with: masks, rotary embeddings,
   positions, everything as transformers itself makes it.
3. Running the slots (`HybridModel`, `bridges`, `swaps`). The real layers stand flat in
   `model.layers` and run in slot order with the noted arguments, sharing one cache (`caches`). The
   embedding donor's skeleton gives the first hidden state. The head donor's skeleton runs last:
   where it reaches its last layer the whole stack runs instead, and what that donor does after its
   layers is done by its own code.
4. The head (`HybridForCausalLM`). The head donor's own `*ForCausalLM.forward` makes logits and
   loss out of the last hidden state.

The files of this folder are copied into that of every hybrid, where they are remote code: they
import nothing but the standard library, torch, transformers and each other.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder

from .bridges import BRIDGES
from .caches import count_tokens, note_length, refuse_cropped
from .configuration_hybridize import HybridConfig
from .donor_parts import (
    CACHE_NAMES,
    Arguments,
    DonorParts,
    replace,
    supported_attention,
    take_apart,
    unpair,
)
from .recording import Accepts, Skeleton, StandIn
from .swaps import SwappedModule, swap_host

logger = logging.get_logger(__name__)


INDICES = {"layer_idx", "layer_id"}
FUSED = (
    "Fused attention does not hand out its weights: `attentions` has those of eager slots alone. "
    "Load the model with attn_implementation='eager' for all of them."
)
WITHOUT_ATTENTION = ("linear_attention", "conv", "moe", "mlp")


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
                "packed documents (position_ids that restart) leak through the slots of type "
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

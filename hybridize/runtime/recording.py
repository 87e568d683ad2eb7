"""Recorders in the places of a donor's layers: they note what each would have been called with.

Part of the code of every hybrid: see `modeling_hybridize`.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from .donor_parts import CACHE_NAMES, Arguments, DonorParts, owner_of, replace, unpair


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

    def __init__(self, model: Any, donor: DonorParts) -> None:
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

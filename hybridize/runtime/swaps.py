"""Modules of one donor inside the layers of another.

Part of the code of every hybrid: see `modeling_hybridize`.
"""

# transformers has few types, and torch says of a module's attributes only that they are modules or
# tensors.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-any-return, union-attr, operator"

import ast
import inspect
import textwrap
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from .bridges import BRIDGES
from .donor_parts import CACHE_NAMES, Arguments, named_like, new_of, unpair
from .recording import Accepts, PerThread


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

"""Variants of a layer: what a perturbation makes of it, or of its mixer or MLP alone (torch side).

A perturbation is a file in `perturbations/`:

- `TITLE` says in a line what it does, `STRENGTH` how much by default, `RANDOM` whether it draws;
- `ACTS_ON` says what `perturb(value, strength, generator)` is given: the `update` that a part adds
  to the stream, its `input`, the `output` of the whole layer with all that came from below, its
  `weights` (each matrix), or what a linear map `fit` to the layer misses of its output.

The stream itself stays as it is wherever a perturbation acts on an update or an input: to zero all
that leaves a layer would take away what the layers below have done.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor, nn

from hybridize.model.anatomy import MIXERS, MLPS
from hybridize.plugins import load_plugin
from hybridize.torch_model.stream import Stream

LAYER, MIXER, MLP = "layer", "mixer", "mlp"
PARTS = (LAYER, MIXER, MLP)

Change = Callable[[Tensor], Tensor]
Stand = Callable[[Tensor], Tensor]  # a linear map in a layer's place


@dataclass(frozen=True)
class Variant:
    """One way of perturbing a layer; `layers`: those that are perturbed so, None: each in turn."""

    kind: str
    strength: float
    part: str = LAYER
    seed: int = 0
    layers: frozenset[int] | None = None

    def below(self, index: int) -> int:
        """Number of layers below one that are perturbed so."""
        return index if self.layers is None else sum(layer < index for layer in self.layers)

    def acts_at(self, index: int) -> bool:
        """Whether a layer is perturbed so."""
        return self.layers is None or index in self.layers

    @property
    def acts_on(self) -> str:
        return str(load_plugin("perturbations", self.kind).ACTS_ON)

    @property
    def random(self) -> bool:
        """Whether it draws: other seeds perturb in other ways."""
        return bool(load_plugin("perturbations", self.kind).RANDOM)

    @property
    def reruns(self) -> bool:
        """Whether the layer itself must run again, other than for an update or its output."""
        return self.part != LAYER or self.acts_on in ("input", "weights")

    def change(self, layer: int, tensor: str = "") -> Change:
        """What is done to a value at a layer: the same for all text, and on every device.

        Args:
            tensor: name of the matrix, where weights are changed: each gets numbers of its own.
        """
        perturb = load_plugin("perturbations", self.kind).perturb
        name = f"{self.seed} {self.kind} {self.part} {layer} {tensor}".rstrip()

        def changed(value: Tensor) -> Tensor:
            # Not hash(), which is salted. Drawn on the CPU: a GPU would draw other numbers.
            generator = Generator().manual_seed(zlib.crc32(name.encode()))
            result: Tensor = perturb(value, self.strength, generator)
            return result

        return changed


def all_variants(
    kinds: Sequence[tuple[str, float | None]],
    *,
    parts: Sequence[str],
    seeds: int,
    layers: frozenset[int] | None = None,
) -> list[Variant]:
    """Every perturbation of every part; those without chance once, the others with each seed."""
    found = []
    for kind, strength in kinds:
        plugin = load_plugin("perturbations", kind)
        whole_only = plugin.ACTS_ON in ("output", "fit")
        for part in parts:
            if part == LAYER or not whole_only:
                for seed in range(seeds if plugin.RANDOM else 1):
                    value = plugin.STRENGTH if strength is None else strength
                    found.append(Variant(kind, float(value), part, seed, layers))
    return found


def has_part(layer: nn.Module, part: str) -> bool:
    """Whether a layer has a mixer, or an MLP, that can be told from the rest."""
    return part == LAYER or bool(_modules(layer, part))


def perturbed(
    variant: Variant, stream: Stream, index: int, given: Tensor, gave: Tensor, stand: Stand | None
) -> Tensor:
    """What a perturbed slot gives, (batch, tokens, width).

    Args:
        given, gave: what the slot is given, behind its bridge, and what it gives unperturbed.
        stand: the linear map that is closest to the layer, for a variant that wants one.
    """
    change, layer = variant.change(index), stream.stack.layers[index]
    acts_on = variant.acts_on
    if acts_on == "weights":
        modules = [layer] if variant.part == LAYER else _modules(layer, variant.part)
        with _other_weights(modules, lambda name: variant.change(index, name)):
            return stream.run_slot(index, given)
    if variant.part != LAYER:
        with ExitStack() as hooks:
            for module in _modules(layer, variant.part):
                hooks.enter_context(_hooked(module, change, acts_on))
            return stream.run_slot(index, given)
    if acts_on == "output":
        return change(gave)
    if acts_on == "input":
        seen = change(given)
        return given + (stream.run_slot(index, seen) - seen)
    if acts_on == "fit":
        assert stand is not None
        near = stand(given)
        return near + change(gave - near)
    return given + change(gave - given)


def _modules(layer: nn.Module, part: str) -> list[nn.Module]:
    names = MIXERS if part == MIXER else MLPS
    return [child for name, child in layer.named_children() if name in names]


@contextmanager
def _hooked(module: nn.Module, change: Change, acts_on: str) -> Iterator[None]:
    """Change what a module reads, or what it adds to the stream."""
    signature = inspect.signature(module.forward)
    # BLOOM's and MPT's modules add the stream themselves.
    adds = "residual" in signature.parameters

    def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        first = next(name for name in signature.parameters if name in kwargs)
        return args, {**kwargs, first: change(kwargs[first])}

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if adds:
            stream = signature.bind(*args, **kwargs).arguments["residual"]
            changed = stream + change(first - stream)
        else:
            changed = change(first)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if acts_on == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _other_weights(
    modules: Sequence[nn.Module], change_of: Callable[[str], Change]
) -> Iterator[None]:
    """Matrices with a change, for a while; the weights themselves may be a mapped file."""
    matrices = {
        f"{i}.{name}": parameter
        for i, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2
    }
    kept = {name: parameter.data for name, parameter in matrices.items()}
    try:
        for name, parameter in matrices.items():
            parameter.data = change_of(name)(kept[name])
        yield
    finally:
        for name, parameter in matrices.items():
            parameter.data = kept[name]

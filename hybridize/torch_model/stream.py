"""Running a hybrid, or a donor alone, from one state of its stream to another (torch side).

Several batches may be on their way through one model: each keeps what its layers are called with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybridize.model.states import State
from hybridize.runtime import HybridForCausalLM

LOGITS = 1 << 26  # numbers that are held at a time: a vocabulary is wide


class Stream:
    """One batch on its way through a model, slot by slot, without a cache.

    Args:
        tokens: (batch, tokens).
        mask: (batch, tokens), 1 for real tokens, which stand on the left; None: all are real.
        positions: (batch, tokens), of each token in its document: attention then keeps documents
            apart that stand in one row. None: one document a row.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        tokens: Tensor,
        mask: Tensor | None,
        positions: Tensor | None = None,
    ) -> None:
        self.model, self.stack = model, model.model
        self.tokens, self.mask, self.positions = tokens, mask, positions
        skeletons, config = self.stack.skeletons, model.config
        first = skeletons[config.embeddings]
        # The donors' own forwards note what their layers are to be called with.
        first.run(self._inputs, self._step, None)
        self.first: Tensor = first.tape.first
        for skeleton in skeletons.values():
            if skeleton is not first:
                skeleton.run(skeleton.placeholder(self.first), self._step, None)
        self._calls = {name: skeleton.tape.calls for name, skeleton in skeletons.items()}

    @property
    def _inputs(self) -> dict[str, Any]:
        return {"input_ids": self.tokens}

    @property
    def _step(self) -> dict[str, Any]:
        return {"attention_mask": self.mask, "position_ids": self.positions, "use_cache": False}

    @property
    def depth(self) -> int:
        """Number of slots; the state of this index arrives before the final norm."""
        return len(self.stack.layers)

    def run(self, hidden: Tensor, first: int, last: int, *, crossed: bool = False) -> Tensor:
        """From what arrives at slot `first`, before its bridge, to what arrives at slot `last`.

        Args:
            hidden: (batch, tokens, width).
            crossed: the bridge before slot `first` has been passed already.
        """
        for index in range(first, last):
            if not (crossed and index == first):
                hidden = self.cross(index, hidden)
            hidden = self.run_slot(index, hidden)
        return hidden

    def cross(self, index: int, hidden: Tensor) -> Tensor:
        """Over the bridge before a slot, or before the head, if one stands there."""
        crossed: Tensor = self.stack.cross(index, hidden, self.first.dtype)
        return crossed

    def run_slot(self, index: int, hidden: Tensor) -> Tensor:
        """From what a slot is given to what it gives, (batch, tokens, width)."""
        for name, skeleton in self.stack.skeletons.items():
            skeleton.tape.calls = self._calls[name]  # another batch may have come by
        gave: Tensor = self.stack.run_slot(index, hidden)
        return gave

    def read(self, *states: State) -> list[Tensor]:
        """States of the model, (batch, tokens, width) each, on one way from the tokens upwards."""
        found: dict[State, Tensor] = {}
        hidden = self.first
        for index in range(max(state.slot for state in states) + 1):
            here = [state for state in states if state.slot == index]
            found |= dict.fromkeys((s for s in here if s.module is None), hidden)
            inside = [state for state in here if state.module is not None]
            if inside or any(state.slot > index for state in states):
                layer = self.stack.layers[index]
                with ExitStack() as hooks:
                    captured = {s: hooks.enter_context(_capture(layer, s)) for s in inside}
                    hidden = self.run(hidden, index, index + 1)
                found |= {state: values[0] for state, values in captured.items()}
        return [found[state] for state in states]

    def nats(self, hidden: Tensor, *, crossed: bool = False, start: int = 0) -> Tensor:
        """Summed loss of each row, (batch,), float64, from what arrives before the final norm.

        Args:
            start: tokens before the text of each row; the first token of text is context alone.
        """
        normed = self.norm(hidden if crossed else self.cross(self.depth, hidden))
        labels = self.tokens[:, 1:]
        real = torch.ones_like(labels) if self.mask is None else self.mask[:, 1:]
        total = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        step = max(1, LOGITS // (len(labels) * int(self.model.config.vocab_size)))
        for first in range(start, labels.shape[1], step):
            part = slice(first, min(first + step, labels.shape[1]))
            logits = self.logits(normed[:, part])
            losses = nn.functional.cross_entropy(
                logits.transpose(1, 2), labels[:, part], reduction="none"
            )
            total += (losses.double() * real[:, part]).sum(1)
        return total

    def norm(self, hidden: Tensor) -> Tensor:
        """What the head donor makes of the stream before it reads it out: its final norm.

        Args:
            hidden: (batch, tokens, width of the head donor).
        """
        config = self.model.config
        last = self.stack.skeletons[config.head]
        same = config.head == config.embeddings
        inputs = self._inputs if same else last.placeholder(self.first)
        normed: Tensor = last.run(inputs, self._step, None, stack=lambda: hidden)
        return normed

    def logits(self, normed: Tensor) -> Tensor:
        """(..., vocabulary), float32, from the normed stream at any positions."""
        logits: Tensor = self.model.read_out(normed).logits
        return logits.float()


@contextmanager
def _capture(layer: nn.Module, state: State) -> Iterator[list[Tensor]]:
    """What a module of a layer is given, or what it gives."""
    captured: list[Tensor] = []
    module = layer.get_submodule(state.module or "")

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        captured.append(next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)))

    def after(_: nn.Module, args: Any, output: Any) -> None:
        captured.append(output[0] if isinstance(output, tuple) else output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if state.side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield captured
    finally:
        handle.remove()

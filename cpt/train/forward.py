"""From a batch of rows to the loss of each, with no more in memory than must be (torch side).

The model's own layers run; what is different is what is kept. Nothing is kept below the lowest part
that learns, and the vocabulary is gone through in chunks, whose gradients are made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hybridize.cpt.data.blocks import IGNORED
from hybridize.cpt.plan.memory import head_positions
from hybridize.cpt.train.dropout import Dropout
from hybridize.cpt.train.trainable_model import HALF, TrainableModel
from hybridize.runtime import HybridForCausalLM
from hybridize.torch_model.stream import Stream

Read = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class Forward:
    """Takes the place of a hybrid's own forward while it is trained.

    Args:
        start: slot at which `prefix` arrives, where one is given.
        dropout: of slots that learn, for rows whose numbers are given.
    """

    def __init__(
        self, tuned: TrainableModel, *, start: int = 0, dropout: Dropout | None = None
    ) -> None:
        self.model, self.dtype, self.start = tuned.model, tuned.dtype, start
        self.dropout = dropout
        self.half = tuned.half

    def __call__(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        prefix: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of all that is to be predicted.

        Args:
            input_ids, labels: (batch, tokens); labels that are IGNORED are not predicted.
            position_ids: (batch, tokens), where a row holds several documents.
            prefix: (batch, tokens, width), what arrives at slot `start`; those below do not run.
            rows: (batch,), numbers of the rows in the order of a training; None: no dropout.

        Returns:
            `loss`: summed, in nats, with a gradient; `nats`: of each row, (batch,), without one.
        """
        with self._autocast(input_ids):
            stream = self._stream(input_ids, position_ids)
            at, hidden = (0, stream.first) if prefix is None else (self.start, prefix)
            hidden = stream.cross(stream.depth, self._run(stream, hidden, at, rows))
            normed = stream.norm(hidden)
            where = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            loss, nats = head_loss(self.model, normed[where], labels[:, 1:][where])
        of_rows = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        return {"loss": loss, "nats": of_rows.index_add(0, where[0], nats.double())}

    def _run(self, stream: Stream, hidden: Tensor, at: int, rows: Tensor | None) -> Tensor:
        for index in range(at, stream.depth):
            given = stream.cross(index, hidden)
            hidden = stream.run_slot(index, given)
            if self.dropout is not None and rows is not None and index in self.dropout.slots:
                hidden = self.dropout(given, hidden, rows, index)
        return hidden

    @torch.no_grad()
    def below(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """What arrives at slot `start`, before its bridge, (batch, tokens, width)."""
        with self._autocast(input_ids):
            stream = self._stream(input_ids, position_ids)
            return stream.run(stream.first, 0, self.start)

    def _autocast(self, tokens: Tensor) -> torch.autocast:
        """Matrices of a 16-bit model multiply in bf16, those that learn too."""
        return torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.half)

    def _stream(self, tokens: Tensor, positions: Tensor | None) -> Stream:
        stream = Stream(self.model, tokens, None, positions)
        # Embeddings that learn are fp32, and would widen all of the stream.
        stream.first = stream.first.to(self.dtype)
        return stream


def head_loss(model: HybridForCausalLM, normed: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy by chunks of positions.

    Args:
        normed: (positions, width), the stream behind the final norm.
        targets: (positions,).

    Returns:
        Its sum, with a gradient, and that of each position without one; in nats.
    """
    head = model.lm_head
    if not isinstance(head, nn.Linear):
        nats = _nats(model.read_out(normed[None]).logits[0], targets)
        return nats.sum(), nats.detach()
    size = head_positions(head.weight.shape[0])

    def read(hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        with _head(model, _Linear(weight, bias)):
            logits: Tensor = model.read_out(hidden[None]).logits[0]
        return logits

    if torch.is_grad_enabled():
        apply: Any = _HeadLoss.apply
        total, nats = apply(normed, head.weight, head.bias, targets, read, size)
        return total, nats
    parts = zip(torch.split(normed, size), torch.split(targets, size), strict=True)
    nats = torch.cat([_nats(read(h, head.weight, head.bias), t) for h, t in parts])
    return nats.sum(), nats


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients of each chunk while its logits are there: none is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        normed: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        read: Read,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        heads = [
            t.detach().requires_grad_(t.requires_grad) for t in (weight, bias) if t is not None
        ]
        learns = [t for t in heads if t.requires_grad]
        sums = [torch.zeros_like(t) for t in learns]
        to_normed = torch.zeros_like(normed) if normed.requires_grad else None
        nats = torch.empty(len(normed), dtype=torch.float32, device=normed.device)
        for start in range(0, len(normed), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                hidden = normed[part].detach().requires_grad_(to_normed is not None)
                losses = _nats(read(hidden, *heads, *[None] * (2 - len(heads))), targets[part])
                wanted = [hidden] * (to_normed is not None) + learns
                grads = list(torch.autograd.grad(losses.sum(), wanted))
            nats[part] = losses.detach()
            if to_normed is not None:
                to_normed[part] = grads.pop(0)
            for total, grad in zip(sums, grads, strict=True):
                total += grad
        ctx.grads = to_normed, *_in_places(sums, (weight, bias))
        total_nats = nats.sum()
        ctx.mark_non_differentiable(nats)
        return total_nats, nats

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_loss = outer[0]
        grads = (None if grad is None else grad.mul_(of_loss) for grad in ctx.grads)
        return (*grads, None, None, None)


def _in_places(found: list[Tensor], inputs: tuple[Tensor | None, ...]) -> Iterator[Tensor | None]:
    """Gradients at the places of the inputs that want one."""
    left = iter(found)
    for given in inputs:
        yield next(left) if given is not None and given.requires_grad else None


class _Linear:
    """The head's map as a function: no hook of a wrapper runs, once for every chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias)


@contextmanager
def _head(model: HybridForCausalLM, stand_in: _Linear) -> Iterator[None]:
    """The head donor's code finds the head by its name: for a moment another one stands there."""
    model.__dict__["lm_head"] = stand_in
    try:
        yield
    finally:
        del model.__dict__["lm_head"]


def narrow_norms(tuned: TrainableModel) -> None:
    """Let norms that learn give the dtype that they are given, as they do in the model itself.

    An fp32 gain would widen their output, which the matrices behind it then cast one by one, and
    keep once each.
    """

    def narrow(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        is_wider = isinstance(output, Tensor) and output.dtype == torch.float32
        return output.to(args[0].dtype) if is_wider and args[0].dtype in HALF else output

    for module in tuned.model.modules():
        own = list(module.parameters(recurse=False))
        gains = own and all(p.ndim == 1 for p in own) and "norm" in type(module).__name__.lower()
        if gains and any(p.requires_grad for p in own):
            module.register_forward_hook(narrow)


def share_masks() -> None:
    """Let all layers use one floating-point attention mask for a batch, in this process.

    Where documents in a row are kept apart, the mask is boolean, and torch would convert it in
    every layer and keep every copy for the backward pass.
    """
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    plain = torch.compiler.is_compiling() or options.get("position_bias") is not None
    if mask is not None and mask.dtype == torch.bool and not plain:
        kind = query.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else query.dtype
        mask = _numbers(mask, dtype)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


# Boolean mask -> its numbers, while it is in use.
_masks: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()


def _numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, as torch makes it of a boolean mask: 0, or minus infinity."""
    found = _masks.get(mask)
    if found is None or found.dtype != dtype:
        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        found = _masks[mask] = zeros.masked_fill_(~mask, -torch.inf)
    return found


def checkpoint_slots(model: HybridForCausalLM, first: int) -> None:
    """Let slots from `first` upwards keep their input alone, and run forward a second time.

    Not by transformers' switch: that repeats a frozen prefix too, lets gradients flow through it
    down to the embedding, and does nothing in a model that runs as in evaluation.
    """
    for layer in model.model.layers[first:]:
        # Nothing is drawn in a slot: there is no state of a generator to keep for the second time.
        options: Any = {"use_reentrant": False, "preserve_rng_state": False}
        layer.forward = partial(checkpoint, layer.forward, **options)


def compile_slots(model: HybridForCausalLM) -> None:
    """Each slot by itself: what is compiled once serves all slots of a kind."""
    for layer in model.model.layers:
        layer.compile()

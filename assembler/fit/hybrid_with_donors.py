"""A hybrid and its donors alone, over one copy of the weights, reading text (torch side)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridize.assembler.plan.bridge_kind import bridge_kind
from hybridize.assembler.plan.outputs import tensor_prefix
from hybridize.assembler.plan.stack import Bridge
from hybridize.model.states import State
from hybridize.runtime import HybridForCausalLM
from hybridize.torch_model.loading import Weights
from hybridize.torch_model.regression import one_thread
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import Encoded, Reader, Windows, batches

BATCH = 2048  # tokens that are run at a time

Parameters = dict[str, Tensor]
Read = Callable[[float], None]  # called with the number of tokens that have been read
Nats = Callable[[Encoded], Tensor]  # summed loss of each row


class HybridWithDonors:
    """The hybrid, and its donors alone, with the tokenizers that they read with.

    Args:
        config: content of the hybrid's config.json.
        readers: donor -> its tokenizer; `reader` is the hybrid's.
    """

    def __init__(
        self,
        weights: Weights,
        config: Mapping[str, Any],
        bridges: Sequence[Bridge],
        *,
        reader: Reader,
        readers: Mapping[str, Reader],
    ) -> None:
        self.bridges, self.reader, self.readers = bridges, reader, readers
        self._weights = weights
        self._alone: dict[str, HybridForCausalLM] = {}
        made = {
            f"{tensor_prefix(bridge.where)}.{name}": value
            for bridge in bridges
            for name, value in initial(bridge).items()
        }
        self.hybrid = weights.model(config, made)

    @property
    def donors(self) -> list[str]:
        return list(self._weights.donors)

    def has_head(self, donor: str) -> bool:
        """Whether a donor alone has a loss."""
        return self._weights.donors[donor].has_head

    def alone(self, donor: str) -> HybridForCausalLM:
        if donor not in self._alone:
            self._alone[donor] = self._weights.alone(donor)
        return self._alone[donor]

    def module(self, bridge: Bridge) -> Any:
        return self.hybrid.get_submodule(tensor_prefix(bridge.where))

    def set(self, bridge: Bridge, values: Parameters) -> None:
        self.module(bridge).load_state_dict(values)

    def width(self, donor: str) -> int:
        return int(self.alone(donor).config.hidden_size)

    def arriving(self, bridge: Bridge, texts: Sequence[str], stream: str) -> tuple[Encoded, Tensor]:
        """What a bridge is given for a batch of texts, (batch, tokens, width in)."""
        if stream == "donor":
            donor, state = bridge.reads
            batch, model = self.readers[donor].encode(texts), self.alone(donor)
        else:
            batch, model = self.reader.encode(texts), self.hybrid
            state = bridge.at or State(len(model.config.slots))
        (hidden,) = Stream(model, batch.tokens, batch.mask).read(state)
        return batch, hidden

    def wanted(
        self, goals: Sequence[tuple[str, State]], texts: Sequence[str]
    ) -> list[tuple[Encoded, Tensor]]:
        """What each goal's donor alone has there, in the order of the goals."""
        found: dict[tuple[str, State], tuple[Encoded, Tensor]] = {}
        for donor in dict.fromkeys(donor for donor, _ in goals):
            batch = self.readers[donor].encode(texts)
            states = [state for name, state in goals if name == donor]
            read = Stream(self.alone(donor), batch.tokens, batch.mask).read(*states)
            found |= {(donor, s): (batch, h) for s, h in zip(states, read, strict=True)}
        return [found[goal] for goal in goals]


def initial(bridge: Bridge) -> Parameters:
    """Parameters that no text has a part in, the same under any number of threads."""
    with one_thread():
        found: Parameters = bridge_kind(bridge.kind).initial(bridge)
    return found


def whole(model: HybridForCausalLM) -> Nats:
    """Loss of a model as it is."""

    def nats(batch: Encoded) -> Tensor:
        stream = Stream(model, batch.tokens, batch.mask)
        return stream.nats(stream.run(stream.first, 0, stream.depth), start=batch.start)

    return nats


@torch.no_grad()
def held_out_loss(part: Windows, reader: Reader, nats: Nats, progress: Read) -> dict[str, Any]:
    """Loss on the held-out text of a domain, in nats.

    Returns:
        Means `per_byte` and `per_token`, and the sums of the `stretches`, for comparisons.
    """
    stretches: list[float] = []
    tokens = num_bytes = 0
    for texts in batches(part.held_out, part.rows(BATCH)):
        batch = reader.encode(texts)
        stretches += nats(batch).tolist()
        tokens += batch.num_tokens
        num_bytes += batch.num_bytes(texts)
        progress(batch.tokens.numel())
    total = sum(stretches)
    return {
        "per_byte": total / num_bytes,
        "per_token": total / tokens,
        "stretches": stretches,
    }

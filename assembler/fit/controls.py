"""Is a hybrid worth anything? Its loss beside that of what it must beat (torch side).

Measured on held-out text, in nats per byte, since tokenizers differ: each donor alone; each span of
slots between two bridges replaced by a matrix; each swapped module removed, and replaced by a
matrix; and a model that knows only how frequent tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridize.assembler.fit.bridge_fit import Null
from hybridize.assembler.fit.hybrid_with_donors import HybridWithDonors, Nats, held_out_loss, whole
from hybridize.assembler.fit.pace import Work
from hybridize.assembler.fit.swap_controls import measure_swaps
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import Encoded, Reader, Windows

Losses = dict[str, dict[str, Any]]  # by domain


@torch.no_grad()
def measure(
    models: HybridWithDonors,
    windows: Sequence[Windows],
    judged: Sequence[Windows],
    nulls: Sequence[Null],
    work: Work,
    *,
    donors: Mapping[str, Losses] | None = None,
) -> dict[str, Any]:
    """Losses of the hybrid and of its controls, by domain.

    Args:
        windows: that maps are fitted on; `judged`: that losses are measured on.
        donors: losses of donors alone on this text, if they are known.

    Returns:
        Of each, by domain, `per_byte`, `per_token` of its own tokenizer, and the sum of each of the
        `stretches`, in nats.
        `hybrid`, `unigram`: losses; `donors`: of each donor that has a head; `null`: of the hybrid
        with one span replaced, by the slots of the span; `swaps`: see `measure_swaps`.
    """

    def losses(reader: Reader, nats: Nats) -> Losses:
        return {
            part.domain.name: held_out_loss(part, reader, nats, work.read_out) for part in judged
        }

    unigram = _unigram(models.reader, windows)
    return {
        "unigram": {
            part.domain.name: held_out_loss(part, models.reader, unigram, lambda _: None)
            for part in judged
        },
        "donors": {
            donor: losses(models.readers[donor], whole(models.alone(donor)))
            if donors is None
            else donors[donor]
            for donor in models.donors
            if models.has_head(donor)
        },
        "null": {null.span: losses(models.reader, _without(models, null)) for null in nulls},
        "swaps": measure_swaps(
            models, windows, lambda: losses(models.reader, whole(models.hybrid)), work.passed
        ),
        "hybrid": losses(models.reader, whole(models.hybrid)),
    }


def _without(models: HybridWithDonors, null: Null) -> Nats:
    """The hybrid with a span's ridge map in the span's place."""
    norm = getattr(models.module(null.bridge), "norm", None)

    def nats(batch: Encoded) -> Tensor:
        stream = Stream(models.hybrid, batch.tokens, batch.mask)
        hidden = stream.run(stream.first, 0, null.first)
        hidden = null.affine(hidden if norm is None else norm(hidden))
        hidden = stream.run(hidden, null.last, stream.depth, crossed=True)
        return stream.nats(hidden, crossed=null.last == stream.depth, start=batch.start)

    return nats


def _unigram(reader: Reader, windows: Sequence[Windows]) -> Nats:
    """Frequencies of the tokens in the text that the bridges were fitted on."""
    counts = torch.ones(reader.rows, dtype=torch.float64)  # none has probability 0
    for part in windows:
        for text in part.fit:
            ids, _ = reader.tokens(text)
            counts += torch.bincount(torch.tensor(ids), minlength=reader.rows)
    nats = counts.sum().log() - counts.log()

    def of_rows(batch: Encoded) -> Tensor:
        tokens = batch.tokens[:, 1:].cpu()
        real = torch.ones_like(tokens) if batch.mask is None else batch.mask[:, 1:].cpu()
        real = real[:, batch.start :]
        tokens = tokens[:, batch.start :]
        return (nats[tokens] * real).sum(1)

    return of_rows

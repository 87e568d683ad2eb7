"""The rows of a training, in their order, as tensors (torch side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hybridize.cpt.data.blocks import IGNORED, Blocks
from hybridize.cpt.data.prefix import Prefix

Order = NDArray[np.int64]  # (rows, 2): source, and row of it


def rows_of(blocks: Blocks, rows: Sequence[int], *, packed: bool) -> dict[str, Tensor]:
    """Rows of one source, (rows, tokens) each; positions where they tell documents apart."""
    index = list(rows)
    arrays = {"input_ids": blocks.tokens, "labels": blocks.labels}
    arrays |= {"position_ids": blocks.positions} if packed else {}
    return {name: torch.from_numpy(a[index].astype("int64")) for name, a in arrays.items()}


def batch_of(sources: Sequence[Blocks], order: Order, *, packed: bool) -> dict[str, Tensor]:
    """Rows of several sources, in an order."""
    found = [rows_of(sources[source], [row], packed=packed) for source, row in order]
    return {name: torch.cat([row[name] for row in found]) for name in found[0]}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as one batch, without the padding that all of them end with."""
    batch = {
        name: torch.stack([item[name] for item in items])
        if isinstance(items[0][name], Tensor)
        else torch.tensor([item[name] for item in items])
        for name in items[0]
    }
    return trimmed(batch)


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch up to the last token that is predicted in any of its rows: nothing sees behind it."""
    last = int((batch["labels"] != IGNORED).any(0).nonzero().max()) + 1
    return {name: value[:, :last] if value.ndim > 1 else value for name, value in batch.items()}


class Rows(Dataset[dict[str, Any]]):
    """Rows of several sources in the order of a training.

    Args:
        first: number of the first row in the order of the whole training.
        prefix: what arrives at the first part that learns, for each row.
    """

    def __init__(
        self,
        sources: Sequence[Blocks],
        order: Order,
        *,
        packed: bool,
        first: int = 0,
        prefix: Prefix | None = None,
    ) -> None:
        self.sources, self.order, self.packed, self.prefix = sources, order, packed, prefix
        self.first = first

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = (int(n) for n in self.order[index])
        found = rows_of(self.sources[source], [row], packed=self.packed)
        item: dict[str, Any] = {name: value[0] for name, value in found.items()}
        item |= {"source": source, "rows": self.first + index}
        if self.prefix is not None:
            item["prefix"] = self.prefix[source, row]
        return item

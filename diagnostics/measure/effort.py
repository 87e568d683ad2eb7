"""What a sweep will take, in multiplications, so that progress counts what takes time. No torch.

Beside the layers there is the head, which is wide: it reads out every depth through every lens, and
the outcome of every variant. What is not a product of matrices counts as the multiplications that
take as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridize.diagnostics.measure.sheets import Sheet
    from hybridize.diagnostics.measure.variants import Variant

# For each token of the vocabulary, measured on processors: softmax and entropy; a divergence.
SOFTMAX, DIVERGENCE = 250, 200
# Of a ridge map, in float64: sums over tokens; decomposition and lambdas, over cubes of the width.
FIT_TOKENS, FIT_CUBES = 6, 80


@dataclass(frozen=True)
class Effort:
    """Multiplications that the steps of a sweep take.

    Attributes:
        layers: for one token, of each layer: its parameters.
        read: for one position that the head reads out.
        compare: for one outcome that is read out and compared.
        width: of the widest stream that maps are fitted to.
    """

    layers: Sequence[int]
    read: int
    compare: int
    width: int

    @classmethod
    def of(cls, layers: Sequence[int], *, width: int, vocabulary: int) -> Effort:
        """Of a model.

        Args:
            layers: parameters of each.
        """
        read = vocabulary * (width + SOFTMAX)
        return cls(tuple(layers), read, read + vocabulary * DIVERGENCE, width)

    def fit(self, num_tokens: int) -> int:
        """Of one linear map."""
        return FIT_TOKENS * num_tokens * self.width**2 + FIT_CUBES * self.width**3

    def visit(self, index: int, variants: Sequence[Variant]) -> int:
        """Of one token's visit to a layer, with the variants that are on their way there."""
        again = sum(variant.reruns and variant.acts_at(index) for variant in variants)
        below = sum(variant.below(index) for variant in variants)
        return self.layers[index] * (1 + below + again)

    def sweep(self, groups: Sequence[Sequence[Sheet]], variants: Sequence[Variant]) -> int:
        """Of all sheets, group by group, if every layer has every part.

        Lenses are fitted in the first group, on the sheets without points.
        """
        total, depth = 0, len(self.layers)
        stands = depth if any(variant.acts_on == "fit" for variant in variants) else 0
        fitted = [sum(len(s.rows) for s in group if s.points is None) for group in groups]
        views = 2 if fitted[0] else 1
        for i, group in enumerate(groups):
            maps = stands + (depth + 1 if i == 0 else 0)
            total += maps * self.fit(fitted[i]) if fitted[i] else 0
            for sheet in group:
                here = variants if sheet.perturbed else ()
                once = sum(self.visit(index, here) for index in range(depth))
                total += sheet.tokens.numel() * once
                if sheet.points is not None:
                    loss = int(sheet.lengths.sum()) if sheet.is_text else 0
                    reads = len(sheet.members) * (views * depth + 1)
                    total += self.read * (loss + reads)
                    outcomes = sum(variant.below(depth) for variant in here)
                    total += self.compare * len(sheet.members) * outcomes
        return total

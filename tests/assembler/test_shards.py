"""Where tensors lie in the files that are written."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from hybridize.model.checkpoint import BITS, SINGLE
from hybridize.model.shards import Output, lay_out

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
OUTPUTS = st.lists(st.tuples(st.sampled_from(["F64", "F32", "BF16", "U8"]), SHAPES), min_size=1)


@given(OUTPUTS)
def test_tensors_lie_at_multiples_of_64_bytes_where_their_sizes_allow(
    kinds: list[tuple[str, tuple[int, ...]]],
) -> None:
    """A mapped file is computed with where it lies, and kernels round by it.

    The format allows no gaps: what has an odd size comes last, each at a multiple of its own.
    """
    outputs = [Output(f"t{i}", d, s, None, ()) for i, (d, s) in enumerate(kinds)]
    (shard,) = lay_out(outputs, 1 << 30)
    placed = shard.placed()
    assert sorted(output.name for output, _ in placed) == sorted(output.name for output in outputs)
    for output, start in placed:
        assert start % math.gcd(output.nbytes, 64) == 0
        assert start % (BITS[output.dtype] // 8) == 0


def test_the_safetensors_library_reads_what_is_laid_out(tmp_path: Path) -> None:
    """It refuses gaps, and headers of a length that it did not expect."""
    sizes = {"odd": (3,), "even": (16,), "matrix": (8, 8), "none": (0,)}
    (shard,) = lay_out([Output(n, "F32", s, None, ()) for n, s in sizes.items()], 1 << 30)
    (tmp_path / SINGLE).write_bytes(shard.header() + bytes(shard.nbytes - len(shard.header())))
    with safe_open(tmp_path / SINGLE, "pt") as file:
        assert {name: tuple(file.get_tensor(name).shape) for name in sizes} == sizes

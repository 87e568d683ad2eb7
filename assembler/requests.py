"""What the second process of a build answers (torch side); arguments and answers are plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridize.assembler import check as checks
from hybridize.assembler import compute as computing
from hybridize.assembler.layout import hybrid_layout, keep_fp32_names
from hybridize.assembler.proof import prove_native
from hybridize.assembler.runtime import HybridConfig
from hybridize.assembler.runtime.configuration_hybridize import read_config
from hybridize.errors import HybridizeError


def prove(
    *,
    configs: Mapping[str, dict[str, Any]],
    picks: Sequence[tuple[str, int]],
    embeddings: str,
    head: str,
    tied: bool,
) -> dict[str, Any]:
    """Is the stack a native model? `config` to write, or `reason` why not."""
    pairs = [(donor, layer) for donor, layer in picks]
    return asdict(prove_native(configs, pairs, embeddings=embeddings, head=head, tied=tied))


def layout(
    *, config: dict[str, Any], donors: Mapping[str, Mapping[str, tuple[str, list[int]]]]
) -> dict[str, Any]:
    """Tensors of a hybrid, and the config.json to write."""
    shapes = {name: _shapes(tensors) for name, tensors in donors.items()}
    try:
        tensors = hybrid_layout(config, shapes)
    except NotImplementedError as error:  # the runtime's word for a donor that it cannot take apart
        raise HybridizeError(str(error)) from error
    written = json.loads(HybridConfig.from_dict(config).to_json_string())
    return {"tensors": [asdict(tensor) for tensor in tensors], "config": written}


def native_fp32(
    *, config: dict[str, Any], tensors: Mapping[str, tuple[str, list[int]]]
) -> list[str]:
    """Which tensors of a native model a cast must leave alone."""
    return keep_fp32_names(read_config(config), _shapes(tensors))


def compute(
    *, file: str, outputs: list[dict[str, Any]], bridges: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """Fill the holes of a shard; hash of each tensor."""
    return computing.fill(Path(file), outputs, bridges)


def check(*, folder: str, mode: str) -> dict[str, Any]:
    """Load a result and run it."""
    return {"checks": checks.check_model(Path(folder), run=mode == "forward")}


def _shapes(tensors: Mapping[str, tuple[str, list[int]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """JSON knows lists only."""
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}

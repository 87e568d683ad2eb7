"""What the second process of a build answers (torch side); arguments and answers are plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hybridize.assembler.fit import fitting
from hybridize.assembler.plan.stack import Bridge
from hybridize.assembler.worker import check as checks
from hybridize.assembler.worker import compute as computing
from hybridize.assembler.worker.proof import prove_native
from hybridize.errors import HybridizeError
from hybridize.model.donors import load_donor
from hybridize.model.special_tokens import KEYS
from hybridize.runtime import HybridConfig
from hybridize.runtime.configuration_hybridize import read_config
from hybridize.torch_model import tokenization
from hybridize.torch_model.layout import hybrid_layout, keep_fp32_names
from hybridize.torch_model.loading import Weights


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
    *,
    config: dict[str, Any],
    donors: Mapping[str, Mapping[str, tuple[str, list[int]]]],
    wholes: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Tensors of a hybrid, and the config.json to write."""
    shapes = {name: _shapes(tensors) for name, tensors in donors.items()}
    tensors = hybrid_layout(config, shapes, wholes)
    written = json.loads(HybridConfig.from_dict(config).to_json_string())
    return {"tensors": [asdict(tensor) for tensor in tensors], "config": written}


def native_fp32(
    *, config: dict[str, Any], tensors: Mapping[str, tuple[str, list[int]]]
) -> list[str]:
    """Which tensors of a native model a cast must leave alone."""
    return keep_fp32_names(read_config(config), _shapes(tensors))


def fit(
    *,
    config: dict[str, Any],
    donors: Mapping[str, str],
    tokenizers: Mapping[str, Mapping[str, str]],
    tokenizer: Mapping[str, str],
    bridges: list[dict[str, Any]],
    text: Mapping[str, Any],
    parameters: str,
    compute_dtype: str,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Fit the bridges of a hybrid, write their parameters, and measure it beside its controls.

    Args:
        donors: folder of each donor.
        tokenizers: `folder` and `start_token` of the tokenizer that each donor reads with;
            `tokenizer`: of the hybrid's.
        text: `file` of documents, `domains`, `length`, `held_out`, `seed`, `stream`,
            `measure`.
        parameters: safetensors file to write.
        compute_dtype: that models compute in, or `auto`.
        progress: see `pace.Told`.
    """
    found = {
        name: load_donor(Path(folder), name=name, source=folder, place=folder)
        for name, folder in donors.items()
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return fitting.run(
        Weights(found, device, compute=compute_dtype),
        config,
        [Bridge.from_dict(fields) for fields in bridges],
        tokenizers={name: _tokenizer(given) for name, given in tokenizers.items()},
        tokenizer=_tokenizer(tokenizer),
        text=text,
        parameters=Path(parameters),
        progress=progress,
    )


def compute(
    *,
    file: str,
    outputs: list[dict[str, Any]],
    bridges: Mapping[str, dict[str, Any]],
    fitted: str | None,
) -> dict[str, str]:
    """Fill the holes of a shard; hash of each tensor."""
    return computing.fill(
        Path(file),
        outputs,
        {where: Bridge.from_dict(fields) for where, fields in bridges.items()},
        Path(fitted) if fitted else None,
    )


def read_tokenizer(*, folder: str) -> dict[str, Any]:
    """What a tokenizer gives: see `tokenization.read`; or `reason` why it cannot be opened."""
    try:
        return {"reason": None, **tokenization.read(Path(folder))}
    except HybridizeError as error:
        return {"reason": error.findings[0].found}


def compare_tokenizers(*, one: str, other: str) -> dict[str, Any]:
    """Do two tokenizers number alike? See `tokenization.compare`; or `reason` why nobody knows."""
    try:
        return {"reason": None, **tokenization.compare(Path(one), Path(other))}
    except HybridizeError as error:
        return {"reason": error.findings[0].found}


def special_tokens(*, config: dict[str, Any]) -> dict[str, Any]:
    """Ids of the special tokens that a config.json states, with its class's defaults."""
    found = read_config(config)
    return {key: getattr(found, key, None) for key in KEYS}


def tokenizer_ids(*, folder: str) -> str:
    """Fingerprint of a result's tokenizer."""
    return tokenization.fingerprint(tokenization.open_tokenizer(Path(folder)))


def keep_ids(*, source: str, folder: str, ids: str, kind: str) -> None:
    """Have the tokenizer of a result give its donor's ids."""
    tokenization.keep_ids(Path(source), Path(folder), ids=ids, kind=kind)


def check(*, folder: str, mode: str) -> dict[str, Any]:
    """Load a result and run it."""
    return {"checks": checks.check_model(Path(folder), run=mode == "forward")}


def _tokenizer(given: Mapping[str, str]) -> fitting.Tokenizer:
    return fitting.Tokenizer(Path(given["folder"]), given["start_token"])


def _shapes(tensors: Mapping[str, tuple[str, list[int]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """JSON knows lists only."""
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}

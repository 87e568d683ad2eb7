"""Checkpoints of any size in the shape of a Llama, full of random bytes, written without torch."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from hybridize.model.checkpoint import INDEX, SINGLE, write_header

BLOCK = 1 << 20  # bytes that are drawn at a time

Tensor = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape, bytes


def write_llama(
    folder: Path,
    *,
    width: int,
    layers: int,
    vocabulary: int = 1024,
    shard: int = 10**9,
    seed: int = 0,
) -> int:
    """Write config.json and bf16 weights in files of about `shard` bytes.

    Returns:
        Bytes of all weight files.
    """
    folder.mkdir(parents=True)
    config = _config(width, layers, vocabulary)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    groups: list[list[Tensor]] = [[]]
    for tensor in _tensors(config):
        if sum(t[3] for t in groups[-1]) + tensor[3] > shard and groups[-1]:
            groups.append([])
        groups[-1].append(tensor)
    count = len(groups)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    else:
        places = {t[0]: name for name, group in zip(names, groups, strict=True) for t in group}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    source = random.Random(seed)
    return sum(
        _write(folder / name, group, source) for name, group in zip(names, groups, strict=True)
    )


def _write(file: Path, tensors: list[Tensor], source: random.Random) -> int:
    with file.open("wb") as stream:
        stream.write(write_header(tensors))
        left = sum(tensor[3] for tensor in tensors)
        while left:
            left -= stream.write(source.randbytes(min(BLOCK, left)))
        return stream.tell()


def _config(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    heads = max(1, width // 64)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tensors(config: dict[str, Any]) -> list[Tensor]:
    width, inner, rows = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}
    return [(name, "BF16", shape, 2 * math.prod(shape)) for name, shape in shapes.items()]

"""What a folder's headers and configs say against taking layers from it (no torch).

Everything here would come out as a wrong model, or as a failure after the copy: weights that
stand for other numbers, names that transformers passes over, shapes that its classes refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridize.architectures.defaults import class_default
from hybridize.architectures.native import PER_LAYER
from hybridize.errors import Finding, HybridizeError
from hybridize.model.anatomy import PATTERN_KEYS, Anatomy, text_config
from hybridize.model.checkpoint import LFS_FIX, LFS_FOUND, Checkpoint, is_lfs_pointer

ADAPTER = "adapter_config.json"
_QUANTIZED_KEYS = ("quantization_config", "compression_config")
_QUANTIZED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
# ModelOpt and fp8, compressed-tensors, GPTQ and AWQ, bitsandbytes, MXFP4.
_QUANTIZED_NAMES = re.compile(
    r"[._](weight_scale(_inv|_2)?|weight_packed|weight_zero_point|weight_shape|qweight|qzeros|g_idx|"
    r"SCB|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+|"
    r"(?:gate_up_proj|down_proj)_(?:blocks|scales))$"
)
_QUANTIZED_DTYPES = re.compile(r"^(F8_|F6_|F4|I8$|U8$|I4|U4|I32$)")
# What a wrapper around a model, at the time of saving, has put into the names.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel, DDP or DeepSpeed",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
_ADAPTED = re.compile(r"(^base_model\.model\.|\.base_layer\.|\.lora_[AB]\.|\.modules_to_save\.)")
# One entry a layer; RecurrentGemma's spells one period.
_PER_LAYER = sorted({*PATTERN_KEYS, *PER_LAYER} - {"block_types"})
_FRONT = 4_000_000  # characters of a tokenizer.json in which its added tokens are looked for
_SMALL = (".json", ".model", ".txt", ".jinja", ".tiktoken")


def unsound(checkpoint: Checkpoint) -> list[Finding]:
    """What is wrong with a folder as a whole; each is told as of a donor: "is quantized"."""
    findings = [
        _quantized(checkpoint),
        _wrapped(checkpoint.tensors),
        _adapted(checkpoint),
        _pointers(checkpoint.folder),
    ]
    return [finding for finding in findings if finding is not None]


def contradictions(checkpoint: Checkpoint, anatomy: Anatomy) -> list[Finding]:
    """Where config.json and the tensors say different things."""
    config = text_config(checkpoint.config)
    return [
        *_rows(config, anatomy),
        *_lists(config, len(anatomy.layers)),
        *_tokens(checkpoint.folder, anatomy.vocabulary),
    ]


def added_tokens(folder: Path) -> dict[int, str]:
    """Tokens beside the vocabulary, by number, if they stand in front of it in tokenizer.json."""
    try:
        with (folder / "tokenizer.json").open(encoding="utf-8") as file:
            start = file.read(_FRONT)
        _, found, after = start.partition('"added_tokens":')
        entries, _ = json.JSONDecoder().raw_decode(after.lstrip()) if found else ([], 0)
        return {int(entry["id"]): str(entry["content"]) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError):  # whoever needs the tokenizer says so
        return {}


def tokens_beyond(folder: Path, rows: int) -> dict[int, str]:
    """Tokens added to a tokenizer, by number, that an embedding has no row for.

    They stand in front of tokenizer.json: the rest of it may be tens of megabytes.
    """
    return {number: token for number, token in added_tokens(folder).items() if number >= rows}


def refuse_adapter_alone(folder: Path) -> None:
    """Say what a folder is that holds an adapter and no model."""
    if (folder / ADAPTER).exists() and not (folder / "config.json").exists():
        raise HybridizeError(
            "this is an adapter alone, not a model", fix=_merge_command(folder), place=str(folder)
        )


def _quantized(checkpoint: Checkpoint) -> Finding | None:
    sign = next(_quantization(checkpoint), None)
    if sign is None:
        return None
    return Finding(
        f"is quantized ({sign}), and its weights cannot be mixed with others",
        fix="use the unquantized checkpoint, and quantize the result",
    )


def _quantization(checkpoint: Checkpoint) -> Iterator[str]:
    """Signs of it, the plainest first."""
    for place, config in (
        ("config.json", checkpoint.config),
        ("text_config of config.json", text_config(checkpoint.config)),
    ):
        yield from (f"{key} in {place}" for key in _QUANTIZED_KEYS if config.get(key))
    yield from (name for name in _QUANTIZED_FILES if (checkpoint.folder / name).exists())
    for tensor in checkpoint.tensors.values():
        if _QUANTIZED_NAMES.search(tensor.name):
            yield f"tensor {tensor.name}"
        elif tensor.name.endswith(("weight", "proj")) and _QUANTIZED_DTYPES.match(tensor.dtype):
            yield f"tensor {tensor.name} is stored as {tensor.dtype}"


def _wrapped(names: Iterable[str]) -> Finding | None:
    for name in names:
        parts = [f"{part}." for part in name.split(".")[:-1]]
        inside = [word for word in _WRAPPERS if word.startswith("_") and word in parts]
        found = parts[0] if parts and parts[0] in _WRAPPERS else next(iter(inside), None)
        if found:
            return Finding(
                f"has names that {_WRAPPERS[found]} has put '{found}' into ({name}): transformers "
                "would pass over them and start at random",
                fix="save the model from within the wrapper (accelerator.unwrap_model(model)), or "
                f"rename: {_rename_command(found)}",
            )
    return None


def _rename_command(word: str) -> str:
    return (
        'python -c "import sys, safetensors.torch as s; '
        f"[s.save_file({{k.replace('{word}', ''): v for k, v in s.load(open(f, 'rb').read())"
        ".items()}, f, {'format': 'pt'}) for f in sys.argv[1:]]\" FOLDER/*.safetensors, and the "
        "same in FOLDER/model.safetensors.index.json if there is one"
    )


def _adapted(checkpoint: Checkpoint) -> Finding | None:
    name = next((name for name in checkpoint.tensors if _ADAPTED.search(name)), None)
    if name is not None:
        return Finding(
            f"was saved with an adapter in it ({name})",
            fix="load it with peft and save what model.merge_and_unload() returns",
        )
    if (checkpoint.folder / ADAPTER).exists():
        return Finding(
            f"has an adapter beside its weights ({ADAPTER}), which transformers would apply, and "
            "its files are the model without it",
            fix=f"{_merge_command(checkpoint.folder)}; or remove {ADAPTER} to use the model "
            "without it",
        )
    return None


def _merge_command(folder: Path) -> str:
    """Shell commands that leave the merged model beside the folder."""
    merged, load = f"{folder}-merged", f"peft.AutoPeftModelForCausalLM.from_pretrained('{folder}'"
    move = ""
    if (folder / "config.json").exists():  # the model around the adapter is the one in the folder
        adapter = f"{folder}-adapter"
        move = f"mkdir {adapter} && mv {folder}/adapter_* {adapter} && "
        base = f"transformers.AutoModelForCausalLM.from_pretrained('{folder}', dtype='auto')"
        load = f"peft.PeftModel.from_pretrained({base}, '{adapter}'"
    return (
        f'merge it: {move}python -c "import peft, transformers; {load})'
        f".merge_and_unload().save_pretrained('{merged}')\", and copy its tokenizer files"
    )


def _pointers(folder: Path) -> Finding | None:
    """Of small files; those that hold weights or the config are found when they are read."""
    files = (f for f in sorted(folder.iterdir()) if f.suffix in _SMALL and is_lfs_pointer(f))
    file = next(files, None)
    if file is None:
        return None
    return Finding(f"has {LFS_FOUND} in place of {file.name}", fix=LFS_FIX)


def _tokens(folder: Path, rows: int) -> Iterator[Finding]:
    added = added_tokens(folder)
    beyond = [number for number in added if number >= rows]
    if 2 * len(beyond) > len(added):
        yield Finding(
            f"has a tokenizer that gives numbers up to {max(beyond)}, and {rows} rows in its "
            "embedding",
            fix="take the tokenizer files of the same release; or the checkpoint whose embedding "
            "was resized to them",
        )


def _rows(config: Mapping[str, Any], anatomy: Anatomy) -> Iterator[Finding]:
    says = config.get("vocab_size", class_default(str(config.get("model_type")), "vocab_size"))
    matrices = (anatomy.embedding, *(t for t in anatomy.head if len(t.shape) == 2))
    for tensor in matrices:
        if isinstance(says, int) and tensor.shape[0] != says:
            yield Finding(
                f"has {tensor.shape[0]} rows in {tensor.name}, and its config says "
                f"vocab_size: {says}",
                fix=f"write vocab_size: {tensor.shape[0]} into config.json if tokens were added; "
                "otherwise copy the checkpoint again",
            )


def _lists(config: Mapping[str, Any], depth: int) -> Iterator[Finding]:
    for key in _PER_LAYER:
        entries = config.get(key)
        if isinstance(entries, list | str) and entries and len(entries) != depth:
            yield Finding(
                f"has {depth} layers, and {len(entries)} entries of {key} in its config",
                fix=f"give {key} one entry a layer, or take the config.json of the same release",
            )

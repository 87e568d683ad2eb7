"""Opens a model folder as its users will, and runs it (torch side)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import hybridize.runtime  # noqa: F401 - registers the hybrid's classes
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.machine.precision import free_memory
from hybridize.model.checkpoint import open_checkpoint
from hybridize.torch_model.conversion import DiskTensors
from hybridize.torch_model.layout import check_names

TOKENS = 8  # length of the input of the forward pass
SHARE = 0.6  # of free memory that a model may take before it is passed layer by layer


def check_model(folder: Path, *, run: bool) -> list[str]:
    """Compare a folder's tensors with what its class asks for; with `run`, load it and run it.

    Returns:
        What held, in words.

    Raises:
        CheckFailed: something is missing, unexpected, of another shape, or not finite.
    """
    disk = {t.name: (t.dtype, t.shape) for t in open_checkpoint(folder).tensors.values()}
    try:
        config = AutoConfig.from_pretrained(folder)
        done = [_check_names(config, disk, folder)]
        if run:
            done += _run(config, folder)
    except HybridizeError:
        raise
    except Exception as error:  # whatever it is, the model does not load and run
        found = f"transformers cannot load and run it: {type(error).__name__}: {error}"
        raise CheckFailed(found, place=str(folder)) from error
    return done


def _check_names(config: PreTrainedConfig, disk: DiskTensors, folder: Path) -> str:
    missing, unexpected, mismatched = check_names(config, disk)
    shapes = [f"{name} {list(found)} for {list(wanted)}" for name, found, wanted in mismatched]
    _raise(folder, missing=missing, unexpected=unexpected, mismatched=shapes)
    asker = (config.architectures or [config.model_type])[0]
    return f"{len(disk)} tensors are just those that {asker} asks for"


@torch.no_grad()
def _run(config: PreTrainedConfig, folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as offload:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, **_placement(folder, offload)
        )
        model, info = loaded
        _raise(
            folder,
            missing=sorted(info["missing_keys"]),
            unexpected=sorted(info["unexpected_keys"]),
            mismatched=sorted(str(key) for key in info["mismatched_keys"]),
        )
        vocabulary = config.get_text_config(decoder=True).vocab_size
        tokens = torch.arange(1, TOKENS + 1)[None] % vocabulary
        logits = model(input_ids=tokens, use_cache=False).logits
        if not bool(logits.isfinite().all()):
            raise CheckFailed(
                "a forward pass gives numbers that are not finite",
                fix="does each donor alone give finite logits in this dtype?",
                place=str(folder),
            )
    where = "" if not hasattr(model, "hf_device_map") else ", layer by layer"
    return [
        "from_pretrained finds nothing missing, unexpected or of another shape",
        f"a forward pass of {TOKENS} tokens is finite{where}",
    ]


def _placement(folder: Path, offload: str) -> dict[str, Any]:
    """A model larger than memory stays on disk and is passed layer by layer."""
    nbytes = open_checkpoint(folder).nbytes
    free = free_memory()
    if nbytes < SHARE * free:
        return {}
    return {
        "device_map": "auto",
        "max_memory": {"cpu": int(SHARE / 2 * free)},
        "offload_folder": offload,
    }


def _raise(folder: Path, **wrong: Sequence[str]) -> None:
    listed = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in wrong.items()
        if names
    ]
    if listed:
        raise CheckFailed(
            f"the tensors are not those that the model asks for: {'; '.join(listed)}",
            fix="please report this with the recipe: the plan should have found it",
            place=str(folder),
        )

"""Checkpoints that are whole or not there (torch side).

A checkpoint holds the tensors that learn, the optimizer's moments of them, and a manifest with the
hash of each file, the plan, and the hash of the base that all else is in.
It is written under another name and then renamed. Tensors lie in it whole, however many processes
there were.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hybridize.cpt.state.identity import Identity, check_same
from hybridize.cpt.state.tensors import State, like, whole
from hybridize.errors import CheckFailed
from hybridize.files.hashes import content_hash
from hybridize.machine import ranks

TRAINED, MOMENTS, MANIFEST = "trained.safetensors", "optimizer.safetensors", "checkpoint.json"
PREFIX = "checkpoint-"


def publish_checkpoint(
    folder: Path,
    name: str,
    write: Callable[[Path], None],
    note: dict[str, Any],
    *,
    keep: int,
) -> None:
    """Write a checkpoint under a staging name, add its manifest, rename it, remove the oldest.

    Args:
        write: given the staging folder, which has what other processes wrote.
        note: for the manifest.
        keep: newest checkpoints that stay.
    """
    staged = staging(folder, name)
    write(staged)
    inside = sorted(path for path in staged.rglob("*") if path.is_file())
    files = {path.relative_to(staged).as_posix(): content_hash(path) for path in inside}
    (staged / MANIFEST).write_text(json.dumps({**note, "files": files}, indent=1))
    shutil.rmtree(folder / name, ignore_errors=True)
    staged.rename(folder / name)
    for old in checkpoints(folder)[keep:]:
        shutil.rmtree(old)


def staging(folder: Path, name: str) -> Path:
    """Where a checkpoint grows."""
    return folder / f".{name}"


def checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(
        (p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()),
        key=step_of,
        reverse=True,
    )


def step_of(checkpoint: Path) -> int:
    """Steps that were done when it was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_whole(folder: Path, identity: Identity) -> Path | None:
    """The newest checkpoint of which every file is what its manifest says; None: there is none.

    Raises:
        CheckFailed: it is of another training, in what; or there are some, and none is whole.
    """
    found = checkpoints(folder)
    for i, candidate in enumerate(found):
        manifest = _whole(candidate)
        if manifest is not None:
            check_same(manifest["training"], identity, candidate)
            for broken in found[:i]:  # else they would outlive whole ones: the newest stay
                shutil.rmtree(broken)
            return candidate
    if found:
        raise CheckFailed(
            f"none of the {len(found)} checkpoints is whole: {found[0].name} and those before it "
            "lack files, or have others than they were written with",
            fix="start over with --force",
            place=str(folder),
        )
    return None


def _whole(checkpoint: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
        same = all(content_hash(checkpoint / name) == h for name, h in manifest["files"].items())
        return manifest if same and TRAINED in manifest["files"] else None
    except (OSError, ValueError, KeyError):
        return None


def save_state(state: State, file: Path, *, place: Path, step: int) -> None:
    """Write tensors, if all are finite.

    Raises:
        CheckFailed: one is not.
    """
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise CheckFailed(
            f"{broken[0]} holds numbers that are not finite at step {step}",
            fix="lower the learning rate; the last checkpoint is from before",
            place=str(place),
        )
    write_tensors(state, file)


def write_tensors(state: State, file: Path) -> None:
    """As safetensors does it, with the system's own error: a full disk, say.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(state, file)
    except SafetensorError as error:
        raise as_of_system(str(error), file) or error from None


def as_of_system(said: str, file: Path) -> OSError | None:
    """The system's error out of a text that names its number; None: it names none."""
    found = re.search(r"(?:os error|Errno) (\d+)", said)
    return found and OSError(int(found[1]), os.strerror(int(found[1])), str(file))


def moments_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> State:
    """The optimizer's state, whole, as `NAME/exp_avg` and so on; none of what is frozen."""
    found: State = {}
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter in optimizer.state, name
        for key, value in optimizer.state.get(parameter, {}).items():
            full = whole(torch.as_tensor(value))
            if ranks.is_main():  # the others only take part
                found[f"{name}/{key}"] = full
    return found


def set_moments(optimizer: torch.optim.Optimizer, model: nn.Module, file: Path) -> None:
    """Put an optimizer's state back, sharded as its parameters are."""
    parameters = dict(model.named_parameters())
    # A fused step reads its number where the parameter is, any other one on the processor.
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for key, value in load_file(file).items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        if kind == "step":
            optimizer.state[parameter][kind] = value.to(parameter.device) if fused else value
        else:
            optimizer.state[parameter][kind] = like(value, parameter)


def mean(files: Sequence[Path], state: State) -> State:
    """The mean of saved tensors and of those at hand, summed in float64."""
    total = {name: value.double() for name, value in state.items()}
    for file in files:
        for name, value in load_file(file).items():
            total[name] += value.double()
    return {name: (value / (len(files) + 1)).float() for name, value in total.items()}

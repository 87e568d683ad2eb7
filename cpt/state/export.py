"""A trained model as a folder like the build's, whose bytes are its base's and what learnt (torch).

The base is copied and the trained tensors are written over their places in it, in the dtype that
they are stored in: whatever was frozen is the base's, byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from blake3 import blake3
from torch import Tensor

from hybridize.console import say
from hybridize.cpt.state.metrics import FILE as METRICS
from hybridize.errors import HybridizeError
from hybridize.files.reading import State, refuse_changed
from hybridize.files.staging import MANIFEST
from hybridize.model.checkpoint import TensorHeader, open_checkpoint
from hybridize.model.manifest import files_of, read_manifest, sealed, some, strangers_of
from hybridize.recipe.portable import portable
from hybridize.torch_model.reader import TORCH

CARD = "README.md"


def export(
    base: Path,
    out: Path,
    trained: Mapping[str, Tensor],
    record: Mapping[str, Any],
    *,
    staged: Path,
    metrics: Path,
    states: Mapping[Path, State | None],
) -> list[str]:
    """Write a model folder that appears whole.

    Args:
        staged: where it grows, on the same disk; what is there of an earlier try is removed.
        trained: tensors by the name that they have on disk.
        record: of the training, for the manifest.
        metrics: what was written down while it ran; it comes along.
        states: of the base's files when the training began.

    Returns:
        Names of trained tensors that are what they were: rounded to the stored dtype, they have
        not moved.
    """
    shutil.rmtree(staged, ignore_errors=True)
    _copy(base, staged)
    headers = open_checkpoint(staged).tensors
    still, hashes = [], {}
    for name, tensor in trained.items():
        content = _bytes(tensor, headers[name])
        hashes[name] = blake3(content).hexdigest()
        if not _overwrite(headers[name], content):
            still.append(name)
    shutil.copy(metrics, staged / metrics.name)
    _note(base, staged, out, hashes, {**record, "unmoved": still})
    refuse_changed(states)
    if out.exists():
        raise HybridizeError("appeared meanwhile", place=str(out))
    staged.rename(out)
    return still


def _copy(base: Path, staged: Path) -> None:
    """Copy what belongs to the model: where there is a manifest, what that names.

    A report or a checkpoint that somebody put there is no part of the model, and what a build did
    not write is not vouched for by a training either. It is named, and stays where it is.
    """
    found = files_of(base)
    strangers = strangers_of(base, read_manifest(base)) if (base / MANIFEST).is_file() else []
    if strangers:
        say(f"left behind, since the build did not write it: {some(strangers)}")
    for name in found.keys() - set(strangers):
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(found[name], target)


def _bytes(tensor: Tensor, header: TensorHeader) -> bytes:
    stored = tensor.detach().cpu().to(TORCH[header.dtype]).contiguous()
    return stored.reshape(-1).view(torch.uint8).numpy().tobytes()


def _overwrite(header: TensorHeader, content: bytes) -> bool:
    """Whether anything has changed."""
    assert len(content) == header.nbytes
    with header.file.open("r+b") as file:
        file.seek(header.start)
        before = file.read(header.nbytes)
        file.seek(header.start)
        file.write(content)
    return before != content


def _note(
    base: Path, staged: Path, out: Path, hashes: Mapping[str, str], record: Mapping[str, Any]
) -> None:
    """Go on with the build's provenance, so that `verify` knows what has learnt."""
    file = staged / MANIFEST
    if not file.is_file():
        return
    manifest = read_manifest(staged)
    for name, digest in hashes.items():
        manifest["tensors"][name] |= {"blake3": digest, "copied": False, "trained": True}
    for noted in (manifest["recipe"], *manifest["donors"].values()):
        if noted.get("folder") is not None:
            where = os.path.normpath(base.absolute() / noted["folder"])
            noted["folder"] = os.path.relpath(where, out.absolute())
    record = portable(record, out.absolute())
    manifest["files"][METRICS] = blake3((staged / METRICS).read_bytes()).hexdigest()
    manifest["training"] = [*manifest.get("training", []), dict(record)]
    card = staged / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8").rstrip()
        text = text.replace("\n## Recipe\n", "\n## Recipe of the build\n")
        card.write_text(f"{text}\n\n{_section(record)}", encoding="utf-8")
        manifest["files"][CARD] = blake3(card.read_bytes()).hexdigest()
    file.write_text(sealed(manifest), encoding="utf-8")


def _section(record: Mapping[str, Any]) -> str:
    """What the model card says of the training."""
    recipe = yaml.safe_dump({"cpt": dict(record["recipe"])}, sort_keys=False, allow_unicode=True)
    lines = [
        "## Continued pre-training",
        "",
        f"{record['tokens']:,} tokens. The exact lists of tensors, the text and its hashes are in "
        f"`{MANIFEST}`.",
        "",
        "| stage | what learnt | parameters | steps |",
        "|---|---|---|---|",
        *(
            f"| {i} | {_entries(stage)} | {stage['num_trained']:,} | {stage['steps']:,} |"
            for i, stage in enumerate(record["stages"])
        ),
        "",
        "| text | share | from |",
        "|---|---|---|",
        *(
            f"| {text['name']} ({text['kind']}) | {text['share']:.0%} | {_origin(text['source'])} |"
            for text in record["text"]
        ),
        "",
        *_losses(record["losses"]),
        "",
        "Recipe of the training:",
        "",
        "```yaml",
        recipe.rstrip("\n"),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _losses(losses: Mapping[str, Any]) -> list[str]:
    if not losses:
        return ["No loss was measured."]
    rows = (
        f"| {name} | {pair['before']:.4f} | {pair['after']:.4f} |" for name, pair in losses.items()
    )
    heading = ["Loss on held-out text, in nats per token:", ""]
    return [*heading, "| text | before | after |", "|---|---|---|", *rows]


def _entries(stage: Mapping[str, Any]) -> str:
    """What of the model was to learn, as the recipe says it."""
    return ", ".join(
        entry if isinstance(entry, str) else ", ".join(f"{k}: {v}" for k, v in entry.items())
        for entry in stage["entries"]
    )


def _origin(source: Mapping[str, Any]) -> str:
    """Where a text came from, as the recipe says it."""
    files = source.get("files")
    return ", ".join(files) if files else ", ".join(str(value) for value in source.values())

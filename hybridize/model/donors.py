"""Donors: from what the recipe says to a folder on this machine, and what lies in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridize.architectures.families import family
from hybridize.architectures.refused import refusal, wrapper_refusal
from hybridize.errors import Finding, HybridizeError
from hybridize.files.reading import expanded, states_of
from hybridize.model.anatomy import Anatomy, dissect, text_config
from hybridize.model.checkpoint import Checkpoint, open_checkpoint
from hybridize.model.heads import has_head, is_tied, ties
from hybridize.model.hub import from_hub
from hybridize.model.soundness import contradictions, refuse_adapter_alone, unsound
from hybridize.model.tokenizer_files import PATTERNS, tokenizer_files

ALONE = "model"  # what a model is called in memory that is the hybrid of its own layers
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


@dataclass(frozen=True)
class Donor:
    """One donor of a recipe, resolved."""

    name: str
    source: str  # as the recipe says it: a folder, a hub id, or a merge file
    commit: str | None  # of a hub id
    checkpoint: Checkpoint
    anatomy: Anatomy
    merge: dict[str, Any] | None = None  # of a merged donor: merge file, its donors, their hashes
    start_token: str = "auto"  # what stands before text, as the recipe says it

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def config(self) -> dict[str, Any]:
        """The config of the language model; one within another is what that makes of it."""
        text = dict(text_config(self.checkpoint.config))
        if not self.nested:
            return text
        within = family(self.checkpoint.config.get("model_type")).within
        return {**text, "tie_word_embeddings": ties(self.checkpoint), **within}

    @property
    def nested(self) -> bool:
        """Whether the language model is one of several parts."""
        return text_config(self.checkpoint.config) is not self.checkpoint.config

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def depth(self) -> int:
        return len(self.anatomy.layers)

    @property
    def has_head(self) -> bool:
        """Whether it can write a token; without a head it has no loss."""
        return has_head(self.checkpoint, self.anatomy)

    @property
    def tied(self) -> bool:
        """Whether its head is its embedding."""
        return is_tied(self.checkpoint, self.anatomy)

    @property
    def positions(self) -> int | None:
        """Tokens that the model was made to read at a time; None if its config does not say."""
        return positions_of(self.config)

    @property
    def tokenizer_files(self) -> list[Path]:
        return tokenizer_files(self.folder)

    @property
    def license(self) -> str | None:
        """`license:` in the front matter of the donor's model card."""
        if self.merge is not None:
            licenses = {donor["license"] for donor in self.merge["donors"]}
            return licenses.pop() if len(licenses) == 1 else None
        card = self.folder / "README.md"
        if not card.exists():
            return None
        front = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
        match = re.search(r"^license:\s*(\S+)", front, re.MULTILINE)
        return match[1].strip("'\"") if match and front.startswith("---") else None


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model was made to read at a time; None if its config does not say."""
    found = (config.get(key) for key in POSITION_KEYS)
    return next((n for n in found if isinstance(n, int) and n > 0), None)


def load_donor(
    folder: Path, *, name: str, source: str, place: str, commit: str | None = None
) -> Donor:
    """Read the headers of a donor's folder.

    Raises:
        HybridizeError: it is broken, cannot be a donor, or says two things of itself.
    """
    refuse_adapter_alone(folder)
    # Those that are absent too: a chat template that appears meanwhile would be carried along.
    names = ["generation_config.json", *(name for name in PATTERNS if "*" not in name)]
    beside = states_of([*tokenizer_files(folder), *(folder / name for name in names)])
    checkpoint = open_checkpoint(folder)
    checkpoint = replace(checkpoint, states={**beside, **checkpoint.states})
    _refuse(checkpoint, name, place)
    anatomy = dissect(checkpoint)
    if found := contradictions(checkpoint, anatomy):
        raise _of_donor(found, name, place)
    return Donor(name, source, commit, checkpoint, anatomy)


def _refuse(checkpoint: Checkpoint, name: str, place: str) -> None:
    if found := unsound(checkpoint):
        raise _of_donor(found, name, place)
    config = text_config(checkpoint.config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise HybridizeError(f"donor '{name}': config.json has no model_type", place=place)
    whole_type = str(checkpoint.config.get("model_type"))
    if config is not checkpoint.config and (reason := wrapper_refusal(whole_type)):
        raise HybridizeError(f"donor '{name}' is of type '{whole_type}': {reason}", place=place)
    if reason := refusal(model_type, config):
        raise HybridizeError(f"donor '{name}' is of type '{model_type}': {reason}", place=place)


def _of_donor(findings: Iterable[Finding], name: str, place: str) -> HybridizeError:
    return HybridizeError.of(Finding(f"donor '{name}' {f.found}", f.fix, place) for f in findings)


def locate(
    model: str,
    *,
    revision: str | None,
    base: Path,
    place: str | None,
    offline: bool,
    weights: bool = True,
) -> tuple[Path, str | None]:
    """The folder of a model, and the commit if it came from the hub.

    Args:
        model: a folder, relative to `base`, or a hub id.
        base: folder of the recipe.
        weights: False if the headers of a model of the hub will do.
    """
    folder = (base / expanded(model)).resolve()
    if folder.is_dir():
        if revision is not None:
            raise HybridizeError(
                f"'{model}' is a folder here, and a folder has no revision '{revision}'",
                fix="remove the key revision, or rename the folder",
                place=place,
            )
        return folder, None
    if not HUB_ID.match(model):
        raise HybridizeError(
            f"no such folder: {folder}", fix="paths start at the recipe", place=place
        )
    return from_hub(model, revision, weights=weights, offline=offline, place=place)


def open_model(model: str, *, offline: bool = False) -> Checkpoint:
    """A model named on the command line: a folder or a hub id, `org/name@revision`."""
    name, _, revision = model.partition("@")
    if Path(model).is_dir():
        name, revision = model, ""
    folder, _ = locate(
        name, revision=revision or None, base=Path(), place=None, offline=offline, weights=False
    )
    refuse_adapter_alone(folder)
    return open_checkpoint(folder)


def whole_configs(donors: Iterable[Donor]) -> dict[str, dict[str, Any]]:
    """config.json of the donors whose files hold more than a language model."""
    return {d.name: d.checkpoint.config for d in donors if d.nested}


def tensors_of(donor: Donor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a donor."""
    return {t.name: (t.dtype, t.shape) for t in donor.checkpoint.tensors.values()}

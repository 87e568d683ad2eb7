"""What is diagnosed: a model, a hybrid that was built, or the donors of a recipe. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridize.assembler import resolve_donor
from hybridize.console import say
from hybridize.diagnostics.subject.trace import Model, Slot
from hybridize.errors import Finding, HybridizeError
from hybridize.files.hashes import file_hash
from hybridize.files.staging import MANIFEST
from hybridize.machine.precision import AUTO
from hybridize.model.anatomy import Layer, width_of
from hybridize.model.checkpoint import TORCH_NAMES, Checkpoint, open_checkpoint
from hybridize.model.depth_map import mixer_of, mlp_of
from hybridize.model.donors import ALONE, Donor, load_donor, locate, positions_of
from hybridize.model.heads import without_head
from hybridize.model.manifest import read_manifest
from hybridize.model.tokenizer_files import tokenizer_files
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.portable import portable_text

if TYPE_CHECKING:
    from hybridize.torch_model.loading import Parts
    from hybridize.torch_model.windows import Reader

HYBRID = "hybridize"  # model_type of what the runtime runs


@dataclass(frozen=True)
class Subject:
    """One model that is diagnosed.

    Attributes:
        donor: None for a hybrid, which is run from its own files.
        slots: donor and layer of each slot, if others than the model's own.
        start_token: what stands before text, see `windows.Reader`.
    """

    name: str
    source: str
    commit: str | None
    checkpoint: Checkpoint
    donor: Donor | None
    slots: tuple[tuple[str, int], ...] = ()
    start_token: str = "auto"

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config if self.donor is None else self.donor.config

    @property
    def vocabulary(self) -> int:
        if self.donor is not None:
            return self.donor.anatomy.vocabulary
        return self.checkpoint.tensors["model.embed_tokens.weight"].shape[0]

    @property
    def has_head(self) -> bool:
        """Whether it has a loss."""
        return self.donor is None or self.donor.has_head

    @property
    def positions(self) -> int | None:
        """Tokens that it can read at a time; None if it does not say."""
        configs = [self.config] if self.donor else list(self.config["donors"].values())
        return min((n for c in configs if (n := positions_of(c)) is not None), default=None)

    def open(self, device: str, *, streamed: bool, compute: str = AUTO) -> Parts:
        """The model, in memory or on disk; this imports torch.

        Args:
            compute: dtype that it computes in, or `auto`, see `precision.compute_dtype`.
        """
        from hybridize.torch_model.loading import Weights, built_parts

        if self.donor is None:
            return built_parts(self.checkpoint, device, streamed=streamed, compute=compute)
        # Not its own name: a folder may be called `train`, as a method of torch's modules is.
        alone = {ALONE: replace(self.donor, name=ALONE)}
        return Weights(alone, device, compute=compute).parts(ALONE, streamed=streamed)

    def reader(self) -> Reader:
        """Its tokenizer; this imports torch."""
        from hybridize.torch_model.windows import Reader

        return Reader(
            self.name,
            self.checkpoint.folder,
            rows=self.vocabulary,
            longest=self.positions,
            start_token=self.start_token,
        )

    def as_model(self) -> Model:
        """What a trace says of it; weights are hashed, each file once."""
        main = self.donor.anatomy.dtype if self.donor else None
        files = sorted({tensor.file for tensor in self.checkpoint.tensors.values()})
        return Model(
            name=self.name,
            source=self.source,
            commit=self.commit,
            model_type=str(self.config["model_type"]),
            vocabulary=self.vocabulary,
            dtype=TORCH_NAMES[main] if main else str(self.config["dtype"]),
            parameters=self.checkpoint.num_parameters,
            hybrid=self.donor is None,
            files={file.name: file_hash(file) for file in files},
        )

    def as_slots(self) -> list[Slot]:
        if self.donor is not None:
            own = [(self.name, layer.index) for layer in self.donor.anatomy.layers]
            return [
                _slot(i, self.slots[i] if self.slots else place, layer, self.donor.config)
                for i, (place, layer) in enumerate(zip(own, self.donor.anatomy.layers, strict=True))
            ]
        found = []
        for i, slot in enumerate(self.config["slots"]):
            prefix = f"model.layers.{i}."
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in self.checkpoint.tensors.items()
                if name.startswith(prefix)
            }
            place = (slot["donor"], slot["layer"])
            config = self.config["donors"][slot["donor"]]
            bridge = str(i) in self.config["bridges"]
            found.append(_slot(i, place, Layer(slot["layer"], tensors), config, bridge=bridge))
        return found


def _slot(
    index: int,
    place: tuple[str, int],
    layer: Layer,
    config: Mapping[str, Any],
    *,
    bridge: bool = False,
) -> Slot:
    def named(text: str) -> str | None:
        return None if text == "-" else text

    return Slot(
        slot=index,
        donor=place[0],
        layer=place[1],
        mixer=named(mixer_of(dict(config), layer)),
        mlp=named(mlp_of(layer)),
        width=width_of(config) or 0,
        bridge=bridge,
        parameters=layer.num_parameters,
    )


def model_subject(model: str, *, offline: bool) -> Subject:
    """A model named on the command line: a folder or a hub id, `org/name@revision`.

    Raises:
        HybridizeError: it cannot be found, or the runtime cannot run it.
    """
    source, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
    folder, commit = locate(
        source, revision=revision or None, base=Path(), place=None, offline=offline
    )
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).resolve().name).strip("-") or "model"
    return _subject(folder, name=name, source=model, commit=commit)


def donor_subjects(recipe: RecipeFile, names: Iterable[str], *, offline: bool) -> list[Subject]:
    """Some donors of a recipe.

    Raises:
        HybridizeError: one cannot be found, or the runtime cannot run it; of all of them.
    """
    subjects: list[Subject] = []
    findings: list[Finding] = []
    for name in names:
        try:
            donor = resolve_donor(recipe, name, offline=offline)
        except HybridizeError as error:
            findings += error.findings
        else:
            start = recipe.recipe.donors[name].start_token
            subjects.append(
                Subject(
                    name, donor.source, donor.commit, donor.checkpoint, donor, start_token=start
                )
            )
    if findings:
        raise HybridizeError.of(findings)
    return subjects


def recipe_subjects(recipe: RecipeFile, *, built: Path, offline: bool) -> list[Subject]:
    """Each donor of a recipe, and the hybrid, if it lies under `built`.

    Raises:
        HybridizeError: a donor cannot be found, or the runtime cannot run it; of all donors.
    """
    found = donor_subjects(recipe, recipe.recipe.donors, offline=offline)
    for subject in found:
        if not subject.has_head:
            say(f"'{subject.name}' has no output head, and so no loss: it is left out")
    subjects = [subject for subject in found if subject.has_head]
    manifest = built / MANIFEST
    if not manifest.is_file():
        say(f"{built} is not there: the donors alone are diagnosed")
    elif read_manifest(built)["recipe"]["text"] != portable_text(recipe.document):
        say(f"{built} was built from another version of this recipe: it is left out")
    else:
        name = recipe.name if recipe.name not in recipe.recipe.donors else f"{recipe.name}-built"
        subjects.append(_subject(built, name=name, source=str(built), commit=None))
    return subjects


def _subject(folder: Path, *, name: str, source: str, commit: str | None) -> Subject:
    checkpoint = open_checkpoint(folder)
    if checkpoint.config.get("model_type") == HYBRID:
        start = start_token_of(folder)
        return Subject(name, source, commit, checkpoint, None, start_token=start)
    donor = load_donor(folder, name=name, source=source, place=str(folder), commit=commit)
    start = start_token_of(folder)
    subject = Subject(name, source, commit, checkpoint, donor, start_token=start)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return subject
    slots = read_manifest(folder)["slots"]  # a native result: layers of several donors
    if len(slots) != donor.depth:
        return subject
    return replace(subject, slots=tuple((slot["donor"], slot["layer"]) for slot in slots))


def check_heads(subjects: Sequence[Subject]) -> None:
    """Every subject must be able to write.

    Raises:
        HybridizeError: some have no output head.
    """
    if mute := [subject for subject in subjects if not subject.has_head]:
        raise HybridizeError.of(without_head(s.name, str(s.checkpoint.folder)) for s in mute)


def start_token_of(folder: Path) -> str:
    """What the recipe of a model that hybridize built puts before text; `auto` of any other."""
    if not (folder / MANIFEST).is_file():
        return "auto"
    manifest = read_manifest(folder)
    donors = manifest["recipe"]["resolved"]["donors"]
    reads_with = manifest["tokenizer"] or manifest["embeddings"]
    return str(donors.get(reads_with, {}).get("start_token", "auto"))


def check_tokenizers(subjects: Sequence[Subject]) -> None:
    """Every subject must be able to read.

    Raises:
        HybridizeError: some have no tokenizer files.
    """
    mute = [s for s in subjects if not tokenizer_files(s.checkpoint.folder)]
    if mute:
        raise HybridizeError.of(
            Finding(
                f"'{subject.name}' has no tokenizer files, and cannot read text",
                fix="put its tokenizer files into its folder",
                place=str(subject.checkpoint.folder),
            )
            for subject in mute
        )

"""The recipe: one YAML file that says which modules of which donors stand where.

Reading it finds every mistake that needs no donor: misspelt keys, unknown names, reversed ranges.
What needs a donor's header (a layer that it does not have) is found by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from hybridize.errors import Finding, HybridizeError, did_you_mean
from hybridize.plugins import plugin_names
from hybridize.positions import KEY, Document, Place, as_dict, as_list, read_yaml
from hybridize.recipe_fields import Bytes, Files, Layers, Where, text_entry

DONOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DonorSpec(_Section):
    """Where a donor comes from: a model, or a mergekit config that makes one."""

    model: str | None = Field(None, description="a folder (relative to this file) or a hub id")
    revision: str | None = Field(None, description="of a hub id: commit, tag or branch")
    merge: str | None = Field(None, description="a mergekit config; its result is the donor")


class ModuleSpec(_Section):
    """A sub-module of another donor's layer."""

    donor: str = Field(alias="from")
    layer: int = Field(ge=0)


class BridgeSpec(_Section):
    """What stands where the donor or the width changes."""

    kind: Annotated[str, WithJsonSchema({"type": "string", "enum": plugin_names("bridges")})] = (
        "linear"
    )
    init: Literal["auto", "ridge", "procrustes", "identity", "random"] = Field(
        "auto", description="auto: the better of ridge and identity on held-out calibration text"
    )
    norm: bool = Field(False, description="an RMS norm before the map")
    bias: bool = Field(True, description="a bias after the map")
    rank: int | None = Field(
        None, ge=1, description="lowrank: of the map; default: a quarter of the narrower width"
    )
    seed: int = Field(0, ge=0, description="of a random init")


class BridgesSpec(BridgeSpec):
    """The default bridge, and where bridges stand."""

    where: Where = Field(
        "auto",
        description=(
            "auto: where the width changes, and between donors of different lineage; "
            "width-changes: where the width does; changes: where the donor does; none; "
            "or a list of slots that a bridge stands before"
        ),
    )


def _bridge_shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _allow_shorthand(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "string", "enum": plugin_names("bridges")})


class SlotSpec(_Section):
    """One entry of the stack: layers of one donor, in this order."""

    donor: str = Field(alias="from")
    layers: Layers | None = None
    layer: int | None = Field(None, ge=0)
    mixer: ModuleSpec | None = Field(None, description="takes the place of the layer's mixer")
    mlp: ModuleSpec | None = Field(None, description="takes the place of the layer's MLP")
    bridge: Annotated[BridgeSpec | None, BeforeValidator(_bridge_shorthand)] = Field(
        None,
        description="a bridge before the first layer of this entry: its kind, or more of it",
        json_schema_extra=_allow_shorthand,
    )

    @property
    def picks(self) -> list[int]:
        """Layers of the donor, bottom up, counted from 0."""
        return self.layers if self.layers is not None else [self.layer or 0]


def _allow_a_string(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": "short for files"}, mapping]


class TextSpec(_Section):
    """Text of one domain: files, or a data set of the hub."""

    model_config = ConfigDict(json_schema_extra=_allow_a_string)

    name: str = Field("", description="of the domain; default: after its first file")
    files: Files | None = None
    dataset: str | None = Field(
        None, description="a data set of the hub, or a folder (relative to this file)"
    )
    subset: str | None = Field(None, description="of a data set")
    revision: str | None = Field(None, description="of a data set: commit, tag or branch")
    split: str = Field("train", description="of a data set")
    field: str = Field("text", description="of a row (JSON lines, parquet, data set): its text")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of the tokens, relative to other domains"
    )

    @model_validator(mode="before")
    @classmethod
    def _entry(cls, value: Any) -> Any:
        return text_entry(value)


class CalibrationSpec(_Section):
    """The text that bridges are fitted to and judged by."""

    data: list[TextSpec] = Field(
        [], min_length=1, description="default: text that hybridize brings, prose and code"
    )
    tokens: int | None = Field(
        None, ge=1, description="of all domains together; a fifth of them is held out"
    )
    length: int = Field(512, ge=8, description="tokens of a sequence")
    seed: int = Field(0, ge=0, description="of the order of the documents")
    stream: Literal["hybrid", "donor"] = Field(
        "hybrid",
        description="what bridges are fitted to: the hybrid's own hidden states, or its donor's",
    )


class Recipe(_Section):
    """A whole recipe. `load_recipe` reads one."""

    version: Literal[1] = 1
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    donors: dict[Annotated[str, Field(pattern=DONOR_NAME)], DonorSpec] = Field(min_length=1)
    slots: list[SlotSpec] = Field(min_length=1, description="from the embedding upwards")
    embeddings: str | None = Field(None, description="a donor; default: that of the first slot")
    head: str | None = Field(
        None, description="donor of final norm and head; default: that of the last slot"
    )
    tokenizer: str | None = Field(None, description="a donor; default: that of the embeddings")
    bridges: BridgesSpec = BridgesSpec()
    calibration: CalibrationSpec | None = None
    target: Literal["auto", "native", "hybrid"] = "auto"
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep"
    shard_size: Bytes = 5 * 10**9


class RecipeFile:
    """A recipe together with the file it stands in, so that later errors can name a place."""

    def __init__(self, recipe: Recipe, document: Document) -> None:
        self.recipe = recipe
        self.document = document

    @property
    def name(self) -> str:
        return self.recipe.name or self.document.path.stem

    def place(self, *where: str | int) -> str:
        return self.document.place(where)

    def path(self, relative: str) -> Path:
        """A path of the recipe; relative ones start at the recipe's folder."""
        return self.document.path.parent / Path(relative).expanduser()


def load_recipe(path: Path) -> RecipeFile:
    """Read and check a recipe.

    Raises:
        HybridizeError: the file cannot be read as YAML.
        HybridizeError: everything that is wrong with the recipe, in the order of the file.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise HybridizeError(
            "a recipe is a mapping with the keys donors and slots", place=document.place(())
        )
    recipe, mistakes = _validate(document.data)
    mistakes += list(_unknown_names(document.data))
    mistakes += list(_slot_mistakes(document.data))
    mistakes += list(_donor_mistakes(document.data))
    mistakes += list(_text_mistakes(document, ("calibration", "data")))
    if mistakes or recipe is None:
        # One finding a place: the branches of a union all complain about the same value.
        first = {where: (where, found, fix) for where, found, fix in reversed(mistakes)}
        ordered = sorted(first.values(), key=lambda mistake: document.position(mistake[0]))
        raise HybridizeError.of(
            Finding(found, fix, document.place(where)) for where, found, fix in ordered
        )
    return RecipeFile(recipe, document)


Mistake = tuple[Place, str, str | None]


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[Mistake]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, [_translate(detail) for detail in error.errors(include_url=False)]


def _translate(detail: ErrorDetails) -> Mistake:
    """One of pydantic's findings in our words."""
    # Pydantic names the key of a mapping by a step of its own.
    where = tuple(step for step in detail["loc"] if step != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    last = str(where[-1]) if where else ""
    if kind == "recipe":
        return where, context["found"], context["fix"]
    if kind == "extra_forbidden":
        return (*where, KEY), f"unknown key '{last}'", did_you_mean(last, _known_keys(where))
    if kind == "missing":
        return where[:-1], f"'{last}' is missing", f"add the key '{last}'"
    if kind in ("literal_error", "enum"):
        known = [word.strip(" '") for word in context["expected"].replace(" or ", ",").split(",")]
        return (
            where,
            f"unknown {last} '{detail['input']}'",
            did_you_mean(str(detail["input"]), known),
        )
    if kind == "string_pattern_mismatch":
        return (
            where,
            f"'{detail['input']}' is no name",
            "letters, digits, '_' and '-', beginning with a letter or digit",
        )
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return where, f"{detail['input']!r:.60} is no whole number", None
    if kind == "too_short":
        return where, f"'{last}' is empty", "write at least one entry"
    if kind == "model_type":
        return (
            where,
            f"{detail['input']!r:.60} is no mapping",
            f"known: {', '.join(_known_keys((*where, '')))}",
        )
    if kind in ("greater_than", "greater_than_equal"):
        enough = f"more than {context['gt']:g}" if "gt" in context else f"{context['ge']} or more"
        return where, f"{last} {detail['input']} is too small", f"write {enough}"
    return where, f"{detail['msg'].lower()}, got {detail['input']!r:.60}", None


_SECTIONS: dict[str, type[_Section]] = {
    "donors": DonorSpec,
    "slots": SlotSpec,
    "bridges": BridgesSpec,
    "bridge": BridgeSpec,
    "mixer": ModuleSpec,
    "mlp": ModuleSpec,
    "calibration": CalibrationSpec,
    "data": TextSpec,
}


def _known_keys(where: Place) -> list[str]:
    parents = [step for step in where[:-1] if isinstance(step, str)]
    section: type[_Section] = Recipe
    for step in parents:
        section = _SECTIONS.get(step, section)
    return [field.alias or name for name, field in section.model_fields.items()]


def _donor_references(data: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    for key in ("embeddings", "head", "tokenizer"):
        if key in data:
            yield (key,), data[key]
    for i, slot in enumerate(as_list(data.get("slots"))):
        yield ("slots", i, "from"), as_dict(slot).get("from")
        for part in ("mixer", "mlp"):
            yield ("slots", i, part, "from"), as_dict(as_dict(slot).get(part)).get("from")


def _unknown_names(data: dict[str, Any]) -> Iterator[Mistake]:
    donors = [str(name) for name in as_dict(data.get("donors"))]
    for where, name in _donor_references(data):
        if isinstance(name, str) and name not in donors:
            yield where, f"no donor is called '{name}'", did_you_mean(name, donors)
    kinds = plugin_names("bridges")
    slots = [("slots", i, "bridge") for i in range(len(as_list(data.get("slots"))))]
    for where in (("bridges",), *slots):
        section = data
        for step in where:
            section = section[step] if isinstance(step, int) else as_dict(section).get(step)  # type: ignore[index, assignment]
        spec = as_dict(_bridge_shorthand(section))
        kind = spec.get("kind", "linear")
        at = (*where, "kind") if isinstance(section, dict) else where
        if isinstance(kind, str) and kind not in kinds:
            yield at, f"unknown bridge kind '{kind}'", did_you_mean(kind, kinds)


def _slot_mistakes(data: dict[str, Any]) -> Iterator[Mistake]:
    for i, slot in enumerate(as_list(data.get("slots"))):
        keys = {key for key, value in as_dict(slot).items() if value is not None}
        if isinstance(slot, dict) and len(keys & {"layer", "layers"}) != 1:
            found = "both 'layer' and 'layers'" if "layer" in keys else "no layers"
            yield ("slots", i), found, "write layers: 0-7, or layer: 3 for a single one"
        elif "layers" in keys and keys & {"mixer", "mlp"}:
            part = "mixer" if "mixer" in keys else "mlp"
            yield (
                ("slots", i, part),
                f"'{part}' needs one single layer",
                "write layer: 14, one entry for each slot with a module of another donor",
            )


def _donor_mistakes(data: dict[str, Any]) -> Iterator[Mistake]:
    for name, donor in as_dict(data.get("donors")).items():
        keys = {key for key, value in as_dict(donor).items() if value is not None}
        if isinstance(donor, dict) and len(keys & {"model", "merge"}) != 1:
            found = "both 'model' and 'merge'" if "model" in keys else "neither 'model' nor 'merge'"
            yield (
                ("donors", name),
                found,
                "write model: FOLDER-OR-HUB-ID, or merge: MERGEKIT-CONFIG",
            )


def _text_mistakes(document: Document, where: Place) -> Iterator[Mistake]:
    """What is wrong in the list of texts at `where`, one entry compared with another, too."""
    entries: Any = document.data
    for step in where:
        entries = as_dict(entries).get(str(step))
    first: dict[str, Place] = {}
    for i, written in enumerate(as_list(entries)):
        entry, at = as_dict(text_entry(written)), (*where, i)
        keys = {key for key, value in entry.items() if value is not None}
        if entry and len(keys & {"files", "dataset"}) != 1:
            both = "files" in keys
            found = "both 'files' and 'dataset'" if both else "neither 'files' nor 'dataset'"
            yield at, found, "write files: FILE-OR-PATTERN, or dataset: HUB-ID"
        elif "files" in keys:
            for key in ("subset", "split", "revision"):
                if key in keys:
                    found = f"files have no {key}"
                    yield (*at, key), found, f"remove the key {key}, or write dataset: HUB-ID"
        name = entry.get("name")
        if isinstance(name, str) and name in first:
            line, _ = document.position(first[name])
            found = f"a second domain is called '{name}' (first in line {line})"
            yield (*at, "name"), found, "write another name: {name: NAME, files: ...}"
        elif isinstance(name, str):
            first[name] = at


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors (docs/recipe.schema.json)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hybridize recipe",
        **{k: v for k, v in Recipe.model_json_schema(by_alias=True).items() if k != "title"},
    }

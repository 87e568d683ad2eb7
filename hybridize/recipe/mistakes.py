"""What is wrong with a recipe that no donor is needed to see: in our words, and all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hybridize.errors import did_you_mean
from hybridize.plugins import plugin_names
from hybridize.recipe.fields import text_entry
from hybridize.recipe.sections import (
    BridgeSpec,
    BridgesSpec,
    CalibrationSpec,
    CandidateSpec,
    CptSpec,
    DiagnosticsSpec,
    DonorSpec,
    GuardsSpec,
    ModuleSpec,
    PerturbationSpec,
    PlacementSpec,
    Recipe,
    ScoreWeights,
    Section,
    SlotSpec,
    StageSpec,
    TextSpec,
    TrainingText,
    bridge_shorthand,
)
from hybridize.recipe.yaml_source import KEY, Document, Place, as_dict, as_list

Mistake = tuple[Place, str, str | None]


def check(document: Document) -> tuple[Recipe | None, list[Mistake]]:
    """A recipe, if it could be read as one, and all that is wrong with it."""
    data: Any = document.data
    recipe, mistakes = _validate(data)
    mistakes += _unknown_names(data)
    mistakes += _slot_mistakes(data)
    mistakes += _donor_mistakes(data)
    for where in (("calibration", "data"), ("cpt", "data", "new"), ("cpt", "data", "old")):
        mistakes += _text_mistakes(document, where)
    return recipe, mistakes


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


_SECTIONS: dict[str, type[Section]] = {
    "donors": DonorSpec,
    "slots": SlotSpec,
    "bridges": BridgesSpec,
    "bridge": BridgeSpec,
    "mixer": ModuleSpec,
    "mlp": ModuleSpec,
    "calibration": CalibrationSpec,
    "data": TextSpec,
    "diagnostics": DiagnosticsSpec,
    "perturbations": PerturbationSpec,
    "placement": PlacementSpec,
    "candidates": CandidateSpec,
    "weights": ScoreWeights,
    "cpt": CptSpec,
    "stages": StageSpec,
    "guards": GuardsSpec,
    "new": TextSpec,
    "old": TextSpec,
}


def _known_keys(where: Place) -> list[str]:
    parents = [step for step in where[:-1] if isinstance(step, str)]
    section: type[Section] = Recipe
    for i, step in enumerate(parents):
        under_cpt = parents[: i + 1] == ["cpt", "data"]
        section = TrainingText if under_cpt else _SECTIONS.get(step, section)
    return [field.alias or name for name, field in section.model_fields.items()]


def _donor_references(data: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    for key in ("embeddings", "head", "tokenizer"):
        if key in data:
            yield (key,), data[key]
    for i, slot in enumerate(as_list(data.get("slots"))):
        yield ("slots", i, "from"), as_dict(slot).get("from")
        for part in ("mixer", "mlp"):
            yield ("slots", i, part, "from"), as_dict(as_dict(slot).get(part)).get("from")
    for i, candidate in enumerate(as_list(as_dict(data.get("placement")).get("candidates"))):
        yield ("placement", "candidates", i, "from"), as_dict(candidate).get("from")


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
        spec = as_dict(bridge_shorthand(section))
        kind = spec.get("kind", "linear")
        at = (*where, "kind") if isinstance(section, dict) else where
        if isinstance(kind, str) and kind not in kinds:
            yield at, f"unknown bridge kind '{kind}'", did_you_mean(kind, kinds)
    kinds, seen = plugin_names("perturbations"), set()
    for i, entry in enumerate(as_list(as_dict(data.get("diagnostics")).get("perturbations"))):
        kind = entry if isinstance(entry, str) else as_dict(entry).get("kind", "dropout")
        at = ("diagnostics", "perturbations", i)
        if isinstance(kind, str) and kind not in kinds:
            where = at if isinstance(entry, str) else (*at, "kind")
            yield where, f"unknown perturbation '{kind}'", did_you_mean(kind, kinds)
        elif isinstance(kind, str) and kind in seen:
            yield at, f"perturbation '{kind}' stands twice", "write it once, with one strength"
        seen.add(str(kind))


def _slot_mistakes(data: dict[str, Any]) -> Iterator[Mistake]:
    if "slots" not in data and "placement" not in data:
        yield (), "'slots' is missing", "add the key 'slots'"
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

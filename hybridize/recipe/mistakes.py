"""What is wrong with a recipe that no donor is needed to see: in our words, and all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hybridize.errors import did_you_mean
from hybridize.files.yaml_source import KEY, Document, Place, as_dict
from hybridize.plugins import plugin_names
from hybridize.recipe.sections.base import (
    DonorName,
    Kind,
    Mistake,
    Written,
    key_of,
    section_at,
    walk,
)
from hybridize.recipe.sections.whole import Recipe


def check(document: Document) -> tuple[Recipe | None, list[Mistake]]:
    """A recipe, if it could be read as one, and all that is wrong with it."""
    recipe, mistakes = _validate(document.data)
    sections = list(walk(Recipe, document.data))
    mistakes += _unknown_names(sections, [str(d) for d in as_dict(document.data.get("donors"))])
    for here in sections:
        mistakes += here.section.mistakes(here.written, here.at, document)
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
        renamed = section_at(Recipe, where[:-1]).RENAMED.get(last)
        fix = f"it is called {renamed}" if renamed else did_you_mean(last, _known_keys(where))
        return (*where, KEY), f"unknown key '{last}'", fix
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
            f"'{detail['input']}' is not a valid name",
            "letters, digits, '_' and '-', beginning with a letter or digit",
        )
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return where, f"{detail['input']!r:.60} is not a whole number", None
    if kind == "too_short":
        return where, f"'{last}' is empty", "write at least one entry"
    if kind == "model_type":
        return (
            where,
            f"{detail['input']!r:.60} is not a mapping",
            f"known: {', '.join(_known_keys((*where, '')))}",
        )
    if kind in ("greater_than", "greater_than_equal"):
        enough = f"more than {context['gt']:g}" if "gt" in context else f"{context['ge']} or more"
        return where, f"{last} {detail['input']} is too small", f"write {enough}"
    return where, f"{detail['msg'].lower()}, got {detail['input']!r:.60}", None


def _known_keys(where: Place) -> list[str]:
    """Of the section that the last step of a place would be a key of."""
    fields = section_at(Recipe, where[:-1]).model_fields
    return [key_of(name, field) for name, field in fields.items()]


def _unknown_names(sections: list[Written], donors: list[str]) -> Iterator[Mistake]:
    for here in sections:
        for _, name, where in here.marked(DonorName):
            if isinstance(name, str) and name not in donors:
                yield where, f"no donor is called '{name}'", did_you_mean(name, donors)
        for mark, kind, where in here.marked(Kind):
            known = plugin_names(mark.plugins)
            if isinstance(kind, str) and kind not in known:
                yield where, f"unknown {mark.noun} '{kind}'", did_you_mean(kind, known)

"""The recipe: one YAML file that says which modules of which donors stand where.

Reading it finds every mistake that needs no donor: misspelt keys, unknown names, reversed ranges.
What needs a donor's header (a layer that it does not have) is found by the plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hybridize.errors import Finding, HybridizeError
from hybridize.files.reading import expanded
from hybridize.files.yaml_source import Document, parse_yaml, read_yaml
from hybridize.recipe.mistakes import check
from hybridize.recipe.sections.whole import Recipe

COMMAND_LINE = Path("command line")  # what errors in options name


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

    @property
    def folder(self) -> Path:
        """Where the relative paths of the recipe start."""
        return self.document.path.absolute().parent

    def path(self, relative: str) -> Path:
        """A path of the recipe; relative ones start at the recipe's folder."""
        return self.document.path.parent / expanded(relative)


def load_recipe(path: Path | str) -> RecipeFile:
    """Read and check a recipe.

    Raises:
        HybridizeError: the file cannot be read as YAML.
        HybridizeError: everything that is wrong with the recipe, in the order of the file.
    """
    return read_recipe(read_yaml(Path(path)))


def read_recipe(document: Document) -> RecipeFile:
    """`load_recipe` for a document that is already in memory."""
    if not isinstance(document.data, dict):
        raise HybridizeError(
            "a recipe is a mapping with the keys donors and slots", place=document.place(())
        )
    recipe, mistakes = check(document)
    if mistakes or recipe is None:
        # One finding a place: the branches of a union all complain about the same value.
        first = {where: (where, found, fix) for where, found, fix in reversed(mistakes)}
        ordered = sorted(first.values(), key=lambda mistake: document.position(mistake[0]))
        raise HybridizeError.of(
            Finding(found, fix, document.place(where)) for where, found, fix in ordered
        )
    return RecipeFile(recipe, document)


def made_recipe(data: dict[str, Any]) -> RecipeFile:
    """`load_recipe` for what a command line says; errors name that."""
    return read_recipe(parse_yaml(yaml.safe_dump(data, sort_keys=False), COMMAND_LINE))


def checked_sections(sections: dict[str, Any]) -> Recipe:
    """Sections of a recipe from the command line, checked as if they stood in one."""
    whole = {"donors": {"x": {"model": "x"}}, "slots": [{"from": "x", "layer": 0}], **sections}
    return made_recipe(whole).recipe


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors (docs/recipe.schema.json)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hybridize recipe",
        **{k: v for k, v in Recipe.model_json_schema(by_alias=True).items() if k != "title"},
    }

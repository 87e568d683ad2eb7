"""What the command line names: a recipe, or a model that one was built of. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.errors import HybridizeError
from hybridize.files.staging import MANIFEST
from hybridize.files.yaml_source import parse_yaml
from hybridize.model.manifest import read_manifest
from hybridize.recipe.file import RecipeFile, checked_sections, load_recipe, read_recipe
from hybridize.recipe.sections.cpt import CptSpec


@dataclass(frozen=True)
class TrainingTarget:
    """A model to train, the recipe that says how, and where the result goes."""

    recipe: RecipeFile
    folder: Path
    out: Path


def find_target(
    named: Path,
    *,
    built: Path | None = None,
    out: Path | None = None,
    text: Sequence[str] = (),
    old: Sequence[str] = (),
    tokens: int | None = None,
) -> TrainingTarget:
    """The model, and its recipe with what the command line says in its stead.

    Args:
        named: a recipe, or a folder that was built of one; paths of the recipe that lies in a
            folder start where it was built from, if that is still there, or else where the command
            is run.
        built: where a recipe's model lies; default: where `build` puts it.
        text, old: files to learn from and to keep; `tokens`: of the whole training.

    Raises:
        HybridizeError: there is no such file, folder or model.
    """
    if named.is_dir() and built is not None:
        raise HybridizeError("--built goes with a recipe", fix="name the recipe, or leave it out")
    recipe = _recipe_of(named) if named.is_dir() else load_recipe(named)
    folder = (named if named.is_dir() else built or Path("out") / recipe.name).absolute()
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        raise _not_built(folder)
    target = (out or folder.with_name(f"{folder.name}-cpt")).absolute()
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise HybridizeError(
            "lies inside the model that is trained", fix="choose another --out", place=str(target)
        )
    return TrainingTarget(_with_options(recipe, text, old, tokens), folder, target)


def _not_built(folder: Path) -> HybridizeError:
    return HybridizeError(
        f"hybridize did not build this: {MANIFEST} is missing",
        fix="build a recipe first: hybridize build RECIPE",
        place=str(folder),
    )


def _recipe_of(folder: Path) -> RecipeFile:
    if not (folder / MANIFEST).is_file():
        raise _not_built(folder)
    noted = read_manifest(folder)["recipe"]
    origin = Path(os.path.normpath(folder.absolute() / noted.get("folder", "."))) / noted["file"]
    return read_recipe(
        parse_yaml(noted["text"], origin if origin.is_file() else Path(noted["file"]))
    )


def _with_options(
    recipe: RecipeFile, text: Sequence[str], old: Sequence[str], tokens: int | None
) -> RecipeFile:
    if not text and not old and tokens is None:
        return recipe
    spec = recipe.recipe.cpt or CptSpec()
    given = _text_of(text, old)
    update: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    if given is not None:
        there = spec.data
        if there is None and not text:
            raise HybridizeError("--old goes with --text, or with a recipe's own text")
        fields = {"new": given.new} if text else {}
        fields |= {"old": given.old} if old else {}
        update["data"] = given if there is None else there.model_copy(update=fields)
    changed = recipe.recipe.model_copy(update={"cpt": spec.model_copy(update=update)})
    return RecipeFile(changed, recipe.document)


def _text_of(text: Sequence[str], old: Sequence[str]) -> Any:
    """Files of the working folder, read as a recipe would name them."""
    if not text and not old:
        return None
    here = {"new": text or old, "old": old}
    data = {kind: [str(Path.cwd() / name) for name in names] for kind, names in here.items()}
    given = {kind: names for kind, names in data.items() if names}
    checked = checked_sections({"cpt": {"data": given}})
    assert checked.cpt is not None
    return checked.cpt.data

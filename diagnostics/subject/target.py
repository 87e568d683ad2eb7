"""What the command line names: a recipe, or a model that a recipe is made for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridize.diagnostics.subject.subjects import Subject, model_subject, recipe_subjects
from hybridize.errors import HybridizeError
from hybridize.plugins import plugin_names
from hybridize.recipe.file import RecipeFile, checked_sections, load_recipe, made_recipe
from hybridize.recipe.sections.calibration import CalibrationSpec


@dataclass(frozen=True)
class Options:
    """What the command line may say in the recipe's stead; empty: as the recipe says."""

    text: Sequence[str] = ()
    probes: Sequence[str] = ()
    perturbations: Sequence[str] = ()
    parts: Sequence[str] = ()
    seeds: int | None = None
    tokens: int | None = None
    perturbed: int | None = None

    def sections(self) -> dict[str, Any]:
        """As sections of a recipe; files are those of the working folder."""
        diagnostics = {
            "probes": [_absolute(name) for name in self.probes],
            "perturbations": [_perturbation(text) for text in self.perturbations],
            "parts": list(self.parts),
            "seeds": self.seeds,
            "tokens": self.tokens,
            "perturbed": self.perturbed,
        }
        given = {key: value for key, value in diagnostics.items() if value not in ([], None)}
        data = [str(Path.cwd() / name) for name in self.text]
        return {
            **({"diagnostics": given} if given else {}),
            **({"calibration": {"data": data}} if data else {}),
        }


@dataclass(frozen=True)
class DiagnosisTarget:
    """What is diagnosed, and how: `recipe` has the options in it."""

    name: str
    recipe: RecipeFile
    subjects: list[Subject] = field(default_factory=list)


def find_target(
    text: str, options: Options, *, built: Path | None = None, offline: bool = False
) -> DiagnosisTarget:
    """A recipe's donors and its hybrid, or one model.

    Args:
        text: a recipe (a .yaml file), a model's folder, or a hub id.
        built: where the recipe's hybrid lies; default: where `build` puts it.

    Raises:
        HybridizeError: it is neither, or something in it cannot be found.
    """
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml"):
        recipe = with_options(load_recipe(path), options)
        subjects = recipe_subjects(
            recipe, built=built or Path("out") / recipe.name, offline=offline
        )
        return DiagnosisTarget(recipe.name, recipe, subjects)
    if path.is_file():
        raise HybridizeError(
            "neither a recipe nor a model", fix="name a .yaml file or a folder", place=text
        )
    subject = model_subject(text, offline=offline)
    made = {
        "donors": {subject.name: {"model": str(subject.checkpoint.folder)}},
        "slots": [{"from": subject.name, "layer": 0}],
    }
    return DiagnosisTarget(subject.name, made_recipe({**made, **options.sections()}), [subject])


def with_options(recipe: RecipeFile, options: Options) -> RecipeFile:
    """A recipe with what the command line says in its stead."""
    given = options.sections()
    if not given:
        return recipe
    checked = checked_sections(given)
    update: dict[str, Any] = {}
    if "diagnostics" in given:
        fields = {name: getattr(checked.diagnostics, name) for name in given["diagnostics"]}
        update["diagnostics"] = recipe.recipe.diagnostics.model_copy(update=fields)
    if "calibration" in given:
        assert checked.calibration is not None
        spec = recipe.recipe.calibration or CalibrationSpec()
        update["calibration"] = spec.model_copy(update={"data": checked.calibration.data})
    return RecipeFile(recipe.recipe.model_copy(update=update), recipe.document)


def _absolute(name: str) -> str:
    """A set that hybridize brings, or else a file of the working folder, if there is one."""
    brought = name in plugin_names("probes")
    is_path = "/" in name or Path(name).is_file()
    return str(Path.cwd() / name) if is_path and not brought else name


def _perturbation(text: str) -> Any:
    """`noise`, or `noise:0.5` with a strength of its own."""
    kind, _, strength = text.partition(":")
    try:
        return {"kind": kind, "strength": float(strength)} if strength else kind
    except ValueError:
        raise HybridizeError(
            f"'{strength}' is not a number", fix="write --perturb noise:0.5, say"
        ) from None

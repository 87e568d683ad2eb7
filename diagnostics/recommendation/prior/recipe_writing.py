"""A placement as a recipe: complete, and with the reasons as comments. No torch."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hybridize.diagnostics.recommendation.prior.placement import LayerRun
from hybridize.files.reading import expanded
from hybridize.files.yaml_source import as_dict
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.fields import GLOB

WIDTH = 98  # of a comment's line
COPIED = ("bridges", "target", "dtype", "shard_size")  # as the source recipe says them


def recipe_yaml(
    recipe: RecipeFile,
    runs: Sequence[LayerRun],
    *,
    folder: Path,
    head: Sequence[str] = (),
    reasons: Sequence[str] = (),
) -> str:
    """Text of a recipe that stacks `runs` of a recipe's donors.

    Args:
        folder: where it is to lie: paths are made relative to it.
        head: comments at the top.
        reasons: a comment for each run.
    """
    spec = recipe.recipe
    used = {run.donor for run in runs}
    donors = {
        name: _moved(donor.model_dump(exclude_none=True), recipe, folder)
        for name, donor in spec.donors.items()
        if name in used
    }
    tokenizer = spec.tokenizer if spec.tokenizer in used else None
    lines = [f"# {line}".rstrip() for text in head for line in _wrapped(text)]
    lines += ["version: 1", "", "donors:"]
    lines += [f"  {name}: {_flow(donor)}" for name, donor in donors.items()]
    lines += ["", f"embeddings: {runs[0].donor}"]
    lines += [f"head: {runs[-1].donor} # with the final norm, of the deepest donor"]
    lines += [f"tokenizer: {tokenizer}"] if tokenizer else []
    lines += ["", "slots:"]
    for i, run in enumerate(runs):
        lines += [f"  # {line}" for line in _wrapped(reasons[i])] if reasons else []
        span = f"layer: {run.first}" if run.first == run.last else f"layers: {run.first}-{run.last}"
        lines.append(f"  - {{from: {run.donor}, {span}}}")
    lines.append("")
    for key in COPIED:
        if key in as_dict(recipe.document.data):
            lines += _section(key, _anywhere(recipe.document.data[key]))
    if spec.calibration is not None:
        lines += _section("calibration", _calibration(recipe, folder))
    if "diagnostics" in spec.model_fields_set:
        lines += _section("diagnostics", _diagnostics(recipe, folder))
    return "\n".join(lines).rstrip() + "\n"


def _section(key: str, value: Any) -> list[str]:
    dumped: str = yaml.safe_dump({key: value}, sort_keys=False, width=WIDTH)
    return dumped.rstrip().splitlines()


def _anywhere(value: Any) -> Any:
    """A section without the numbers of slots, which belong to another stack."""
    if isinstance(value, dict) and isinstance(value.get("where"), list):
        return {key: part for key, part in value.items() if key != "where"}
    return value


def _calibration(recipe: RecipeFile, folder: Path) -> dict[str, Any]:
    assert recipe.recipe.calibration is not None
    section = recipe.recipe.calibration.model_dump(mode="json", exclude_unset=True)
    for text in section.get("data", []):
        files = text.get("files") or []
        if files:
            text["files"] = [_relative(file, recipe, folder) for file in files]
        elif text.get("dataset") and recipe.path(text["dataset"]).is_dir():
            text["dataset"] = _relative(text["dataset"], recipe, folder)
    return section


def _diagnostics(recipe: RecipeFile, folder: Path) -> dict[str, Any]:
    section = recipe.recipe.diagnostics.model_dump(mode="json", exclude_unset=True)
    if section.get("probes"):
        section["probes"] = [
            _relative(name, recipe, folder) if recipe.path(name).is_file() else name
            for name in section["probes"]
        ]
    return section


def _moved(donor: Mapping[str, Any], recipe: RecipeFile, folder: Path) -> dict[str, Any]:
    """A donor's section, with its paths as they are seen from another folder."""
    found = dict(donor)
    if "merge" in found:
        found["merge"] = _relative(found["merge"], recipe, folder)
    elif "model" in found and recipe.path(found["model"]).is_dir():
        found["model"] = _relative(found["model"], recipe, folder)
    return found


def _relative(path: str, recipe: RecipeFile, folder: Path) -> str:
    """A path of the recipe, or a pattern, from another folder; absolute ones stay."""
    if expanded(path).is_absolute():
        return path
    found = os.path.relpath(recipe.path(path), folder)
    # What looks like a hub id is one, unless it begins as a path does.
    return found if found.startswith(".") or GLOB.search(found) else f"./{found}"


def _flow(value: Mapping[str, Any]) -> str:
    dumped: str = yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=True, width=10**6)
    return dumped.strip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH) or [""]

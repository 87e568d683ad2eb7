"""What the documents say is what the code does: keys, commands, files and examples."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hybridize.cli import main
from hybridize.plugins import plugin_names
from hybridize.recipe.file import load_recipe
from hybridize.recipe.sections.bridges import BridgesSpec
from hybridize.recipe.sections.calibration import CalibrationSpec
from hybridize.recipe.sections.cpt import CptSpec
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec
from hybridize.recipe.sections.placement import PlacementSpec
from hybridize.recipe.sections.text import TextSpec
from hybridize.recipe.sections.whole import Recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLES = [
    (document.name, block)
    for document in DOCUMENTS
    for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)
    if yaml.safe_load(block) is not None
]


def first_cells(document: str, heading: str) -> list[str]:
    """First column of the table under a heading, code marks taken off."""
    text = (ROOT / document).read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return [cell.replace("`", "") for cell in cells[2:]]


def test_every_key_of_a_recipe_is_documented() -> None:
    assert set(first_cells("docs/recipe.md", "All keys")) == set(Recipe.model_fields)
    bridges = {
        key for cell in first_cells("docs/recipe.md", "`bridges`") for key in cell.split(", ")
    }
    assert bridges == set(BridgesSpec.model_fields)
    calibration = first_cells("docs/recipe.md", "`calibration`")
    assert calibration == list(CalibrationSpec.model_fields)
    assert first_cells("docs/recipe.md", "`diagnostics`") == list(DiagnosticsSpec.model_fields)
    assert first_cells("docs/recipe.md", "`placement`") == list(PlacementSpec.model_fields)
    assert first_cells("docs/recipe.md", "`cpt`") == list(CptSpec.model_fields)
    assert first_cells("docs/recipe.md", "Text") == list(TextSpec.model_fields)


def test_every_perturbation_is_documented() -> None:
    cells = first_cells("docs/diagnose.md", "How layers are perturbed")
    assert {name for cell in cells for name in cell.split(", ")} == set(
        plugin_names("perturbations")
    )


def test_every_command_is_documented_and_no_other() -> None:
    commands = [cell.split()[1] for cell in first_cells("README.md", "Commands")]
    assert set(commands) == set(main.commands)


@pytest.mark.parametrize(("document", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_are_recipes(document: str, example: str, tmp_path: Path) -> None:
    """A part of a recipe is completed by donors of the names that it uses, and by one slot."""
    data = yaml.safe_load(example)
    names = set(re.findall(r"from: (\w+)", example)) or {next(iter(data.get("donors", ["base"])))}
    data = {
        "donors": {name: {"model": "somewhere"} for name in sorted(names)},
        "slots": [{"from": min(names), "layer": 0}],
        **data,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(data))
    assert load_recipe(file).recipe.slots


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_targets_of_make_are_those_that_help_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    assert declared == {"help", *re.findall(r'echo "make ([\w-]+)', makefile)}

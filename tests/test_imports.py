"""Who may import whom, read from the source: the floors of the house, and where torch may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.arrows import (
    STAGES,
    arrows,
    circles,
    imports,
    modules,
    name_of,
    own_imports,
    package_of,
)

HEAVY = {"torch", "transformers", "mergekit", "accelerate", "peft", "datasets", "tokenizers"}

# The folders whose modules may import them. All others stay light, new ones too.
TORCH = {
    "hybridize/demo": "trains its donors",
    "hybridize/machine": "asks for devices, and times them",
    "hybridize/runtime": "is the hybrid itself",
    "hybridize/torch_model": "is the floor that torch stands on",
    "assembler/bridges": "compute their own parameters",
    "assembler/fit": "runs models over text",
    "assembler/worker": "is the process of a build that has torch",
    "cpt/backends": "joins processes",
    "cpt/data": "makes batches; tokenizes",
    "cpt/state": "keeps tensors",
    "cpt/train": "trains",
    "diagnostics/measure": "runs models over text",
    "diagnostics/perturbations": "change states and weights",
    "diagnostics/recommendation/trial": "assembles and measures",
}
# One library is no torch: what reads data sets of the hub.
DATASETS = {"hybridize/text": {"datasets"}}

# The common ground, from below upwards: a floor imports those before it.
FLOORS = (
    "errors", "lazily", "plugins", "console", "files", "recipe", "architectures", "machine",
    "runtime", "model", "text", "torch_model",
)  # fmt: skip


# What is copied into every hybrid's folder.
RUNTIME = sorted(
    module.stem
    for module in modules()
    if module.parts[:2] == ("hybridize", "runtime") and module.stem != "__init__"
)


@pytest.fixture(scope="module")
def names() -> dict[str, Path]:
    return {name_of(module): module for module in modules()}


def test_the_walk_finds_the_project(names: dict[str, Path]) -> None:
    assert {"cli", "assembler.plan.planning", "cpt.train.stage"} <= names.keys()
    folders = {str(module.parent) for module in modules()}
    assert folders >= TORCH.keys() | DATASETS.keys()


@pytest.mark.parametrize("module", [m for m in modules() if str(m.parent) not in TORCH], ids=str)
def test_light_folders_never_import_torch(module: Path) -> None:
    """`plan` answers in half a second, and the copying process stays under 100 MB."""
    allowed = DATASETS.get(str(module.parent), set())
    loaded = {name.split(".")[0] for name in imports(module, at_run_time=True)}
    assert (HEAVY - allowed).isdisjoint(loaded)


@pytest.mark.parametrize("module", modules(), ids=str)
def test_the_common_ground_imports_downwards_only(module: Path) -> None:
    floor = name_of(module).split(".")[0]
    if floor in FLOORS:
        below = set(FLOORS[: FLOORS.index(floor) + 1])
        assert {name.split(".")[0] for name in own_imports(module)} <= below


@pytest.mark.parametrize("module", [m for m in modules() if m.parts[0] in STAGES], ids=str)
def test_a_stage_uses_the_ground_and_the_face_of_the_assembler(module: Path) -> None:
    """`diagnostics` and `cpt` meet in files; nobody imports the inside of a stage."""
    stage = module.parts[0]
    used = {n for n in own_imports(module) if n.split(".")[0] not in (*FLOORS, stage, "")}
    assert used <= ({"assembler"} if stage != "assembler" else set())


def test_nothing_goes_in_circles() -> None:
    """Neither modules, as they are loaded, nor folders, types included."""
    graph = {name_of(m): own_imports(m, at_run_time=True) for m in modules()}
    assert circles(graph) == []
    assert circles({package: set(used) for package, used in arrows().items()}) == []


def test_every_folder_says_what_it_is_for() -> None:
    """In one line, the docstring of its `__init__.py`."""
    folders = {module.parent for module in modules() if package_of(name_of(module))}
    for folder in folders:
        assert (folder / "__init__.py").read_text().startswith('"""'), folder


@pytest.mark.parametrize("module", modules(), ids=str)
def test_only_the_command_line_knows_the_commands(module: Path) -> None:
    """Whatever the command line can do, a program can do without it."""
    if module != Path("hybridize/__main__.py") and module.parts[:2] != ("hybridize", "cli"):
        assert not any(name.startswith("hybridize.cli") for name in imports(module))


@pytest.mark.parametrize("module", RUNTIME)
def test_the_model_code_needs_nothing_of_hybridize(module: str) -> None:
    """It is copied into the built model's folder, and must run where hybridize is not installed."""
    path = Path("hybridize/runtime") / f"{module}.py"
    allowed = HEAVY | set(sys.stdlib_module_names)
    strangers = {
        name
        for name in imports(path)
        if not name.startswith(tuple(f"hybridize.runtime.{beside}." for beside in RUNTIME))
        and name.split(".")[0] not in allowed
    }
    assert not strangers


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["schema"]], ids=str)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hybridize", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert HEAVY.isdisjoint(loaded)

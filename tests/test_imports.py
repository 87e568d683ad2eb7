"""Who may import whom, read from the source: the layers of the project, and what stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("assembler", "cpt", "diagnostics")
HEAVY = {"torch", "transformers", "mergekit", "accelerate", "peft", "datasets", "tokenizers"}

# The only modules that may import them: everything that runs in a build's second process, the
# model itself, the demo, and data sets of the hub. Whatever is not listed here stays light, new
# modules too.
HEAVY_MODULES = {
    "assembler/bridges",
    "assembler/bridging.py",
    "assembler/check.py",
    "assembler/compute.py",
    "assembler/controls.py",
    "assembler/conversion.py",
    "assembler/fitting.py",
    "assembler/layout.py",
    "assembler/loading.py",
    "assembler/machine.py",
    "assembler/merge_process.py",
    "assembler/models.py",
    "assembler/pace.py",
    "assembler/proof.py",
    "assembler/regression.py",
    "assembler/requests.py",
    "assembler/runtime",
    "assembler/streams.py",
    "assembler/swap_controls.py",
    "assembler/symbolic.py",
    "assembler/tensors.py",
    "assembler/timing.py",
    "assembler/tokenization.py",
    "assembler/windows.py",
    "cpt/arguments.py",
    "cpt/checkpoints.py",
    "cpt/data/rows.py",
    "cpt/data/text.py",
    "cpt/data/tokens.py",
    "cpt/dropout.py",
    "cpt/engine.py",
    "cpt/evaluation.py",
    "cpt/export.py",
    "cpt/forward.py",
    "cpt/guards.py",
    "cpt/isolation.py",
    "cpt/launch.py",
    "cpt/metrics.py",
    "cpt/data/prefix.py",
    "cpt/pretraining.py",
    "cpt/stage_run.py",
    "cpt/timing.py",
    "cpt/trainer.py",
    "cpt/tuning.py",
    "diagnostics/budget.py",
    "diagnostics/diagnosis.py",
    "diagnostics/lenses.py",
    "diagnostics/measures.py",
    "diagnostics/perturbations",
    "diagnostics/recommendation/assembling.py",
    "diagnostics/recommendation/recommending.py",
    "diagnostics/recommendation/seams.py",
    "diagnostics/scoring.py",
    "diagnostics/sheets.py",
    "diagnostics/sweep.py",
    "diagnostics/variants.py",
    "hybridize/demo",
    "hybridize/hub_text.py",
}


def modules() -> list[Path]:
    """All modules of the project, relative to its root."""
    found = []
    for top in ("hybridize", *STAGES):
        for file in (ROOT / top).rglob("*.py"):
            if not any(parent.is_symlink() for parent in file.parents):
                found.append(file.relative_to(ROOT))
    return sorted(found)


def imports(module: Path) -> Iterator[str]:
    """Full names of all that a module imports, at its top and inside functions."""
    inside = module.parts if module.parts[0] == "hybridize" else ("hybridize", *module.parts)
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def is_heavy(module: Path) -> bool:
    return any(str(path) in HEAVY_MODULES for path in (module, *module.parents))


def test_the_walk_finds_the_project() -> None:
    names = {str(module) for module in modules()}
    assert {"hybridize/cli.py", "assembler/plan.py"} <= names
    assert names | {str(parent) for m in modules() for parent in m.parents} >= HEAVY_MODULES


@pytest.mark.parametrize("module", [m for m in modules() if not is_heavy(m)], ids=str)
def test_light_modules_never_import_torch(module: Path) -> None:
    """`plan` answers in half a second, and the copying process stays under 100 MB."""
    assert HEAVY.isdisjoint(name.split(".")[0] for name in imports(module))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_a_stage_imports_only_what_stands_below_it(module: Path) -> None:
    """`diagnostics` and `cpt` meet in files; both may use the assembler, never the reverse."""
    used = {
        name.split(".")[1]
        for name in imports(module)
        if name.startswith("hybridize.") and name.split(".")[1] in STAGES
    }
    allowed = {
        "assembler": {"assembler"},
        "cpt": {"cpt", "assembler"},
        "diagnostics": {"diagnostics", "assembler"},
    }
    top = module.parts[0]
    if top in STAGES:
        assert used <= allowed[top]
    elif module.parts[:2] != ("hybridize", "demo") and module.name not in ("cli.py",):
        assert used <= registration_only(module)


def registration_only(module: Path) -> set[str]:
    """Transformers is told of the hybrid's classes by one shared module; no other knows a stage."""
    return {"assembler"} if module.name == "registration.py" else set()


@pytest.mark.parametrize("module", modules(), ids=str)
def test_only_the_command_line_knows_the_commands(module: Path) -> None:
    """Whatever the command line can do, a program can do without it."""
    users = {Path("hybridize/__main__.py")}
    if module not in users:
        assert not any(name.startswith("hybridize.cli") for name in imports(module))


@pytest.mark.parametrize("module", ["configuration_hybridize", "modeling_hybridize"])
def test_the_model_code_needs_nothing_of_hybridize(module: str) -> None:
    """It is copied into the built model's folder, and must run where hybridize is not installed."""
    path = Path("assembler/runtime") / f"{module}.py"
    beside = "hybridize.runtime.configuration_hybridize"
    allowed = HEAVY | set(sys.stdlib_module_names)
    strangers = {
        name
        for name in imports(path)
        if not name.startswith(beside) and name.split(".")[0] not in allowed
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

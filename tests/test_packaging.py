"""What is installed is what stands in the repository, under one name."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from tests.support.arrows import modules, name_of

ROOT = Path(__file__).parents[1]
STAGES = ("assembler", "cpt", "diagnostics")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folders_of_code() -> set[str]:
    """Every folder with Python files in it, by the name that it is installed under."""
    names = {name_of(module.parent / "__init__.py") for module in modules()}
    return {f"hybridize.{name}".rstrip(".") for name in names}


def test_every_folder_of_code_is_a_package_that_is_installed() -> None:
    """A user of the wheel: a folder that is forgotten would be missing there, silently."""
    rule = SETUPTOOLS["packages"]["find"]
    found = find_namespace_packages(str(ROOT), **rule)
    code = {p for p in found if any((ROOT / p.replace(".", "/")).glob("*.py"))}  # no leftovers
    assert code == folders_of_code()
    assert "hybridize.recipes" in found


@pytest.mark.parametrize("name", [*STAGES, "recipes"])
def test_links_lead_type_checkers_and_editors_to_the_stages(name: str) -> None:
    link = ROOT / "hybridize" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_cannot_be_imported_under_its_short_name(name: str) -> None:
    """Two copies of one module, under two names, would each have their own classes."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"hybridize.{name}" in done.stderr.splitlines()[-1]


def test_linters_leave_out_the_links_and_ban_the_short_names() -> None:
    ruff = PROJECT["tool"]["ruff"]
    assert set(ruff["extend-exclude"]) >= {f"hybridize/{n}" for n in (*STAGES, "recipes")}
    assert set(STAGES) <= set(ruff["lint"]["flake8-tidy-imports"]["banned-api"])


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check",
            "--outdir", str(out), str(_copy_of_sources(out / "sources")),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def _copy_of_sources(to: Path) -> Path:
    """What a wheel is made from; a build leaves folders behind, which do not belong here."""
    import shutil

    to.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    for name in ("hybridize", *STAGES, "recipes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=ignore)
    return to


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name(wheel_files: list[str]) -> None:
    """PyPI has other packages called diagnostics and cpt: ours must not overwrite their files."""
    tops = {name.split("/")[0] for name in wheel_files if ".dist-info" not in name}
    assert tops == {"hybridize"}


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe_once(wheel_files: list[str]) -> None:
    assert len(wheel_files) == len(set(wheel_files))
    expected = {
        str(Path("hybridize") / file.relative_to(ROOT))
        for top, pattern in [*((stage, "*.py") for stage in STAGES), ("recipes", "*.yaml")]
        for file in (ROOT / top).rglob(pattern)
    }
    expected |= {
        str(file.relative_to(ROOT))
        for file in (ROOT / "hybridize").rglob("*.py")
        if not any(parent.is_symlink() for parent in file.parents)
    }
    packed = {name for name in wheel_files if name.endswith((".py", ".yaml"))}
    assert packed == expected
    assert "hybridize/py.typed" in wheel_files

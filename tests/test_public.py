"""The public functions: typed, without torch until it is needed, and as documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import hybridize
from hybridize import assembler
from tests.support.readers import save_reader, write_text
from tests.support.stacks import write_recipe

FACES = [hybridize, assembler]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_type_checkers_and_python_find_the_same_names(face: object) -> None:
    """What only type checkers see stands in a list of its own."""
    source = Path(import_module(face.__name__).__file__ or "").read_text()  # type: ignore[attr-defined]
    checked = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: (node.module, alias.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, (module, there) in seen.items():
        assert getattr(face, str(name)) is getattr(import_module(str(module)), there)
    assert set(seen) == set(face.MODULES)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="has no attribute 'biuld'"):
        _ = face.biuld  # type: ignore[attr-defined]


def test_importing_costs_neither_torch_nor_pydantic() -> None:
    code = "import sys, hybridize; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_documented_example_runs(tmp_path: Path) -> None:
    """As it stands in the package's docstring, on donors of this test."""
    for name in ("a", "b"):
        save_reader(tmp_path / name)
    lines = re.findall(r"^    .*", hybridize.__doc__ or "", re.MULTILINE)
    assert len(lines) >= 4
    example = textwrap.dedent("\n".join(lines)).replace("recipes/demo/swap.yaml", "x.yaml")
    write_text(tmp_path)
    stack = {"donors": {"a": {"model": "a"}, "b": {"model": "b"}}}
    cpt = {"train": [{"shallow": 1}], "data": {"new": ["text.txt"]}, "tokens": 128, "length": 16}
    slots = [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}]
    rest = {"slots": slots, "bridges": {"where": "none"}, "cpt": cpt}
    write_recipe(tmp_path / "x.yaml", {**stack, **rest})
    done = subprocess.run(
        [sys.executable, "-c", f"import hybridize\n{example}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

"""Which package imports which, read from the source: `make arrows` prints it as a table."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("assembler", "cpt", "diagnostics")


@cache
def modules() -> tuple[Path, ...]:
    """All modules of the project, relative to its root."""
    found = []
    for top in ("hybridize", *STAGES):
        for file in (ROOT / top).rglob("*.py"):
            if not any(parent.is_symlink() for parent in file.parents):
                found.append(file.relative_to(ROOT))
    return tuple(sorted(found))


@cache
def own_names() -> frozenset[str]:
    """Names of all modules."""
    return frozenset(map(name_of, modules()))


def name_of(module: Path) -> str:
    """Its name below `hybridize`: assembler.plan.stack."""
    parts = module.with_suffix("").parts
    parts = parts[1:] if parts[0] == "hybridize" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: Path, *, at_run_time: bool = False) -> Iterator[str]:
    """Full names of all that a module imports, at its top and inside functions.

    Args:
        at_run_time: leave out what only type checkers see.
    """
    inside = module.parts if module.parts[0] == "hybridize" else ("hybridize", *module.parts)
    for node in _nodes(ast.parse((ROOT / module).read_text()), at_run_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def _nodes(node: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        checked = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not (at_run_time and checked):
            yield child
            yield from _nodes(child, at_run_time)


def own_imports(module: Path, *, at_run_time: bool = False) -> set[str]:
    """Names of the project's modules that a module imports."""
    found = set()
    for name in imports(module, at_run_time=at_run_time):
        if name == "hybridize" or name.startswith("hybridize."):
            own = name.removeprefix("hybridize").lstrip(".")
            found.add(own if own in own_names() else own.rpartition(".")[0])
    return found - {name_of(module)}


def package_of(name: str) -> str:
    """The folder that a module lies in; modules at the top stand for themselves."""
    return name.rpartition(".")[0] or name


def arrows() -> dict[str, Counter[str]]:
    """Package -> packages that it imports, and by how many modules."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for module in modules():
        folder = package_of(name_of(module)) if module.name != "__init__.py" else name_of(module)
        used = {package_of(name) for name in own_imports(module)} - {folder, ""}
        found[folder].update(used)
    return dict(found)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reach = {node: _reached(graph, node) for node in graph}
    groups = {
        tuple(sorted(other for other in reach[node] if node in reach.get(other, ())))
        for node in graph
        if node in reach[node]
    }
    return [list(group) for group in sorted(groups)]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for node in graph.get(waiting.pop(), ()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


if __name__ == "__main__":
    for package, used in sorted(arrows().items()):
        print(f"{package:32} {', '.join(sorted(used))}")
    graph = {name_of(m): own_imports(m, at_run_time=True) for m in modules()}
    print("circles of modules:", circles(graph) or "none")
    packages = {package: set(used) for package, used in arrows().items()}
    print("circles of packages:", circles(packages) or "none")

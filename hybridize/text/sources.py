"""Text that a recipe names: found while planning, read afterwards. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import Finding, HybridizeError
from hybridize.files.reading import expanded
from hybridize.files.yaml_source import Step
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.fields import GLOB
from hybridize.recipe.sections.text import TextSpec
from hybridize.text.formats import TextFile, read_file, shortened

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class TextSource:
    """One entry of text of a recipe, its files found.

    Attributes:
        place: in the recipe.
        files: in the order of the recipe; those of a pattern by name. None is there twice.
        dataset: id of a data set of the hub, or a folder; None where there are files.
    """

    spec: TextSpec
    place: str
    files: tuple[TextFile, ...] = ()
    dataset: str | None = None


def find_text(
    recipe: RecipeFile, where: tuple[Step, ...], spec: TextSpec, findings: list[Finding]
) -> TextSource:
    """Look for the files of an entry, without reading them; a hub is not asked.

    Args:
        where: steps to the entry in the recipe.
        findings: grows by what is missing or empty.
    """
    place = recipe.place(*where)
    if spec.dataset is not None:
        return TextSource(spec, place, dataset=_find_dataset(recipe, where, spec, findings))
    found: dict[Path, TextFile] = {}
    for i, name in enumerate(spec.files or []):
        spot = _written(recipe, (*where, "files", i))
        try:
            paths = _matches(recipe.path("."), name)
        except (OSError, ValueError, RuntimeError) as error:  # no access, 'a**b', '~nobody'
            reason = getattr(error, "strerror", None) or error
            findings.append(Finding(f"{name}: cannot be looked for: {reason}", place=spot))
        except HybridizeError as error:
            findings += [Finding(finding.found, finding.fix, spot) for finding in error.findings]
        else:
            for path in paths:
                found.setdefault(path, TextFile(path, spot))
    return TextSource(spec, place, files=tuple(found.values()))


def read_text(source: TextSource, *, offline: bool, longest: int | None = None) -> Iterator[str]:
    """The documents of a source, one after the other; those of whitespace alone are left out.

    Args:
        offline: never ask the network.
        longest: bytes of UTF-8 after which a document is cut, at the end of a character; a huge
            file is not read beyond.

    Raises:
        HybridizeError: a file or data set cannot be read, is not what its name says, or has no
            such field; the source has no text at all. It names recipe and file.
    """
    any_text = False
    for document in _documents(source, offline, longest):
        if document and not document.isspace():
            any_text = True
            yield shortened(document, longest)
    if not any_text:
        found = f"the text of '{source.spec.name}' is empty: its documents are only whitespace"
        raise HybridizeError(found, fix="name other files or another field", place=source.place)


def _documents(source: TextSource, offline: bool, longest: int | None) -> Iterator[str]:
    if source.dataset is not None:
        from hybridize.text.hub import read_dataset

        spec, place = source.spec, source.place
        yield from read_dataset(source.dataset, spec, place=place, offline=offline)
    for file in source.files:
        yield from read_file(file, source.spec.field, longest)


def _find_dataset(
    recipe: RecipeFile, where: tuple[Step, ...], spec: TextSpec, findings: list[Finding]
) -> str:
    name = spec.dataset or ""
    folder = recipe.path(name)
    if folder.is_dir():
        if spec.revision is not None:
            found = f"'{name}' is a folder here, and a folder has no revision '{spec.revision}'"
            fix = "remove the key revision, or rename the folder"
            findings.append(Finding(found, fix, recipe.place(*where, "revision")))
        return str(folder)
    if not HUB_ID.match(name):
        fix = "paths start at the recipe; a data set of the hub is written org/name"
        findings.append(Finding(f"no such folder: {folder}", fix, recipe.place(*where, "dataset")))
    return name


def _written(recipe: RecipeFile, where: tuple[Step, ...]) -> str:
    """Place of a file name, which may stand in a list, alone, or for the whole entry."""
    while where and where not in recipe.document.positions:
        where = where[:-1]
    return recipe.place(*where)


def _matches(base: Path, name: str) -> list[Path]:
    """Files of a name or pattern, by name; a file that is called like a pattern goes first."""
    path = base / expanded(name)
    if path.is_file():
        if path.stat().st_size == 0:
            raise HybridizeError(f"{path} is empty", fix="fill it, or leave it out")
        return [path]
    if path.is_dir():
        fix = f"name the files in it: {name.rstrip('/')}/*.txt, say"
        raise HybridizeError(f"{path} is a folder", fix=fix)
    if not GLOB.search(name):
        raise HybridizeError(f"no such file: {path}", fix="paths start at the recipe")
    matches = [match for match in _glob(base, name) if match.is_file()]
    if not matches:
        fix = "paths start at the recipe; ** stands for folders at any depth"
        raise HybridizeError(f"no file matches {path}", fix=fix)
    # Source trees have empty files (__init__.py); only where there is nothing else it is a mistake.
    full = sorted(match for match in matches if match.stat().st_size)
    if not full:
        raise HybridizeError(f"every file that matches {path} is empty")
    return full


def _glob(base: Path, pattern: str) -> Iterator[Path]:
    parts = expanded(pattern).parts
    first = next(i for i, part in enumerate(parts) if GLOB.search(part))
    # The folder of the recipe may be called like a pattern: it is none.
    return base.joinpath(*parts[:first]).glob("/".join(parts[first:]))

"""Text that a recipe names: found while planning, read document by document afterwards. No torch.

By the names of files: `.jsonl`, `.ndjson` and `.json` hold a JSON object in each line, `.parquet`,
`.arrow` and `.feather` rows; any other file is plain text, one document. Text and JSON lines may be
gzipped (`.jsonl.gz`).
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from hybridize.errors import Finding, HybridizeError, did_you_mean
from hybridize.files import expanded
from hybridize.positions import Step
from hybridize.recipe import RecipeFile
from hybridize.recipe_fields import GLOB
from hybridize.recipe_sections import TextSpec

JSON_LINES = (".jsonl", ".ndjson", ".json")
ARROW, ARROW_MAGIC = (".arrow", ".feather"), b"ARROW1"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
LONGEST_LINE = 1 << 28  # bytes of a line of JSON; a file without line ends is no JSON lines
MOST_NAMES = 20  # of fields that an error lists


@dataclass(frozen=True)
class TextFile:
    """A file with text.

    Attributes:
        place: in the recipe, of the name or pattern that it was found by.
    """

    path: Path
    place: str

    def error(
        self, found: str, *, spot: int | None = None, fix: str | None = None
    ) -> HybridizeError:
        """A mistake in this file, in line or row `spot` (counted from 1)."""
        at = str(self.path) if spot is None else f"{self.path}:{spot}"
        return HybridizeError(f"{at}: {found}", fix=fix, place=self.place)


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
    """The documents of a source, one after the other; those without a letter are left out.

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
            yield _cut(document, longest)
    if not any_text:
        found = f"the text of '{source.spec.name}' is empty: no document has a letter"
        raise HybridizeError(found, fix="name other files or another field", place=source.place)


def _documents(source: TextSource, offline: bool, longest: int | None) -> Iterator[str]:
    if source.dataset is not None:
        from hybridize.hub_text import read_dataset

        spec, place = source.spec, source.place
        yield from read_dataset(source.dataset, spec, place=place, offline=offline)
    for file in source.files:
        if file.path.suffix.lower() == ".parquet":
            yield from _read_parquet(file, source.spec.field)
        elif file.path.suffix.lower() in ARROW:
            yield from _read_arrow(file, source.spec.field)
        elif kind_of(file.path) in JSON_LINES:
            yield from _read_lines(file, source.spec.field)
        else:
            yield _read_plain(file, longest)


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


def kind_of(path: Path) -> str:
    """The ending that says what a file holds."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


@contextmanager
def _opened(file: TextFile) -> Iterator[BufferedIOBase]:
    try:
        with open(file.path, "rb") as packed:
            yield gzip.GzipFile(fileobj=packed) if file.path.suffix == ".gz" else packed
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise file.error("is no whole gzip file", fix="fetch or pack it again") from None
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from None


def _read_plain(file: TextFile, longest: int | None) -> str:
    with _opened(file) as stream:
        data = stream.read(-1 if longest is None else longest)
        is_whole = not stream.read(1)
    try:
        # What follows the last whole character of a part is no mistake.
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error.start) from None
    return text.removeprefix("\ufeff")


def _not_utf8(file: TextFile, byte: int) -> HybridizeError:
    return file.error(f"is not UTF-8 text (byte {byte})", fix="save it as UTF-8, or leave it out")


def _read_lines(file: TextFile, field: str) -> Iterator[str]:
    offset = 0
    with _opened(file) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
            if len(line) == LONGEST_LINE:
                raise file.error(f"a line of more than {LONGEST_LINE} bytes", spot=number)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset + error.start) from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if not text.isspace() and (document := _field(file, number, text, field)):
                yield document


def _field(file: TextFile, number: int, line: str, field: str) -> str | None:
    """The text in a line of JSON; None where it is null."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "cannot be read"  # nested without end, or a number of thousands of digits
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, column {error.colno}"
        fix = "write one JSON object in each line; `jq -c '.[]' a.json > a.jsonl` parts a list"
        raise file.error(f"is no JSON object: {reason}", spot=number, fix=fix) from None
    if not isinstance(row, dict):
        found = f"is no JSON object, but of type {type(row).__name__}"
        raise file.error(found, spot=number, fix="write one JSON object in each line")
    if field not in row:
        raise file.error(f"has no field '{field}'", spot=number, fix=known_fields(field, row))
    value = row[field]
    if value is not None and not isinstance(value, str):
        found = f"the field '{field}' is no string, but of type {type(value).__name__}"
        texts = [key for key, other in row.items() if isinstance(other, str)]
        raise file.error(found, spot=number, fix=known_fields(field, texts))
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        found = f"the field '{field}' has half a character (a lone surrogate) at {error.start}"
        raise file.error(found, spot=number, fix="mend the line, or remove it") from None
    return value


def known_fields(field: str, fields: Any) -> str:
    """A fix for a field that is not there, or holds no text."""
    known = [str(name).encode("utf-8", "replace").decode() for name in fields][:MOST_NAMES]
    return f"field: NAME; {did_you_mean(field, known)}" if known else "no field holds text"


def _read_parquet(file: TextFile, field: str) -> Iterator[str]:
    from pyarrow import parquet

    with _readable(file, "parquet"), parquet.ParquetFile(file.path) as table:
        _check_column(file, field, table.schema_arrow)
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            yield from (document for document in batch.column(0).to_pylist() if document)


def _read_arrow(file: TextFile, field: str) -> Iterator[str]:
    """A stream, as `datasets` keeps its tables on disk, or a file with an index, as Feather is."""
    import pyarrow
    from pyarrow import ipc

    with _readable(file, "Arrow"), pyarrow.memory_map(str(file.path)) as source:
        indexed = source.read(len(ARROW_MAGIC)) == ARROW_MAGIC
        source.seek(0)
        table = ipc.open_file(source) if indexed else ipc.open_stream(source)
        _check_column(file, field, table.schema)
        numbers = range(table.num_record_batches) if indexed else ()
        for batch in map(table.get_batch, numbers) if indexed else table:
            yield from (document for document in batch.column(field).to_pylist() if document)


@contextmanager
def _readable(file: TextFile, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise file.error(f"is no {kind} file that can be read: {reason}") from None


def _check_column(file: TextFile, field: str, schema: Any) -> None:
    """See that a table has a column of text of that name."""
    from pyarrow import types

    columns = {column.name: column.type for column in schema}
    if field not in columns:
        raise file.error(f"has no column '{field}'", fix=known_fields(field, columns))
    kind = columns[field]
    if not (types.is_string(kind) or types.is_large_string(kind)):
        texts = [name for name, other in columns.items() if types.is_string(other)]
        found = f"the column '{field}' is no string, but {kind}"
        raise file.error(found, fix=known_fields(field, texts))


def _cut(text: str, longest: int | None) -> str:
    if longest is None or 4 * len(text) <= longest:
        return text
    data = text.encode()
    return text if len(data) <= longest else data[:longest].decode(errors="ignore")

"""Files of text, document by document. No torch.

By the names of files: `.jsonl`, `.ndjson` and `.json` hold a JSON object in each line, `.parquet`,
`.arrow` and `.feather` rows; any other file is plain text, one document. Text and JSON lines may be
gzipped (`.jsonl.gz`).
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from hybridize.errors import HybridizeError, did_you_mean

JSON_LINES = (".jsonl", ".ndjson", ".json")
ARROW, ARROW_MAGIC = (".arrow", ".feather"), b"ARROW1"
LONGEST_LINE = 1 << 28  # bytes of a line of JSON; a file without line ends is not JSON lines
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


def read_file(file: TextFile, field: str, longest: int | None) -> Iterator[str]:
    """The documents of a file, whatever its format.

    Args:
        field: of rows and JSON objects that holds the text.
        longest: bytes of UTF-8 beyond which plain text is not read.

    Raises:
        HybridizeError: it is not what its name says, or has no such field.
    """
    if file.path.suffix.lower() == ".parquet":
        yield from _read_parquet(file, field)
    elif file.path.suffix.lower() in ARROW:
        yield from _read_arrow(file, field)
    elif kind_of(file.path) in JSON_LINES:
        yield from _read_lines(file, field)
    else:
        yield _read_plain(file, longest)


def shortened(text: str, longest: int | None) -> str:
    """A document cut after so many bytes of UTF-8, at the end of a character."""
    if longest is None or 4 * len(text) <= longest:
        return text
    data = text.encode()
    return text if len(data) <= longest else data[:longest].decode(errors="ignore")


def kind_of(path: Path) -> str:
    """The ending that says what a file holds."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


@contextmanager
def _opened(file: TextFile) -> Iterator[BufferedIOBase]:
    try:
        with open(file.path, "rb") as packed:
            yield gzip.GzipFile(fileobj=packed) if file.path.suffix == ".gz" else packed
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise file.error("is not a complete gzip file", fix="fetch or pack it again") from None
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
        raise file.error(f"is not a JSON object: {reason}", spot=number, fix=fix) from None
    if not isinstance(row, dict):
        found = f"is not a JSON object, but of type {type(row).__name__}"
        raise file.error(found, spot=number, fix="write one JSON object in each line")
    if field not in row:
        raise file.error(f"has no field '{field}'", spot=number, fix=known_fields(field, row))
    value = row[field]
    if value is not None and not isinstance(value, str):
        found = f"the field '{field}' is not a string, but of type {type(value).__name__}"
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
        raise file.error(f"cannot be read as {kind}: {reason}") from None


def _check_column(file: TextFile, field: str, schema: Any) -> None:
    """See that a table has a column of text of that name."""
    from pyarrow import types

    columns = {column.name: column.type for column in schema}
    if field not in columns:
        raise file.error(f"has no column '{field}'", fix=known_fields(field, columns))
    kind = columns[field]
    if not (types.is_string(kind) or types.is_large_string(kind)):
        texts = [name for name, other in columns.items() if types.is_string(other)]
        found = f"the column '{field}' is not a string, but {kind}"
        raise file.error(found, fix=known_fields(field, texts))

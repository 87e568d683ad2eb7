"""The text of a training: read, tokenized and packed once, then found by its hash (torch side)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.console import Tell
from hybridize.cpt.data.blocks import Blocks
from hybridize.cpt.data.dividing import EACH, MOST_HELD_OUT, Division
from hybridize.cpt.data.packing import (
    FORMAT,
    HELD_OUT,
    TRAIN,
    Packed,
    find,
    publish_blocks,
    staging,
)
from hybridize.cpt.data.tokens import Tokens
from hybridize.errors import Finding, HybridizeError
from hybridize.files.hashes import cache_folder, file_hash
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.text import TextSpec
from hybridize.text.formats import TextFile, kind_of
from hybridize.text.sources import TextSource, find_text, read_text
from hybridize.torch_model.windows import Reader

NEW, OLD = "new", "old"

Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Text of one kind: to train on, and held out.

    Attributes:
        kind: new, what is to be learnt; or old, what is to be kept.
        share: of the training's tokens.
        noted: where it came from, and what was read, for the manifest.
    """

    name: str
    kind: str
    share: float
    train: Blocks
    held_out: Blocks
    noted: dict[str, Any]


def check_text(recipe: RecipeFile) -> None:
    """See that the text is there, before anything is loaded.

    Raises:
        HybridizeError: files that are missing or empty, all of them.
    """
    findings: list[Finding] = []
    for where, spec in _specs(recipe):
        find_text(recipe, where, spec, findings)
    if findings:
        raise HybridizeError.of(findings)


def gather_sources(
    recipe: RecipeFile,
    reader: Reader,
    *,
    packed: bool,
    tokens: int,
    offline: bool,
    progress: Tell = lambda done, total: None,
) -> list[Source]:
    """All text that the training asks for, as rows, which are packed once and then kept.

    Args:
        packed: whether a row may hold more than one document.
        tokens: of the whole training; what is beyond a source's share of them is not read.

    Raises:
        HybridizeError: text cannot be read, or a source has too little; of all of them.
    """
    specs = _specs(recipe)
    shares = _shares(recipe)
    wanted = [round(tokens * share) for share in shares]
    packing = _Packing(recipe, Tokens(reader), packed=packed, offline=offline)
    findings: list[Finding] = []
    found = []
    for i, (where, spec) in enumerate(specs):

        def tell(some: int, most: int = wanted[i], done: int = sum(wanted[:i])) -> None:
            progress(done + min(some, most), sum(wanted))

        try:
            rows = packing.rows(where, spec, wanted[i], tell)
            found.append(_source(spec, str(where[2]), shares[i], rows))
            tell(wanted[i])
        except HybridizeError as error:
            findings += error.findings
    if findings:
        raise HybridizeError.of(findings)
    return found


def _specs(recipe: RecipeFile) -> list[tuple[Where, TextSpec]]:
    text = recipe.recipe.cpt.data if recipe.recipe.cpt else None
    if text is None:
        raise HybridizeError(
            "the recipe names no text to train on",
            fix="add cpt: {data: {new: [FILES]}}",
            place=recipe.place("cpt"),
        )
    kinds: list[tuple[str, Sequence[TextSpec]]] = [(NEW, text.new), (OLD, text.old)]
    return [(("cpt", "data", kind, i), s) for kind, some in kinds for i, s in enumerate(some)]


def _shares(recipe: RecipeFile) -> list[float]:
    """Of the training's rows, for each source: old text gets the replay."""
    text = recipe.recipe.cpt.data if recipe.recipe.cpt else None
    assert text is not None
    replay = text.replay if text.old else 0.0
    found = []
    for some, part in ((text.new, 1 - replay), (text.old, replay)):
        total = sum(spec.weight for spec in some)
        found += [part * spec.weight / total for spec in some]
    return found


def _source(spec: TextSpec, kind: str, share: float, rows: Packed) -> Source:
    given = spec.model_dump(exclude={"name", "weight"}, exclude_unset=True)
    train, held_out = (
        {"rows": noted["rows"], "tokens": noted["tokens"], "rows_blake3": noted["blake3"]}
        for noted in (rows.note[TRAIN], rows.note[HELD_OUT])
    )
    noted = {
        "name": spec.name,
        "kind": kind,
        "share": share,
        "source": {key: value for key, value in given.items() if value is not None},
        "documents": rows.note["documents"],
        "blake3": rows.note["blake3"],
        **train,
        "held_out": held_out,
    }
    return Source(spec.name, kind, share, rows.train, rows.held_out, noted)


class _Packing:
    """Finds or makes the rows of sources, all in the same way."""

    def __init__(self, recipe: RecipeFile, tokens: Tokens, *, packed: bool, offline: bool) -> None:
        assert recipe.recipe.cpt is not None
        self.recipe, self.tokens, self.length = recipe, tokens, recipe.recipe.cpt.length
        self.packed, self.offline = packed, offline

    def rows(
        self, where: Where, spec: TextSpec, wanted: int, tell: Callable[[int], None]
    ) -> Packed:
        """Rows of a source; no text is read if they are in the cache."""
        findings: list[Finding] = []
        source = find_text(self.recipe, where, spec, findings)
        if findings:
            raise HybridizeError.of(findings)
        identity = _identity(source, offline=self.offline)
        folder = cache_folder() / "text" / self._key(identity, wanted)
        if (found := find(folder)) is not None:
            return found
        with _clear_errors(folder), staging(folder) as staged:
            note = self._pack(source, staged, wanted, tell)
            self._check_size(source, note)
            if _is_local(source) and _identity(source, offline=True) != identity:
                raise HybridizeError(
                    f"the text of '{spec.name}' was changed while it was read",
                    fix="train when it is complete",
                    place=source.place,
                )
            return publish_blocks(staged, folder, note)

    def _key(self, identity: Any, wanted: int) -> str:
        """Of all that decides the rows."""
        rows = [self.length, self.packed, wanted, EACH, MOST_HELD_OUT, FORMAT]
        return blake3(json.dumps([identity, self.tokens.blake3, rows]).encode()).hexdigest()

    def _pack(
        self, source: TextSource, folder: Path, wanted: int, tell: Callable[[int], None]
    ) -> dict[str, Any]:
        texts: Any = read_text(source, offline=self.offline)
        division = Division(
            folder, self.tokens, length=self.length, packed=self.packed, wanted=wanted, tell=tell
        )
        with closing(texts):  # at once: a data set of the hub is read with settings of its own
            return division.run(texts)

    def _check_size(self, source: TextSource, note: dict[str, Any]) -> None:
        train, held_out = note[TRAIN], note[HELD_OUT]
        if not (train["rows"] and held_out["rows"]):
            raise HybridizeError(
                f"the text of '{source.spec.name}' is too short: it makes {train['rows']} rows of "
                f"{self.length} tokens to train on, and {held_out['rows']} held out",
                fix="name more text",
                place=source.place,
            )


def _identity(source: TextSource, *, offline: bool) -> list[Any]:
    """What tells a text, and how it is read, from any other: JSON."""
    spec = source.spec
    if source.dataset is None:
        return [spec.field, *([_hash(file), *_reading(file.path)] for file in source.files)]
    asked = [spec.subset, spec.split, spec.field]
    if _is_local(source):
        return [asked, *_contents(source)]
    from hybridize.text.hub import dataset_identity

    commit = dataset_identity(source.dataset, spec, place=source.place, offline=offline)
    return [asked, source.dataset, commit]


def _is_local(source: TextSource) -> bool:
    return source.dataset is None or Path(source.dataset).is_dir()


def _reading(path: Path) -> tuple[bool, str]:
    """Whether a file is gzipped, and the ending that says what it holds."""
    return path.suffix == ".gz", kind_of(path)


def _contents(source: TextSource) -> list[list[str]]:
    """Names and hashes of all files of a data set in a folder, but for hidden ones."""
    folder = Path(source.dataset or "")
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    seen = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return [[str(name), _hash(TextFile(folder / name, source.place))] for name in seen]


def _hash(file: TextFile) -> str:
    try:
        return file_hash(file.path)
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from None


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HybridizeError(
            f"the cache of packed text: {error.strerror or error}",
            fix="set HYBRIDIZE_CACHE to a folder that can be written and has room",
            place=str(error.filename or folder.parent),
        ) from None

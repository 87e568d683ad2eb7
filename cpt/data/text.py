"""The text of a training: read, held out, tokenized and packed once (torch side)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.assembler.windows import Reader
from hybridize.cpt.blocks import Blocks, Document, digest, load, pack, save
from hybridize.errors import Finding, HybridizeError
from hybridize.recipe import RecipeFile
from hybridize.recipe_sections import TextSpec
from hybridize.text import find_text, read_text

EACH = 20  # one document in so many is held out
MOST_HELD_OUT = 65_536  # tokens of a source that the losses before and after are measured on
NEW, OLD = "new", "old"


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
    recipe: RecipeFile, reader: Reader, cache: Path, *, packed: bool, tokens: int, offline: bool
) -> list[Source]:
    """Read all text that the training asks for, as rows.

    Args:
        cache: folder for rows that were packed before.
        packed: whether a row may hold more than one document.
        tokens: of the whole training; what is beyond a source's share of them is not read.

    Raises:
        HybridizeError: text cannot be read, or a source has too little; of all of them.
    """
    findings: list[Finding] = []
    found = []
    for (where, spec), share in zip(_specs(recipe), _shares(recipe), strict=True):
        try:
            work = _Source(recipe, where, spec, share, reader)
            found.append(work.blocks(cache, packed=packed, tokens=tokens, offline=offline))
        except HybridizeError as error:
            findings += error.findings
    if findings:
        raise HybridizeError.of(findings)
    return found


def _specs(recipe: RecipeFile) -> list[tuple[tuple[str | int, ...], TextSpec]]:
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


class _Source:
    """One source on its way from documents to rows."""

    def __init__(
        self,
        recipe: RecipeFile,
        where: tuple[str | int, ...],
        spec: TextSpec,
        share: float,
        reader: Reader,
    ) -> None:
        self.recipe, self.where, self.spec = recipe, where, spec
        self.share, self.reader = share, reader
        self.kind = str(where[2])

    def blocks(self, cache: Path, *, packed: bool, tokens: int, offline: bool) -> Source:
        assert self.recipe.recipe.cpt is not None
        length = self.recipe.recipe.cpt.length
        train, held_out, noted = self._split(round(tokens * self.share), offline=offline)
        key = blake3(
            f"{noted['blake3']} {length} {packed} {self._tokenizer()}".encode()
        ).hexdigest()
        rows = []
        for part, texts, most in (("train", train, None), ("held-out", held_out, MOST_HELD_OUT)):
            folder = cache / f"{self.kind}-{self.where[3]}-{part}-{key[:16]}"
            found = load(folder, key)
            if found is None:
                documents = self._documents(texts, most)
                save(pack(documents, length, packed=packed), folder, key)
                found = load(folder, key)
            assert found is not None
            rows.append(found)
        if not (len(rows[0]) and rows[1].num_targets):
            raise HybridizeError(
                f"the text of '{self.spec.name}' is too short: it makes {len(rows[0])} rows of "
                f"{length} tokens to train on, and {len(rows[1])} held out",
                fix="name more text",
                place=self.recipe.place(*self.where),
            )
        noted |= {
            "rows": len(rows[0]),
            "tokens": rows[0].num_targets,
            "rows_blake3": digest(rows[0]),
        }
        return Source(self.spec.name, self.kind, self.share, rows[0], rows[1], noted)

    def _split(self, tokens: int, *, offline: bool) -> tuple[list[str], list[str], dict[str, Any]]:
        """Documents to train on, as many as there are tokens for, and those held out.

        One document in twenty is held out; of fewer, the last twentieth of each.
        """
        findings: list[Finding] = []
        source = find_text(self.recipe, self.where, self.spec, findings)
        if findings:
            raise HybridizeError.of(findings)
        texts = list(self._enough(read_text(source, offline=offline), tokens))
        if len(texts) >= EACH:
            train = [text for i, text in enumerate(texts) if i % EACH != EACH - 1]
            held_out = texts[EACH - 1 :: EACH]
        else:
            cuts = [len(text) - len(text) // EACH for text in texts]
            train = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
            held_out = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
        given = self.spec.model_dump(exclude={"name", "weight"}, exclude_unset=True)
        hashed = blake3()
        for text in texts:
            hashed.update(text.encode() + b"\0")
        noted = {
            "name": self.spec.name,
            "kind": self.kind,
            "share": self.share,
            "source": {key: value for key, value in given.items() if value is not None},
            "documents": len(texts),
            "blake3": hashed.hexdigest(),
        }
        return train, held_out, noted

    def _enough(self, texts: Iterable[str], tokens: int) -> Iterator[str]:
        """Documents until there are as many tokens as the training wants, held-out ones beside."""
        left = tokens * EACH // (EACH - 1)
        for text in texts:
            yield text
            left -= len(self.reader.tokens(text)[0])
            if left <= 0:
                return

    def _documents(self, texts: Iterable[str], most: int | None) -> Iterator[Document]:
        """Each between the token that documents begin with and the one that ends them.

        Args:
            most: tokens after which no further document comes.
        """
        done = 0
        begin = [] if self.reader.begin is None else [self.reader.begin]
        last = self.reader.tokenizer.eos_token_id
        for text in texts:
            ids, _ = self.reader.tokens(text)
            if ids and max(ids) >= self.reader.rows:
                raise HybridizeError(
                    f"the tokenizer gives token {max(ids)}, the embedding has "
                    f"{self.reader.rows} rows",
                    fix="put the model's own tokenizer files into its folder",
                )
            yield Document([*begin, *ids, *([] if last is None else [last])])
            done += len(ids)
            if most is not None and done >= most:
                return

    def _tokenizer(self) -> str:
        return blake3(self.reader.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

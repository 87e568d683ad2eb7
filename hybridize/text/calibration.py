"""Calibration text: planned from the recipe, then gathered into one file of documents. No torch."""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from hybridize.errors import Finding, HybridizeError
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.calibration import CalibrationSpec
from hybridize.recipe.sections.text import TextSpec
from hybridize.text.built_in import DOMAINS, Corpus, read_corpus
from hybridize.text.sources import find_text, read_text

BYTES_PER_TOKEN = 16  # of UTF-8 that are gathered: more than any tokenizer in use takes on average
POOL = 4  # times what is needed is read, then shuffled: neighbours in a file are alike
NOT_MEASURED = "losses are not measured (calibration: {measure: false})"
LEAST_POOL = 1 << 24  # bytes; so few are read in no time, and mix better


@dataclass(frozen=True)
class Domain:
    """Text of one kind.

    Attributes:
        weight: of its share of the tokens, relative to the other domains.
        place: in the recipe.
    """

    name: str
    weight: float
    place: str


@dataclass(frozen=True)
class Calibration:
    """What bridges are fitted to and judged by.

    Attributes:
        tokens: of all domains together, held-out ones included; None: as many as fits need.
        length: tokens of a sequence.
        stream: whose hidden states bridges are fitted to.
        measure: whether losses are measured; a number: held-out tokens that they are measured on.
        brought: the recipe names no text, and gets that which every Python has.
    """

    domains: tuple[Domain, ...]
    tokens: int | None
    length: int
    seed: int
    stream: Literal["hybrid", "donor"]
    measure: bool | int
    brought: bool

    def shares(self, tokens: int) -> list[tuple[Domain, int]]:
        """Each domain with its part of so many tokens, by weight."""
        total = sum(domain.weight for domain in self.domains)
        return [(d, max(1, round(tokens * d.weight / total))) for d in self.domains]


def plan_calibration(recipe: RecipeFile, findings: list[Finding]) -> Calibration:
    """Decide on the text and see that its files are there, without reading them.

    Args:
        findings: grows by what is missing or empty.
    """
    spec = recipe.recipe.calibration or CalibrationSpec()
    for i, text in enumerate(spec.data):
        find_text(recipe, ("calibration", "data", i), text, findings)
    domains = [
        Domain(text.name, text.weight, recipe.place("calibration", "data", i))
        for i, text in enumerate(spec.data)
    ]
    brought = [Domain(name, 1.0, recipe.place("calibration")) for name in DOMAINS]
    return Calibration(
        domains=tuple(domains or brought),
        tokens=spec.tokens,
        length=spec.length,
        seed=spec.seed,
        stream=spec.stream,
        measure=spec.measure,
        brought=not domains,
    )


def gather(
    calibration: Calibration, recipe: RecipeFile, file: Path, *, tokens: int, offline: bool
) -> dict[str, Any]:
    """Write documents of all domains, enough for so many tokens of any tokenizer.

    Args:
        file: to write: JSON lines `{"domain": 0, "text": "..."}`, one domain after the other,
            the documents of each in an order that follows from the seed alone.
        tokens: of all domains together.
        offline: never ask the network.

    Returns:
        What was gathered, for the manifest: of each domain its source as the recipe gives it,
        documents, bytes of UTF-8, and the BLAKE3 of these with a zero byte after each document.

    Raises:
        HybridizeError: text cannot be read, or is shorter than needed; of all domains.
    """
    corpus = read_corpus() if calibration.brought else None
    findings: list[Finding] = []
    noted = []
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for i, (domain, share) in enumerate(calibration.shares(tokens)):
            needed = share * BYTES_PER_TOKEN
            try:
                texts = _texts(recipe, i, corpus, longest=needed, offline=offline)
                chosen = _choose(texts, needed, seed=calibration.seed)
                if (found := _nbytes(chosen)) < share:
                    raise _too_short(calibration, domain, found, share, tokens)
            except HybridizeError as error:
                findings += error.findings
                continue
            for text in chosen:
                out.write(json.dumps({"domain": i, "text": text}) + "\n")
            noted.append({**_source(recipe, domain, i), **_summary(chosen)})
    if findings:
        raise HybridizeError.of(findings)
    return {
        "tokens": tokens,
        "length": calibration.length,
        "seed": calibration.seed,
        "stream": calibration.stream,
        "measure": calibration.measure,
        "brought": calibration.brought,
        "domains": noted,
    }


def _texts(
    recipe: RecipeFile, i: int, corpus: Corpus | None, *, longest: int, offline: bool
) -> Iterable[str]:
    """Documents of domain `i`, in the order of their source."""
    if corpus is not None:
        return corpus.train[DOMAINS[i]]
    findings: list[Finding] = []
    source = find_text(recipe, ("calibration", "data", i), _spec(recipe, i), findings)
    if findings:  # a file went since the plan was made
        raise HybridizeError.of(findings)
    return read_text(source, offline=offline, longest=longest)


def _choose(texts: Iterable[str], needed: int, *, seed: int) -> list[str]:
    """So many bytes of documents, taken at random from the first of a source."""
    pool: list[str] = []
    nbytes = 0
    for text in texts:
        pool.append(text)
        nbytes += len(text.encode())
        if nbytes >= max(POOL * needed, LEAST_POOL):
            break
    random.Random(seed).shuffle(pool)
    chosen: list[str] = []
    nbytes = 0
    while pool and nbytes < needed:
        chosen.append(pool.pop())
        nbytes += len(chosen[-1].encode())
    return chosen


def _too_short(
    calibration: Calibration, domain: Domain, found: int, share: int, tokens: int
) -> HybridizeError:
    if calibration.brought:
        fix = "name text of your own: calibration: {data: [...]}"
    else:
        fix = f"name more text, give it a lower weight, or write tokens: {tokens * found // share}"
    return HybridizeError(
        f"the text of '{domain.name}' is shorter than needed: {found} bytes for {share} tokens",
        fix=fix,
        place=domain.place,
    )


def _spec(recipe: RecipeFile, i: int) -> TextSpec:
    assert recipe.recipe.calibration is not None
    return recipe.recipe.calibration.data[i]


def _source(recipe: RecipeFile, domain: Domain, i: int) -> dict[str, Any]:
    """A domain and where its text comes from, as the recipe says it."""
    noted = {"name": domain.name, "weight": domain.weight}
    if recipe.recipe.calibration is None or not recipe.recipe.calibration.data:
        return noted | {"source": f"standard library of Python {platform.python_version()}"}
    given = _spec(recipe, i).model_dump(exclude={"name", "weight"}, exclude_unset=True)
    return noted | {"source": {key: value for key, value in given.items() if value is not None}}


def _summary(texts: Sequence[str]) -> dict[str, Any]:
    digest = blake3()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return {
        "documents": len(texts),
        "bytes": _nbytes(texts),
        "blake3": digest.hexdigest(),
    }


def _nbytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)

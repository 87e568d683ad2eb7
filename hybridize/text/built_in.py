"""Text that every Python has, the source of its own standard library, as two domains.

`prose` is what the docstrings say, `code` is the rest of the files. One file in ten is held out.
"""

import ast
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridize.errors import HybridizeError

DOMAINS = ("prose", "code")

# Tests and tables are not text that one learns a language from, and distributions leave the
# others out or add to them.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
HELD_OUT_CHARACTERS = 1_500  # of each held-out file and domain: enough text, little time


@dataclass(frozen=True)
class Corpus:
    """Texts of one file each, in the order of the files' names.

    Attributes:
        train: domain -> texts to train on.
        held_out: domain -> texts to measure on, from files that are in no training text.
    """

    train: dict[str, list[str]]
    held_out: dict[str, list[str]]

    def sha256(self) -> str:
        """Hash of all texts: donors trained on other text are other donors."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            for domain in DOMAINS:
                for text in part[domain]:
                    digest.update(hashlib.sha256(text.encode()).digest())
                digest.update(b"end of domain")
        return digest.hexdigest()


def read_corpus(root: Path | None = None) -> Corpus:
    """Read the library under `root`; by default that of the Python that runs this."""
    root = root or Path(os.__file__).parent
    corpus = Corpus(
        train={domain: [] for domain in DOMAINS}, held_out={domain: [] for domain in DOMAINS}
    )
    for name, source in _modules(root):
        for domain, text in zip(DOMAINS, split_source(source), strict=True):
            if not text.strip():
                continue
            if is_held_out(name):
                corpus.held_out[domain].append(text[:HELD_OUT_CHARACTERS])
            else:
                corpus.train[domain].append(text)
    if not all(part[domain] for part in (corpus.train, corpus.held_out) for domain in DOMAINS):
        raise HybridizeError(
            f"no source of the standard library under {root}",
            fix="use a Python that has its library as .py files",
        )
    return corpus


def is_held_out(name: str) -> bool:
    """Whether the file of this name is for measuring: by its name alone, whatever else is there."""
    return zlib.crc32(name.encode()) % 10 == 0


def split_source(source: str) -> tuple[str, str]:
    """Part a module's source into its docstrings and the lines outside them."""
    lines = source.splitlines(keepends=True)
    prose = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        start, end = node.body[0].lineno, node.body[0].end_lineno
        assert end is not None
        lines[start - 1 : end] = [""] * (end - start + 1)
        prose[start] = text.strip() + "\n"
    return "\n".join(prose[line] for line in sorted(prose)), "".join(lines)


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            yield name.as_posix(), path.read_text(encoding="utf-8")


def reference_texts() -> list[str]:
    """The topics of the Python language reference, as `help()` shows them: text of another kind."""
    from pydoc_data import topics

    return [str(text) for _, text in sorted(topics.topics.items())]

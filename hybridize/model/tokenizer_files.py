"""Which files of a model folder are its tokenizer's, its code among them. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import read_json

CONFIG = "tokenizer_config.json"
# Without one of these there is no tokenizer: JSON, sentencepiece, tiktoken, tekken, plain lists.
VOCABULARIES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tokenizer.model.v*", "*.tiktoken",
    "tekken.json",
)  # fmt: skip
PATTERNS = (
    *VOCABULARIES, CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "vocab.bpe", "bpe.codes", "emoji.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
# As transformers looks for the modules that a module of a folder needs.
RELATIVE = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)\s*$)", re.MULTILINE)


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a model's tokenizer; empty where it has none.

    Code that its config names is among them, if all of it is there.
    """
    if not any(_matching(folder, VOCABULARIES)):
        return []
    code, missing = tokenizer_code(folder)
    return list(dict.fromkeys([*_matching(folder, PATTERNS), *([] if missing else code)]))


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def tokenizer_code(folder: Path) -> tuple[list[Path], list[str]]:
    """Files of code that a tokenizer's config names, with what they import from beside them.

    Returns:
        Those that are there, and the names of those that are not.
    """
    wanted, found, missing = _named(folder), [], []
    for module in wanted:  # which grows meanwhile
        file = folder / f"{module}.py"
        if not re.fullmatch(r"\w+", module) or not file.is_file():
            missing.append(f"{module}.py")
            continue
        found.append(file)
        source = file.read_text(encoding="utf-8", errors="replace")
        imported = ("".join(groups) for groups in RELATIVE.findall(source))
        wanted += [name for name in imported if name not in wanted]
    return found, missing


def _named(folder: Path) -> list[str]:
    """Modules in `auto_map`; `owner/name--module.Class` is one of the hub, not of the folder."""
    try:
        mapped: Any = read_json(folder / CONFIG).get("auto_map")
    except HybridizeError:
        return []
    of_tokenizer = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    names = [of_tokenizer] if isinstance(of_tokenizer, str) else of_tokenizer
    references = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    return list(dict.fromkeys(r.rpartition(".")[0] for r in references if "--" not in r))

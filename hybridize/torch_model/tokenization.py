"""Opening tokenizers as transformers does, and files that keep their ids (torch side).

transformers chooses a tokenizer's class by the model type in config.json before it looks at the
tokenizer's own files. Beside a hybrid's config.json the same files can give other ids.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3
from transformers import AutoTokenizer

from hybridize.errors import CheckFailed, HybridizeError, shorten
from hybridize.model.checkpoint import read_json
from hybridize.model.special_tokens import KEYS
from hybridize.model.vocabulary import share_of

CONFIG, FULL = "tokenizer_config.json", "tokenizer.json"

# Where tokenizers part: runs of digits and spaces, contractions, scripts with and without spaces
# between words, marks that combine, emoji of several code points, line ends, code, bytes.
PROBE = (
    "in 2023, 1234567 and 3.14159 of 10,000",
    "  two  spaces\tand a tab   \n\n\n  then lines\r\n\r\nend ",
    "I'll say they've DON'T camelCase snake_case ABCdef x1y2z3",
    "na\u00efve cafe\u0301 \u0130stanbul stra\u00dfe \ufb01ne \u00bd \u2160\u2161",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f",
    "\ud55c\uad6d\uc5b4 \u0e2a\u0e27\u0e31 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u03b3\u03b5\u03b9\u03ac",
    "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663 \u05e9\u05dc\u05d5",
    "\U0001f44d\U0001f3fd \u2764\ufe0f \U00010348",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "def f(a, *b):\n    return {a: [b] * 2}  # <s>[INST] </s> <|x|> ==> != //",
    "\u2581low \u0120bar \u00a0nbsp\u2009thin\u200b zero\x00\x07",
)


def open_tokenizer(folder: Path, donor: str | None = None) -> Any:
    """The tokenizer of a model folder; code that lies in the folder is not run.

    Args:
        donor: whose it is, for errors.

    Raises:
        HybridizeError: its files are broken, or belong to nothing that transformers knows.
    """
    try:
        # Not left to ask: transformers would read the answer from our standard input.
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a")  # some of what its config says is used here first
        return tokenizer
    except Exception as error:  # tokenizers raises this very class, transformers any
        whose = f"the tokenizer of donor '{donor}'" if donor else "its tokenizer"
        reason = shorten(" ".join(f"{type(error).__name__}: {error}".split()))
        raise HybridizeError(
            f"{whose} cannot be read: {reason}",
            fix="download or copy its tokenizer files again",
            place=str(folder),
        ) from error


def fingerprint(tokenizer: Any) -> str:
    """Hash of the ids that a tokenizer gives a probe text, and of its special tokens' ids.

    Raises:
        HybridizeError: it cannot read the text.
    """
    specials = tokenizer.all_special_tokens
    texts = [*PROBE, "\n".join(PROBE), "".join(f"a{token} b" for token in specials)]
    try:
        ids = [
            tokenizer(text, add_special_tokens=add)["input_ids"]
            for add in (False, True)
            for text in texts
        ]
    except Exception as error:  # a vocabulary that is not the class's
        raise HybridizeError(shorten(f"its tokenizer cannot read text: {error}")) from error
    found = [ids, specials, [getattr(tokenizer, key, None) for key in KEYS]]
    return blake3(json.dumps(found).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """What a donor's tokenizer is: `ids` (its fingerprint), `kind` (its class), `special` (ids).

    Raises:
        HybridizeError: transformers cannot open or use it.
    """
    tokenizer = open_tokenizer(folder)
    special = {key: getattr(tokenizer, key, None) for key in KEYS}
    return {
        "ids": fingerprint(tokenizer),
        "kind": type(tokenizer).__name__,
        "special": special,
    }


def compare(one: Path, other: Path) -> dict[str, Any]:
    """What two tokenizers have in common, whatever kinds they are.

    Returns:
        `share` of the smaller vocabulary that both number alike (None if one is empty), the
        `highest` number that `other` gives, and whether a probe text has the `same` ids.

    Raises:
        HybridizeError: transformers cannot open one of them.
    """
    first, second = open_tokenizer(one), open_tokenizer(other)
    tables = [{number: token for token, number in t.get_vocab().items()} for t in (first, second)]
    return {
        "share": share_of(*tables),
        "highest": max(tables[1], default=0),
        "same": fingerprint(first) == fingerprint(second),
    }


def keep_ids(source: Path, folder: Path, *, ids: str, kind: str) -> None:
    """Have the tokenizer of a result give the ids that the donor's gave beside its own config.json.

    Args:
        source: the donor.
        folder: the result, with its config.json and a copy of the donor's tokenizer files.
        ids, kind: what `read` has found of the donor.

    Raises:
        CheckFailed: the result's gives other ids, whatever its files say.
    """
    for change in (_as_it_is, partial(_name_class, kind), partial(_save_anew, source)):
        change(folder)
        try:
            if fingerprint(open_tokenizer(folder)) == ids:
                return
        except HybridizeError:
            continue
    raise CheckFailed(
        f"the tokenizer of the result gives other ids than that of {source}",
        fix=f"save it as a fast tokenizer into the donor's folder: {FULL}, and {CONFIG} with "
        '"tokenizer_class": "TokenizersBackend"',
        place=str(folder),
    )


def _as_it_is(folder: Path) -> None:
    """Most files name their class, and it is the one that is chosen."""


def _name_class(kind: str, folder: Path) -> None:
    """The class that transformers chose for the donor, by name."""
    file = folder / CONFIG
    content = read_json(file) if file.exists() else {}
    _write(file, content | {"tokenizer_class": kind})


def _save_anew(source: Path, folder: Path) -> None:
    """All that the opened tokenizer does, as it would be saved; no class has a say in it then."""
    tokenizer = open_tokenizer(source)
    if not tokenizer.is_fast:
        return
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        shutil.copyfile(Path(saved) / FULL, folder / FULL)
        content = read_json(Path(saved) / CONFIG)
    # A path of this machine, and code: what is there of it has been copied, and is not run.
    kept = {key: value for key, value in content.items() if key not in ("name_or_path", "auto_map")}
    _write(folder / CONFIG, kept | {"tokenizer_class": "TokenizersBackend"})


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

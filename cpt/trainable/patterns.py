"""Train `patterns`: tensors by patterns over their whole names.

Anchored at both ends, and `*` stays between two dots: `model.layers.1.*.weight` never reaches
layer 11, and `*.1.*` nothing that another number stands in.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.cpt.trainable._regex import as_glob, looks_like_regex
from hybridize.errors import Finding, HybridizeError, did_you_mean

TITLE = "tensors by patterns over their whole names"
VALUE = "a pattern such as model.layers.3.*.weight, or a list of them"

_WILD = {"**": r"(?s:.*)", "*": r"[^.]*", "?": r"[^.]"}
# In brackets letters, digits and ranges alone: nothing there means anything else to `re`.
_TOKEN = re.compile(r"\*\*|\[!?[a-zA-Z0-9_-]+\]|.", re.DOTALL)


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Raises HybridizeError for each pattern that matches no tensor that can learn."""
    patterns = value if isinstance(value, list) else [value]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise HybridizeError(f"{value!r:.60} is not a list of patterns", fix=f"write {VALUE}")
    known = stack.names(lambda tensor: True)
    hits = {pattern: {name for name in known if matches(pattern, name)} for pattern in patterns}
    if empty := [pattern for pattern, names in hits.items() if not names]:
        raise HybridizeError.of(_no_match(stack, pattern, known) for pattern in empty)
    found = set().union(*hits.values())
    return [name for name in known if name in found]


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is a tensor's whole name.

    `*` stands for any characters but the dot, `**` for any at all, `?` for one that is no dot, and
    `[0-3]` or `[!0-3]` for one (or none) of those.
    """
    return _compiled(pattern).fullmatch(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile("".join(map(_as_regex, _TOKEN.findall(pattern))))
    except re.error:  # a range that is reversed, [3-0], holds nothing
        return re.compile("(?!)")


def _as_regex(token: str) -> str:
    if token in _WILD:
        return _WILD[token]
    if len(token) > 2:
        return token.replace("[!", "[^.")
    return re.escape(token)


def _no_match(stack: ModelTensors, pattern: str, known: list[str]) -> Finding:
    constant = [t.name for t in stack.tensors if not t.can_learn and matches(pattern, t.name)]
    if constant:
        return Finding(
            f"'{pattern}' matches only what cannot learn",
            f"{constant[0]} is a constant of the model, or not in floating point",
        )
    if looks_like_regex(pattern):
        glob = as_glob(pattern, known, matches)
        fix = f"write '{glob}'" if glob else "* stays within one part of a name, ** does not"
        found = f"'{pattern}' matches no tensor: patterns are globs, no regular expressions"
        return Finding(found, fix)
    close = difflib.get_close_matches(pattern, known, n=4, cutoff=0.4) or known[:4]
    # A few of thousands.
    return Finding(f"'{pattern}' matches no tensor", f"{did_you_mean(pattern, close)[:-1]}, ...)")

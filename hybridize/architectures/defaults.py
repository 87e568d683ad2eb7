"""What transformers' config classes fill in where a config.json is silent, read from their source.

A plan must not wait for the import of transformers, and a table would belong to one version of it.
tests/assembler/test_defaults.py compares with the classes themselves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybridize.architectures.families import family

# Where a wrapper's own key is false, its class takes the word of the language model in it.
_FORWARDED = re.compile(r"""self\.text_config(\.|, ["'])tie_word_embeddings""")


def class_default(model_type: str, field: str) -> Any:
    """What the config class of a type has for a field, if its file does not say; None if nothing.

    Only constants are found: what a class computes depends on other fields.
    """
    return next((_constant(value) for value in _values(model_type, field)), None)


def text_type(model_type: str) -> str | None:
    """The type of the language model in a wrapper whose config does not name it."""
    for node in _ancestry(model_type):
        for statement in node.body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Dict):
                continue
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                if key is not None and _constant(key) == "text_config":
                    return _sub_type(model_type, value)
    return None


def ties_head(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether transformers ties the output head to the embedding, by configs alone.

    Args:
        config: content of a config.json.
        text: the language model's part of it; `config` itself if there is no other.
    """
    wrapper = str(config.get("model_type"))
    if text is config or family(wrapper).whole_inside:
        return _says_tied(text)
    if not _declares(wrapper, "tie_word_embeddings"):
        return False
    own = _says_tied(config)
    if own or not _FORWARDED.search(_class_text(wrapper)):
        return own
    # PerceptionLM leaves its own key open; the others take a false one for a default.
    is_open = class_default(wrapper, "tie_word_embeddings") is None
    return _says_tied(text) and not (is_open and "tie_word_embeddings" in config)


def _says_tied(config: Mapping[str, Any]) -> bool:
    model_type = str(config.get("model_type"))
    if family(model_type).never_tied:
        return False
    if model_type.startswith("lfm2") and "tie_embedding" in config:  # of their first release
        return bool(config["tie_embedding"])
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    return bool(class_default(model_type, "tie_word_embeddings"))


def _declares(model_type: str, field: str) -> bool:
    return any(True for _ in _values(model_type, field))


def _values(model_type: str, field: str) -> Iterator[ast.expr | None]:
    """What a config class and those above it have for a field, the class itself first."""
    for node in _ancestry(model_type):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and _name(statement.target) == field:
                yield statement.value


def _class_text(model_type: str) -> str:
    return "\n".join(ast.unparse(node) for node in _ancestry(model_type))


def _sub_type(model_type: str, value: ast.expr) -> str | None:
    """`SubConfigSpec(config_class=AutoConfig, model_type="llama")`, or a class of the module."""
    if isinstance(value, ast.Call):
        named = {keyword.arg: keyword.value for keyword in value.keywords}
        if "model_type" in named:
            return _text(named["model_type"])
        value = named.get("config_class", value)
    classes = _classes(_module(model_type))
    node = classes.get(_name(value) or "")
    return _model_type(node) if node is not None else None


def _ancestry(model_type: str) -> Iterator[ast.ClassDef]:
    """The config class of a type, and those that it inherits from within transformers' models."""
    model_type = family(model_type).same_config_as or model_type
    module = _module(model_type)
    nodes = _classes(module).values()
    node = next((node for node in nodes if _model_type(node) == model_type), None)
    while node is not None:
        yield node
        base = next((name for b in node.bases if (name := _name(b)) != "PreTrainedConfig"), None)
        module = _imports(module).get(base or "", module)
        node = _classes(module).get(base or "")


def _model_type(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and _name(statement.targets[0]) == "model_type":
            return _text(statement.value)
    return None


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _constant(node: ast.expr | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _text(node: ast.expr) -> str | None:
    value = _constant(node)
    return value if isinstance(value, str) else None


@cache
def _module(model_type: str) -> str:
    """The folder under `transformers/models` that a type lives in."""
    return _special_modules().get(model_type, model_type.replace("-", "_"))


@cache
def _special_modules() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for file in ("auto/auto_mappings.py", "auto/configuration_auto.py"):
        listed = re.search(
            r"^SPECIAL_MODEL_TYPE_TO_MODULE_NAME = OrderedDict[^(]*\((.*?)^\)",
            _source(file),
            re.M | re.S,
        )
        found |= dict(ast.literal_eval(listed[1].strip())) if listed else {}
    return found


@cache
def _classes(module: str) -> Mapping[str, ast.ClassDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}


@cache
def _imports(module: str) -> Mapping[str, str]:
    """Config classes of other models, and the module of each."""
    return {
        alias.name: node.module.split(".")[0]
        for node in _tree(module).body
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module
        for alias in node.names
    }


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(f"{module}/configuration_{module}.py"))


@cache
def _source(file: str) -> str:
    """Of a file under `transformers/models`; empty where there is none."""
    package = find_spec("transformers")
    if package is None or package.origin is None or not re.fullmatch(r"[\w/]{1,150}\.py", file):
        return ""
    path = Path(package.origin).parent / "models" / file
    return path.read_text(encoding="utf-8") if path.is_file() else ""

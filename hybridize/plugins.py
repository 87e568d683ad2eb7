"""Plug-ins are files: the folder is the list; names are checked against it before any import."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from hybridize.errors import HybridizeError, did_you_mean

PACKAGES = {
    "bridges": "assembler.bridges",
    "freeze": "cpt.trainable",
    "perturbations": "diagnostics.perturbations",
    "probes": "diagnostics.probes",
}


def plugin_names(kind: str) -> list[str]:
    """Names of the plug-ins of a kind, read from its folder; nothing is imported."""
    folder = Path(__file__).parent.joinpath(*PACKAGES[kind].split("."))
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


@cache
def load_plugin(kind: str, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        HybridizeError: no file of that name is in the folder.
    """
    known = plugin_names(kind)
    if name not in known:
        raise HybridizeError(f"unknown {kind[:-1]} kind '{name}'", fix=did_you_mean(name, known))
    return importlib.import_module(f"hybridize.{PACKAGES[kind]}.{name}")

"""Makes transformers load hybrids without remote code wherever hybridize is imported.

`import hybridize` must cost nothing and must not import torch, and transformers may be imported
before or after it, or never. So transformers is told of the model type `hybridize` when its own
list of configs exists, and of the classes only when the first hybrid is loaded.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODEL_TYPE = "hybridize"
AUTO_CONFIGS = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Register the model type now, or as soon as transformers has a register."""
    if AUTO_CONFIGS in sys.modules:
        _announce(sys.modules[AUTO_CONFIGS])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Finds one module as Python would, and announces the hybrid once that has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AUTO_CONFIGS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_announce(module: ModuleType) -> None:
            execute(module)
            _announce(module)

        spec.loader.exec_module = execute_and_announce  # type: ignore[method-assign]
        return spec


class _HybridConfigLater:
    """Stands for `HybridConfig` in transformers' register until somebody asks it for anything.

    Then the runtime is imported, which registers the classes themselves.
    """

    __name__ = "HybridConfig"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._config_class(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._config_class, name)

    @property
    def _config_class(self) -> Any:
        from .runtime import HybridConfig

        return HybridConfig


def _announce(auto_configs: ModuleType) -> None:
    if MODEL_TYPE not in auto_configs.CONFIG_MAPPING:  # the runtime itself may have been faster
        auto_configs.CONFIG_MAPPING.register(MODEL_TYPE, _HybridConfigLater())

"""Every test runs offline, seeded, and on one thread: on tiny models, two wait for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What hybridize remembers of this machine's files and text neither helps a test nor grows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDIZE_CACHE", str(tmp_path_factory.mktemp("hybridize")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import sys

    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture
def real_models() -> Path:
    """The folder of real pretrained models that HYBRIDIZE_REAL_MODELS names (CONTRIBUTING.md)."""
    folder = os.environ.get("HYBRIDIZE_REAL_MODELS")
    if not folder:
        pytest.skip("HYBRIDIZE_REAL_MODELS names no folder of real models")
    return Path(folder)

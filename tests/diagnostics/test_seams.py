"""What a seam's R2 says where the answer is known: a twin in another basis, a stranger, a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybridize.diagnostics.recommendation.prior.placement import Spot
from hybridize.diagnostics.recommendation.trial import seams
from hybridize.diagnostics.recommendation.trial.seams import Apart
from hybridize.diagnostics.subject.subjects import model_subject
from hybridize.torch_model.windows import DomainText, Windows
from tests.support.readers import code, in_another_basis, prose, save, tokenizer
from tests.support.trained_donors import save_trained, trained


def compare(
    folder: Path, *names: str, related: Callable[[str, str], bool] = lambda a, b: False
) -> Apart:
    subjects = [model_subject(str(folder / name), offline=True) for name in names]
    texts = [text[i : i + 40] for text in (prose(), code()) for i in range(0, 8000, 40)]
    windows = [Windows(DomainText("text", 0, ""), tuple(texts[::2]), tuple(texts[1::2]), 24)]
    return Apart(
        {s.name: s.open("cpu", streamed=False) for s in subjects},
        {s.name: s.reader() for s in subjects},
        windows,
        related=related,
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize("directions", [256, 24], ids=["all of the stream", "some directions"])
def test_a_twin_in_another_basis_is_a_linear_map_away(
    tmp_path: Path, directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams, "DIRECTIONS", directions)
    seams._directions.cache_clear()
    save_trained(tmp_path / "one")
    turned = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    twin = in_another_basis(trained(), turned)
    save(twin, tmp_path / "twin", tokenizer([prose(), code()]))
    apart = compare(tmp_path, "one", "twin")
    for layer in range(5):
        seam = apart.seam(Spot("one", layer), Spot("twin", layer + 1))
        assert seam.bridge
        assert seam.r2 > 0.999
    assert apart.seam(Spot("one", 4), Spot("twin", 1)).r2 < 0.99  # another depth is another stream
    seams._directions.cache_clear()


def test_fewer_tokens_than_dimensions_are_solved_in_their_own_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams, "TOKENS", 40)
    monkeypatch.setattr(seams, "BATCH", 24)
    save_trained(tmp_path / "one")
    apart = compare(tmp_path, "one")
    coordinates, values, judged = apart._space("one", 3)
    assert len(coordinates) < 64
    assert coordinates.shape[1] == len(values) == judged[0].shape[1] <= len(coordinates)
    assert -1 < apart.seam(Spot("one", 2), Spot("one", 3)).r2 <= 1


def test_a_copy_needs_no_map(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_trained(tmp_path / name)
    apart = compare(tmp_path, "one", "two", related=lambda a, b: True)
    assert apart.seam(Spot("one", 2), Spot("two", 3)) == (1.0, False)
    assert apart.seam(Spot("one", 0), Spot("two", 5)).r2 < 0.9

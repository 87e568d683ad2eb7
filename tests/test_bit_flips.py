"""A bit that flips anywhere in a model's folder is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybridize.assembler.assembly.verify import verify
from hybridize.cli import main
from hybridize.model.manifest import files_of
from tests.support.readers import save_reader
from tests.support.stacks import UNFITTED, build_in
from tests.support.trainings import prepare, train

SEED = 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A native model and a hybrid, each with a tokenizer."""
    folder = tmp_path_factory.mktemp("bits")
    save_reader(folder / "a", "llama")
    save_reader(folder / "b", "qwen3")
    one = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "1-2"}]}
    both = {
        "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
        "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
        "bridges": UNFITTED,
    }
    return [
        build_in(folder, one, "native").folder,
        build_in(folder, both | {"shard_size": "60KB"}, "hybrid").folder,
    ]


def flip_and_find(folder: Path, flips: int, source: random.Random) -> None:
    """Flip bits one at a time; half of them in some file, whatever its size."""
    assert verify(folder, load="none").ok
    files = list(files_of(folder).values())
    sizes = [file.stat().st_size for file in files]
    for i in range(flips):
        (file,) = [source.choice(files)] if i % 2 else source.choices(files, weights=sizes)
        whole = file.read_bytes()
        damaged, at = bytearray(whole), source.randrange(len(whole))
        damaged[at] ^= 1 << source.randrange(8)
        file.write_bytes(damaged)
        done = CliRunner().invoke(main, ["verify", str(folder), "--load", "none"])
        file.write_bytes(whole)
        where = f"{file.name}, byte {at}: {done.output}"
        assert done.exit_code in (1, 2), where
        assert isinstance(done.exception, SystemExit), where
        assert file.name in done.output or "tensors" in done.output or "hashes" in done.output


def test_some_bits_of_what_is_built(built: list[Path]) -> None:
    source = random.Random(SEED)
    for folder in built:
        flip_and_find(folder, 20, source)


@pytest.mark.slow
def test_three_hundred_bits_of_models_built_and_trained(built: list[Path], tmp_path: Path) -> None:
    recipe = prepare(tmp_path, tokens=512)
    assert train(recipe).exit_code == 0
    source = random.Random(SEED + 1)
    for folder in (*built, tmp_path / "trained"):
        flip_and_find(folder, 100, source)

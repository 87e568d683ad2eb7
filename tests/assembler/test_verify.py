"""verify notices every change of a model folder, and says which."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridize.assembler.prover import LocalProver
from hybridize.assembler.verify import Verification, verify
from hybridize.checkpoint import open_checkpoint
from hybridize.errors import HybridizeError
from tests.assembler.stacks import UNFITTED, build_in, save_donor

RECIPE = {
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    "bridges": UNFITTED,
    "target": "hybrid",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    save_donor(folder / "a", "llama")
    save_donor(folder / "b", "qwen3")
    build_in(folder, RECIPE)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def check(folder: Path, **options: object) -> Verification:
    return verify(folder, prover=LocalProver(), **options)  # type: ignore[arg-type]


def wrong(verification: Verification) -> dict[str, str]:
    return {o.what: o.detail for o in verification.outcomes if not o.ok}


def test_a_fresh_model_passes(copy: Path) -> None:
    found = check(copy / "out", whole=True)
    assert found.ok
    assert [o.what for o in found.outcomes] == [
        "files", "tensors", "hashes", "donor a", "donor b", "load",
    ]  # fmt: skip


def flip(folder: Path) -> None:
    """One bit of one weight."""
    tensor = open_checkpoint(folder / "out").tensors["model.layers.1.mlp.up_proj.weight"]
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.start + 5)
        byte = stream.read(1)[0]
        stream.seek(tensor.start + 5)
        stream.write(bytes([byte ^ 1]))


def edit_config(folder: Path) -> None:
    file = folder / "out/config.json"
    config = json.loads(file.read_text())
    config["slots"][0]["layer"] = 1
    file.write_text(json.dumps(config))


def truncate(folder: Path) -> None:
    file = folder / "out/model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def lose_code(folder: Path) -> None:
    (folder / "out/modeling_hybridize.py").unlink()


def retrain_donor(folder: Path) -> None:
    flip_donor = next(iter(open_checkpoint(folder / "a").tensors.values()))
    data = bytearray(flip_donor.file.read_bytes())
    for tensor in open_checkpoint(folder / "a").tensors.values():
        data[tensor.start] ^= 1
    flip_donor.file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (flip, {"hashes": "changed: model.layers.1.mlp.up_proj.weight"}),
        (edit_config, {"files": "config.json was changed"}),
        (truncate, {"tensors": "truncated"}),
        (lose_code, {"files": "modeling_hybridize.py is missing"}),
        (retrain_donor, {"donor a": "differ: "}),
    ],
)
def test_every_damage_is_named(
    copy: Path, damage: Callable[[Path], None], expected: dict[str, str]
) -> None:
    damage(copy)
    found = check(copy / "out", load="none", whole=True)
    assert wrong(found).keys() == expected.keys()
    for what, detail in expected.items():
        assert detail in wrong(found)[what]


def test_another_donor_under_the_same_path_is_noticed(copy: Path) -> None:
    save_donor(copy / "a", "llama", num_hidden_layers=5)
    assert wrong(check(copy / "out", load="none")) == {
        "donor a": "is not the donor of the build: it has changed"
    }


def test_donors_that_are_gone_are_no_failure(copy: Path) -> None:
    """Who downloads a model does not have its donors."""
    shutil.rmtree(copy / "a")
    found = check(copy / "out", load="none")
    assert found.ok
    assert "not here (a): not compared" in found.table()


def test_a_folder_of_somebody_else_is_refused(made: Path) -> None:
    with pytest.raises(HybridizeError, match=r"hybridize\.json"):
        check(made / "a")


def test_a_manifest_of_another_format_is_refused(copy: Path) -> None:
    file = copy / "out/hybridize.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(HybridizeError, match="format 99"):
        check(copy / "out")

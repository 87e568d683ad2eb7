"""verify notices every change of a model folder, and says which."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from hybridize.assembler.assembly.verify import Verification, verify
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.errors import HybridizeError
from hybridize.files.hashes import content_hash
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.manifest import is_sealed, sealed
from tests.support.stacks import UNFITTED, build_in, save_donor

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
    return verify(folder, worker=LocalWorker(), **options)  # type: ignore[arg-type]


def wrong(verification: Verification) -> dict[str, str]:
    return {o.what: o.detail for o in verification.outcomes if not o.ok}


def told(folder: Path) -> str:
    """What verify finds wrong, or why it refuses."""
    try:
        return str(wrong(check(folder, load="none")))
    except HybridizeError as error:
        return str(error)


def test_a_fresh_model_passes(copy: Path) -> None:
    found = check(copy / "out", whole=True)
    assert found.ok
    assert [o.what for o in found.outcomes] == [
        "manifest", "files", "tensors", "hashes", "donor a", "donor b", "load",
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


def edit_card(folder: Path) -> None:
    with (folder / "out/README.md").open("a") as card:
        card.write("more\n")


def add(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "out" / name).parent.mkdir(exist_ok=True)
        (folder / "out" / name).write_text("x")

    damage.__name__ = f"add_{name}"
    return damage


def add_pipe(folder: Path) -> None:
    """Whoever opens it waits for good."""
    (folder / "out/config.json").unlink()
    os.mkfifo(folder / "out/config.json")


def relabel(folder: Path) -> None:
    """Another value in the header's __metadata__, which no reader of tensors looks at."""
    file = folder / "out/model.safetensors"
    data = file.read_bytes()
    assert data.count(b'"format":"pt"') == 1
    file.write_bytes(data.replace(b'"format":"pt"', b'"format":"tf"'))


def append(folder: Path) -> None:
    with (folder / "out/model.safetensors").open("ab") as file:
        file.write(bytes(64))


def edit_manifest(folder: Path) -> None:
    """A word that nobody reads back."""
    file = folder / "out/hybridize.json"
    file.write_text(file.read_text().replace("the recipe asks for it", "the recipe asked for it"))


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
        (edit_card, {"files": "README.md was changed"}),
        (add("chat_template.jinja"), {"files": "chat_template.jinja was added"}),
        (add("evil.py"), {"files": "evil.py was added"}),
        (add("pytorch_model.bin"), {"files": "pytorch_model.bin was added"}),
        (add("additional_chat_templates/x.jinja"), {"files": "templates/x.jinja was added"}),
        (add("adapter_model.safetensors"), {"files": "adapter_model.safetensors was added"}),
        (add_pipe, {"files": "config.json was changed", "tensors": "is not a regular file"}),
        (relabel, {"tensors": "the header of model.safetensors was changed"}),
        (append, {"tensors": "the header of model.safetensors was changed"}),
        (edit_manifest, {"manifest": "hybridize.json was changed after it was written"}),
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


def test_every_bit_of_the_manifest_counts(copy: Path) -> None:
    """Whichever is damaged, verify says so, or refuses a file that is none any more."""
    file = copy / "out/hybridize.json"
    data, source = file.read_bytes(), random.Random(7)
    assert is_sealed(data)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[source.randrange(len(data))] ^= 1 << source.randrange(8)
        assert not is_sealed(damaged)
    for _ in range(20):
        damaged = bytearray(data)
        damaged[source.randrange(len(data))] ^= 1 << source.randrange(8)
        file.write_bytes(damaged)
        assert "hybridize.json" in told(copy / "out")


def test_what_was_sealed_again_is_found_by_the_expected_hash(copy: Path) -> None:
    """Whoever changes a model on purpose can make its manifest fit, and not the hash of that."""
    file = copy / "out/hybridize.json"
    digest = blake3(file.read_bytes()).hexdigest()
    assert check(copy / "out", load="none", expect=digest.upper()).ok
    edit_config(copy)
    manifest = json.loads(file.read_text())
    manifest["files"]["config.json"] = content_hash(copy / "out/config.json")
    file.write_text(sealed(manifest))
    assert check(copy / "out", load="none").ok
    found = wrong(check(copy / "out", load="none", expect=digest))
    assert found.keys() == {"manifest"}
    assert f"not the expected {digest}" in found["manifest"]


def test_hidden_files_are_no_part_of_a_model(copy: Path) -> None:
    """A clone of the hub has a .git, a download a .cache."""
    (copy / "out/.cache/huggingface").mkdir(parents=True)
    (copy / "out/.cache/huggingface/x.json").write_text("{}")
    (copy / "out/.gitattributes").write_text("x")
    assert check(copy / "out", load="none").ok


MALFORMED: list[tuple[list[str], Any, str]] = [
    (["files"], [], "files: input should be a valid dictionary"),
    (["files"], {"../../etc/passwd": "x"}, "points outside of the folder"),
    (["files"], {"a\0b": "x"}, "points outside of the folder"),
    (["weights"], None, "weights: input should be"),
    (["tensors"], {"a": 1}, "tensors.a: input should be"),
    (["tensors"], {"a": {}}, "tensors.a.file: field required"),
    (["donors", "a"], 7, "donors.a: input should be"),
    (["donors", "a", "folder"], ["x"], "donors.a.folder: input should be"),
    (["recipe"], {"file": "x"}, "recipe.text: field required"),
    (["slots"], [1], "slots.0: input should be"),
]


@pytest.mark.parametrize(("where", "value", "found"), MALFORMED)
def test_a_malformed_manifest_is_refused(
    copy: Path, where: list[str], value: Any, found: str
) -> None:
    """By every command that reads it, with what is wrong in it."""
    file = copy / "out/hybridize.json"
    manifest = json.loads(file.read_text())
    part = manifest
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    file.write_text(sealed(manifest))
    with pytest.raises(HybridizeError) as caught:
        check(copy / "out")
    assert str(caught.value).startswith(f"{file}: malformed: ")
    assert found in str(caught.value)


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

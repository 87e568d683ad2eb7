"""Headers are read without trust: a broken or lying file is an error that names it."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import (
    decode_floats,
    encode_floats,
    open_checkpoint,
    read_header,
    write_header,
)


def write(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    file.write_bytes(size.to_bytes(8, "little") + raw + data)
    return file


def entry(
    begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [end - begin], "data_offsets": [begin, end]}


def folder(path: Path, **files: Any) -> Path:
    (path / "config.json").write_text("{}")
    for name, content in files.items():
        (path / name.replace("_", ".").replace("-", "_")).write_text(content)
    return path


def test_headers_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.bfloat16),
        "b": torch.ones(5),
        "c": torch.zeros(0),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found = {tensor.name: tensor for tensor in read_header(tmp_path / "m.safetensors")}
    assert found.keys() == tensors.keys()
    with safe_open(tmp_path / "m.safetensors", "pt") as library:
        for name, tensor in found.items():
            view = library.get_slice(name)
            assert (view.get_dtype(), view.get_shape()) == (tensor.dtype, list(tensor.shape))
    raw = (tmp_path / "m.safetensors").read_bytes()
    b = found["b"]
    assert raw[b.start : b.start + b.nbytes] == tensors["b"].numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data", "found"),
    [
        ({"a": entry(0, 9)}, b"12345678", "truncated: tensor 'a' ends at byte"),
        ({"a": entry(0, 8), "b": entry(4, 8)}, b"12345678", "overlaps"),
        ({"a": entry(0, 8, shape=[9])}, b"12345678", "8 bytes do not hold U8 of shape [9]"),
        ({"a": entry(0, 8, dtype="Q4")}, b"12345678", "unknown dtype 'Q4'"),
        ({"a": entry(-8, 0)}, b"12345678", "malformed"),
        ({"a": entry(0, 8, shape=["8"])}, b"12345678", "malformed"),
        ({"a": entry(0, 8, shape=[True, 8])}, b"12345678", "malformed"),
        ({"a": {"dtype": "U8"}}, b"", "malformed"),
        ({"a": []}, b"", "malformed"),
        ([], b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b'{"a": 1, "a": 2}', b"", "a key stands twice"),
        (b"\xff\xff", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header: Any, data: bytes, found: str) -> None:
    file = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(HybridizeError) as caught:
        read_header(file)
    assert found in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_an_announced_header_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    file = write(tmp_path / "m.safetensors", {}, length=length)
    with pytest.raises(HybridizeError, match="truncated"):
        read_header(file)


def test_an_empty_file_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(HybridizeError, match="truncated"):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""]
)
def test_an_index_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    folder(tmp_path, model_safetensors_index_json=json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HybridizeError, match="outside of the folder"):
        open_checkpoint(tmp_path)


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    """A rest of an older model beside a new index is read differently by different tools."""
    folder(
        tmp_path, model_safetensors_index_json=json.dumps({"weight_map": {"b": "s.safetensors"}})
    )
    with pytest.raises(HybridizeError, match="missing"):
        open_checkpoint(tmp_path)
    write(tmp_path / "s.safetensors", {"a": entry(0, 1)}, b"1")
    with pytest.raises(
        HybridizeError, match=r"tensor 'b' is in s\.safetensors, but no shard has it"
    ):
        open_checkpoint(tmp_path)


def test_single_file_and_index_together_are_ambiguous(tmp_path: Path) -> None:
    folder(
        tmp_path, model_safetensors_index_json=json.dumps({"weight_map": {"b": "s.safetensors"}})
    )
    write(tmp_path / "model.safetensors", {})
    with pytest.raises(HybridizeError, match="readers disagree"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_refused_with_the_command_that_converts(tmp_path: Path) -> None:
    folder(tmp_path, pytorch_model_bin="")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(HybridizeError, match=r"pickled weights only.*\n.*save_pretrained"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "found"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_a_broken_config_is_named(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HybridizeError, match=found):
        open_checkpoint(tmp_path)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(HybridizeError, match="no such folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(HybridizeError, match=r"config\.json is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HybridizeError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_header_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with suppress(HybridizeError):
        read_header(file)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1, max_size=5), shapes, max_size=5))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[int, ...]]
) -> None:
    wanted.pop("__metadata__", None)
    file = tmp_path_factory.getbasetemp() / "back.safetensors"
    sizes = {name: math.prod(shape) * 4 for name, shape in wanted.items()}
    header = write_header((name, "F32", shape, sizes[name]) for name, shape in wanted.items())
    file.write_bytes(header + bytes(sum(sizes.values())))
    found = read_header(file)
    assert [(t.name, t.shape, t.nbytes) for t in found] == [
        (name, shape, sizes[name]) for name, shape in wanted.items()
    ]
    assert len(header) % 64 == 0


def test_infinity_survives_a_config() -> None:
    """Mamba's time_step_limit: JSON has no infinity."""
    config = {"time_step_limit": [0.0, {"__float__": "Infinity"}], "x": {"y": 1}}
    decoded = decode_floats(config)
    assert decoded["time_step_limit"] == [0.0, math.inf]
    assert encode_floats(decoded) == config


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a\0b", "which is not a file name"),
        ("x" * 5000, "which is not a file name"),
        ("pipe", "is not a regular file"),
    ],
)
def test_a_shard_that_cannot_be_opened_is_refused(tmp_path: Path, name: str, found: str) -> None:
    """To open a pipe would wait for good."""
    os.mkfifo(tmp_path / "pipe")
    folder(tmp_path, model_safetensors_index_json=json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HybridizeError) as caught:
        open_checkpoint(tmp_path)
    assert found in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_no_pipe_is_opened(tmp_path: Path, file: str) -> None:
    folder(tmp_path)
    write(tmp_path / "model.safetensors", {"a": entry(0, 1)}, b"1")
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    with pytest.raises(HybridizeError, match="is not a regular file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": ' + "[" * 400 + "]" * 400 + "}", "nested too deeply"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"a": {"__float__": []}}', ""),
    ],
)
def test_what_could_not_be_written_again_is_refused(tmp_path: Path, text: str, found: str) -> None:
    folder(tmp_path)
    write(tmp_path / "model.safetensors", {"a": entry(0, 1)}, b"1")
    (tmp_path / "config.json").write_text(text)
    if not found:
        assert open_checkpoint(tmp_path).config == json.loads(text)
        return
    with pytest.raises(HybridizeError, match=found):
        open_checkpoint(tmp_path)

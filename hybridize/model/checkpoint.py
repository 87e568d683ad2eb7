"""A checkpoint folder seen through its headers: config.json and where each tensor's bytes lie.

No torch and no weights: a header is a few kilobytes of JSON in front of the tensor data.
Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hybridize.errors import HybridizeError, shorten
from hybridize.files.ranges import Range, hash_ranges
from hybridize.files.reading import (
    State,
    is_file_name,
    opened,
    read_bytes,
    refuse_changed,
    states_of,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
DEEPEST = 100  # levels of a JSON file
ALIGNMENT = 64  # bytes, as torch allocates: where a tensor lies decides how some kernels round
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
LFS = b"version https://git-lfs.github.com/spec/"
LFS_FOUND, LFS_FIX = "a Git LFS pointer", "run `git lfs pull` in the repository it was cloned to"

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
SAMPLES = 64  # places at which two tensors are compared while planning


class TensorHeader(NamedTuple):
    """Where one tensor lies on disk."""

    name: str
    dtype: str  # as safetensors writes it: BF16, F32, ...
    shape: tuple[int, ...]
    file: Path
    start: int  # byte offset in the file
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def range(self) -> Range:
        """Its bytes."""
        return Range(self.file, self.start, self.nbytes, self.dtype, self.name)


@dataclass(frozen=True)
class Checkpoint:
    """A folder that transformers could load."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]
    states: dict[Path, State | None]  # of the files that were read, before they were

    def refuse_changed(self) -> None:
        """Whoever reads a checkpoint at several times must see the same one.

        Raises:
            HybridizeError: a file of it has changed since it was opened.
        """
        refuse_changed(self.states)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and all safetensors headers of a folder.

    Raises:
        HybridizeError: anything is missing, pickled, truncated, contradictory, or points outside
            of the folder; the error names file and tensor.
    """
    if not folder.is_dir():
        raise HybridizeError("no such folder", place=str(folder))
    states = states_of([folder / "config.json"])
    config = decode_floats(read_json(folder / "config.json"))
    tensors: dict[str, TensorHeader] = {}
    files = weight_files(folder)
    states |= states_of(files)
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise HybridizeError(
                    f"tensor '{tensor.name}' stands in two files, "
                    f"{tensors[tensor.name].file.name} too",
                    fix="remove the stale shards",
                    place=str(file),
                )
            tensors[tensor.name] = tensor
    _compare_with_index(folder, tensors)
    return Checkpoint(folder=folder, config=config, tensors=tensors, states=states)


def is_lfs_pointer(file: Path) -> bool:
    """Whether Git LFS has left a few lines in the place of a file that it has not fetched."""
    try:
        with opened(file) as stream:
            return stream.read(len(LFS)) == LFS
    except (OSError, HybridizeError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HybridizeError: the file is missing or is not a JSON object.
    """
    try:
        content = read_bytes(path)
        if content.startswith(LFS):
            raise HybridizeError(f"this is {LFS_FOUND}", fix=LFS_FIX, place=str(path))
        value = json.loads(content)
    except FileNotFoundError:
        raise HybridizeError(
            f"{path.name} is missing",
            fix="a model folder holds config.json and safetensors files",
            place=str(path.parent),
        ) from None
    except (ValueError, RecursionError) as error:
        raise HybridizeError(f"not JSON: {error}", place=str(path)) from None
    if not isinstance(value, dict):
        raise HybridizeError("not a JSON object", place=str(path))
    _refuse_deep(value, path)
    if has_half_characters(content):
        raise HybridizeError("not JSON: half a character (a lone surrogate)", place=str(path))
    return value


def has_half_characters(content: bytes) -> bool:
    """Whether JSON holds text that nothing can be written in."""
    if not _SURROGATE.search(content):
        return False
    try:
        json.dumps(json.loads(content), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_deep(value: dict[str, Any], path: Path) -> None:
    """What is read can be copied, compared and written: each of these goes in by recursion."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise HybridizeError("not JSON: nested too deeply", place=str(path))


# JSON has no infinity: transformers writes it as an object with this key.
_FLOAT = "__float__"
_SPECIAL = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def decode_floats(value: Any) -> Any:
    """A config with `{"__float__": "Infinity"}` and the like as the numbers that they stand for."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT} and isinstance(value[_FLOAT], str):
            return _SPECIAL.get(value[_FLOAT], value)
        return {key: decode_floats(item) for key, item in value.items()}
    return [decode_floats(item) for item in value] if isinstance(value, list) else value


def encode_floats(value: Any) -> Any:
    """The inverse of `decode_floats`, for writing."""
    if isinstance(value, dict):
        return {key: encode_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return {_FLOAT: names.get(value, "NaN")}
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, as transformers would choose them.

    Raises:
        HybridizeError: there are none, they are ambiguous, or the index points astray.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise HybridizeError(
            f"both {SINGLE} and {INDEX} are here, and readers disagree on which one counts",
            fix="remove the stale one",
            place=str(folder),
        )
    if single.exists():
        return [single]
    if index.exists():
        return [_inside(folder, name, index) for name in sorted(set(_weight_map(index).values()))]
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        raise HybridizeError(
            f"pickled weights only ({pickled[0]}): reading them can run any code",
            fix=f'convert them where you trust them: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{folder}', dtype='auto')"
            f".save_pretrained('{folder}-safetensors')\"",
            place=str(folder),
        )
    raise HybridizeError(f"no {SINGLE} and no {INDEX}", place=str(folder))


def _weight_map(index: Path) -> dict[str, str]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(v, str) for v in weights.values()):
        raise HybridizeError("has no weight_map of tensor names to files", place=str(index))
    if not weights:
        raise HybridizeError("has an empty weight_map", place=str(index))
    return weights


def weights_named(index: Path) -> list[str]:
    """Files that an index names, as far as it names files beside it.

    Raises:
        HybridizeError: it is no index.
    """
    names = sorted(set(_weight_map(index).values()))
    return [n for n in names if is_file_name(n) and "/" not in n and n not in (".", "..")]


def _inside(folder: Path, name: str, index: Path) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or len(pure.parts) != 1 or name in ("", ".", ".."):
        raise HybridizeError(
            f"points at '{shorten(name)}', outside of the folder",
            fix="do not use this checkpoint: a sound index names files beside it",
            place=str(index),
        )
    if not is_file_name(name):
        raise HybridizeError(
            f"names the shard {shorten(repr(name))}, which is not a file name",
            fix="download or copy the checkpoint again",
            place=str(index),
        )
    if not (folder / name).exists():
        raise HybridizeError(
            f"names the shard '{name}', which is missing",
            fix="download or copy the checkpoint again",
            place=str(index),
        )
    return folder / name


def _compare_with_index(folder: Path, tensors: Mapping[str, TensorHeader]) -> None:
    index = folder / INDEX
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        found = tensors.get(name)
        if found is None or found.file.name != file:
            where = f"it lies in {found.file.name}" if found else "no shard has it"
            raise HybridizeError(
                f"says that tensor '{name}' is in {file}, but {where}",
                fix="download or copy the checkpoint again",
                place=str(index),
            )


def read_header(file: Path) -> list[TensorHeader]:
    """All tensors of one safetensors file, checked against the file's size and each other.

    Raises:
        HybridizeError: the header is truncated, is not JSON, or lies about sizes or offsets.
    """
    try:
        with opened(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(len(LFS))
            if start == LFS:
                raise HybridizeError(f"this is {LFS_FOUND}", fix=LFS_FIX, place=str(file))
            length = int.from_bytes(start[:8], "little")
            stream.seek(8)
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise _broken(file, f"truncated: {size} bytes, a header of {length} announced")
            raw = stream.read(length)
    except FileNotFoundError:
        raise _broken(file, "is missing") from None
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _broken(file, "its header is not a JSON object")
    if has_half_characters(raw):
        raise _broken(file, "its header has half a character (a lone surrogate)")
    header.pop("__metadata__", None)
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in header.items()]
    _check_extents(file, tensors, 8 + length, size)
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _broken(file, f"tensor '{name}': dtype, shape or offsets are malformed") from None
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _broken(file, f"tensor '{name}': unknown dtype {dtype!r:.40}")
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise _broken(
            file, f"tensor '{name}': {end - begin} bytes do not hold {dtype} of shape {shape}"
        )
    return TensorHeader(name, dtype, tuple(shape), file, data_start + begin, end - begin)


def _check_extents(file: Path, tensors: Iterable[TensorHeader], start: int, size: int) -> None:
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start < start:
            raise _broken(file, f"tensor '{tensor.name}' overlaps the one before it")
        start = tensor.start + tensor.nbytes
        if start > size:
            raise _broken(file, f"truncated: tensor '{tensor.name}' ends at byte {start} of {size}")


def _broken(file: Path, found: str) -> HybridizeError:
    return HybridizeError(found, fix="download or copy the checkpoint again", place=str(file))


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The header bytes of a safetensors file; its tensors follow in this order without gaps.

    The first begins at a multiple of `ALIGNMENT`.

    Args:
        tensors: (name, dtype, shape, number of bytes) of each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def same_bytes(one: TensorHeader, other: TensorHeader, *, whole: bool = False) -> bool:
    """Whether two tensors hold the same bytes; a sample of places decides unless `whole`."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if whole:
        return hash_ranges([one.range]) == hash_ranges([other.range])
    width = 4096
    step = max(width, one.nbytes // SAMPLES)
    with one.file.open("rb") as a, other.file.open("rb") as b:
        for at in range(0, one.nbytes, step):
            count = min(width, one.nbytes - at)
            a.seek(one.start + at)
            b.seek(other.start + at)
            if a.read(count) != b.read(count):
                return False
    return True

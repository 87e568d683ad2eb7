"""hybridize.json as it is read back: checked in form, and sealed against accidents. No torch.

Its last entry is the hash of all that stands before it, so that a damaged byte is noticed. Whoever
edits the file on purpose can seal it again; against that, the file's own hash is printed when it
is written, and `verify --expect` compares it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from blake3 import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hybridize.errors import CheckFailed, HybridizeError
from hybridize.files.ranges import Range, hash_ranges
from hybridize.files.staging import MANIFEST
from hybridize.model.checkpoint import read_header, read_json

FORMAT = 2
MOST = 10  # names that one check lists
_SEAL = re.compile(rb',\n "blake3": "([0-9a-f]{64})"(\n\}\n)\Z')


def sealed(manifest: dict[str, Any]) -> str:
    """Text of hybridize.json, with the hash of its other entries as the last one."""
    plain = {key: value for key, value in manifest.items() if key != "blake3"}
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    digest = blake3(text.encode()).hexdigest()
    end = "\n}\n"
    return f'{text.removesuffix(end)},\n "blake3": "{digest}"{end}'


def is_sealed(data: bytes) -> bool:
    """Whether every byte is what `sealed` wrote."""
    if seal := _SEAL.search(data):
        return blake3(data[: seal.start()] + seal[2]).hexdigest() == seal[1].decode()
    return False


def read_manifest(folder: Path, *, damaged: bool = False) -> dict[str, Any]:
    """The manifest of a folder, in which what is read back has the right form.

    Args:
        damaged: False to refuse one that is not as it was written.

    Raises:
        HybridizeError: there is none, it is of another format, or it is malformed.
        CheckFailed: it was changed after it was written.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise HybridizeError(
            f"hybridize did not build this: {MANIFEST} is missing",
            fix="name a folder that `hybridize build` has written",
            place=str(folder),
        )
    manifest = read_json(file)
    if manifest.get("format") != FORMAT:
        raise HybridizeError(
            f"format {manifest.get('format')!r:.40}, this version reads {FORMAT}",
            fix="use the version of hybridize that wrote it",
            place=str(file),
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HybridizeError(
            f"malformed: {where}: {first['msg'].lower()}", fix="build it again", place=str(file)
        ) from None
    if not damaged and not is_sealed(file.read_bytes()):
        raise CheckFailed(
            "changed after it was written", fix="build or copy the model again", place=str(file)
        )
    return manifest


def files_of(folder: Path) -> dict[str, Path]:
    """Everything that lies in a model folder, by its name there; hidden files are no part of it."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path
        for name, path in found.items()
        if not any(part.startswith(".") for part in PurePosixPath(name).parts)
        and (path.is_symlink() or not path.is_dir())
    }


def strangers_of(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files in a model folder that its manifest does not name."""
    known = {MANIFEST, *manifest["files"], *manifest["weights"]}
    return [name for name in files_of(folder) if name not in known]


def some(items: Sequence[str]) -> str:
    """A list for the eye, of no more than ten."""
    more = f", and {len(items) - MOST} more" if len(items) > MOST else ""
    return ", ".join(items[:MOST]) + more


def small_hashes(folder: Path, weights: Iterable[str]) -> dict[str, str]:
    """BLAKE3 of every file beside the weights and the manifest."""
    apart = {MANIFEST, *weights}
    return {
        name: blake3(path.read_bytes()).hexdigest()
        for name, path in files_of(folder).items()
        if name not in apart
    }


def frame_hash(file: Path) -> str:
    """BLAKE3 of all bytes of a safetensors file that are no tensor's: header, and gaps."""
    frame, at = [], 0
    for tensor in sorted(read_header(file), key=lambda t: t.start):
        frame.append(Range(file, at, tensor.start - at, "U8", "header"))
        at = tensor.start + tensor.nbytes
    frame.append(Range(file, at, file.stat().st_size - at, "U8", "header"))
    return hash_ranges(part for part in frame if part.nbytes)


def _inside(name: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
        raise ValueError("points outside of the folder")
    return name


_Name = Annotated[str, AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Tensor(_Part):
    file: _Name
    dtype: str
    shape: list[int]
    blake3: str
    donor: str | None
    sources: list[str] = Field(alias="from")
    copied: bool
    part: bool


class _Merge(_Part):
    key: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


class _Donor(_Part):
    source: str
    commit: str | None
    folder: str | None
    headers: str
    merge: _Merge | None = None


class _Recipe(_Part):
    file: str
    folder: str = "."
    text: str


class _Slot(_Part):
    donor: str
    layer: int


class _Manifest(_Part):
    """The entries that are read back; all others are for people."""

    recipe: _Recipe
    donors: dict[str, _Donor]
    slots: list[_Slot]
    files: dict[_Name, str]
    weights: dict[_Name, str]
    tensors: dict[str, _Tensor]
    tokenizer_ids: str | None = None
    versions: dict[str, str] = {}
    training: list[dict[str, Any]] = []

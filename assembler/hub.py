"""Models of the hub: whole, through huggingface_hub's cache, or their headers alone.

A plan needs a few kilobytes of a model: its small files and the headers in front of its tensors.
They are fetched by range requests and kept as files of full size and without content, so that
they are read and checked as any checkpoint is. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridize.assembler.fingerprints import cache_folder
from hybridize.checkpoint import INDEX, LONGEST_HEADER, SINGLE
from hybridize.console import say, size
from hybridize.errors import HybridizeError

WEIGHTS = "*.safetensors"
# By huggingface_hub's patterns: no pickles, no other frameworks, no code.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]


def from_hub(
    model: str, revision: str | None, *, weights: bool, offline: bool, place: str | None
) -> tuple[Path, str]:
    """A folder with a model of the hub, and its commit.

    Args:
        weights: False if headers will do; what the cache has whole is taken whole.

    Raises:
        HybridizeError: it is not in the cache and the hub was not asked, did not answer, or
            refused.
    """
    from huggingface_hub import constants, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    patterns = [*SMALL_FILES, WEIGHTS]
    with _clear_errors(model, revision, offline=offline, place=place):
        if offline or not weights:
            try:
                path = snapshot_download(
                    model, revision=revision, allow_patterns=patterns, local_files_only=True
                )
                if offline or any(Path(path).glob(WEIGHTS)):
                    return Path(path), Path(path).name
            except FileNotFoundError:
                if offline:
                    raise
            return _headers(model, revision)
        path = snapshot_download(model, revision=revision, allow_patterns=patterns)
    return Path(path), Path(path).name


@contextmanager
def _clear_errors(
    model: str, revision: str | None, *, offline: bool, place: str | None
) -> Iterator[None]:
    from huggingface_hub import constants, errors

    wanted = f"{model}@{revision or 'main'}"
    fix = f"see https://huggingface.co/{model}, and `hf auth login` if it needs an account"
    try:
        yield
    except errors.RevisionNotFoundError:
        raise HybridizeError(f"the hub has no revision {wanted}", fix=fix, place=place) from None
    except errors.GatedRepoError:
        raise HybridizeError(f"the hub keeps {wanted} gated", fix=fix, place=place) from None
    except errors.HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        found = f"the hub refuses {wanted}: {reason}"
        raise HybridizeError(found, fix=fix, place=place) from None
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError):
        cache = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
        why = "offline: the hub was not asked" if offline else "the hub did not answer"
        raise HybridizeError(
            f"there is no such folder, and the hub's {wanted} is not on this machine "
            f"(looked for config.json and {WEIGHTS} under {cache}; {why})",
            fix=f"`hf download {model}` where there is a network, or correct the path",
            place=place,
        ) from None


def _headers(model: str, revision: str | None) -> tuple[Path, str]:
    """Small files and headers of a model, in hybridize's own cache."""
    from huggingface_hub import HfApi, snapshot_download

    small = Path(snapshot_download(model, revision=revision, allow_patterns=SMALL_FILES))
    commit = small.name
    folder = cache_folder() / "headers" / model / commit
    folder.mkdir(parents=True, exist_ok=True)
    for file in small.iterdir():
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file)
    sizes = {
        entry.path: int(getattr(entry, "size", 0))
        for entry in HfApi().list_repo_tree(model, revision=commit)
        if entry.path == SINGLE
        or ((small / INDEX).exists() and entry.path.endswith(".safetensors"))
    }
    missing = [name for name in sizes if not (folder / name).exists()]
    if missing:
        say(f"{model}: fetching the headers of {size(sum(sizes.values()))} of weights, not these")
    for name in missing:
        _write_header(model, commit, folder / name, sizes[name])
    return folder, commit


def _write_header(model: str, commit: str, file: Path, nbytes: int) -> None:
    growing = file.with_name(f"{file.name}.{os.getpid()}.growing")
    start = _range(model, commit, file.name, 0, 1 << 16)
    end = min(8 + int.from_bytes(start[:8], "little"), 8 + LONGEST_HEADER, nbytes)
    if len(start) < end:
        start += _range(model, commit, file.name, len(start), end)
    growing.write_bytes(start[:end])
    os.truncate(growing, nbytes)  # a hole: it takes no disk
    growing.rename(file)


def _range(model: str, commit: str, name: str, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` (exclusive) of a file on the hub."""
    from huggingface_hub import hf_hub_url, utils

    http: Any = utils  # its public names are not exported in the way that type checkers want
    url = hf_hub_url(model, name, revision=commit)
    headers = {**http.build_hf_headers(), "range": f"bytes={begin}-{end - 1}"}
    response = http.get_session().get(url, headers=headers, timeout=30, follow_redirects=True)
    http.hf_raise_for_status(response)
    content: bytes = response.content
    return content[: end - begin]

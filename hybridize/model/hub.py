"""Models of the hub: what is needed of them, through huggingface_hub's cache, or headers alone.

A plan needs a few kilobytes of a model: its small files and the headers in front of its tensors.
They are fetched by range requests and kept as files of full size and without content, so that
they are read and checked as any checkpoint is. No torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from hybridize.console import say, size
from hybridize.errors import HybridizeError, shorten
from hybridize.files.hashes import cache_folder
from hybridize.model.checkpoint import INDEX, LONGEST_HEADER, SINGLE, weight_files, weights_named
from hybridize.model.tokenizer_files import PATTERNS, tokenizer_code, tokenizer_files

# No pickles, no other formats, no other frameworks, no optimizer, and code only of a tokenizer.
# What is absent of them is not missed: a checkpoint that lacks something says so when it is read.
SMALL_FILES = ("*.json", *PATTERNS, "README.md", "LICENSE*")
TRIES, PAUSE = 4, 1.0  # of a connection that breaks; seconds before the second, then twice as long

Result = TypeVar("Result")


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
    from huggingface_hub import constants, errors

    offline = offline or constants.HF_HUB_OFFLINE
    with _clear_errors(model, revision, offline=offline, place=place):
        cached = _cached(model, revision)
        if offline and cached is None:
            raise errors.LocalEntryNotFoundError("not in the cache")
        if cached is not None and (offline or (not weights and _is_whole(cached))):
            return cached, cached.name
        small, sizes = _small(model, revision)
        names = _weights(small, sizes)
        if not weights:
            return _headers(model, small, {name: sizes[name] for name in names}), small.name
        folder = _download(model, small.name, names)
        return folder, folder.name


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that has a model's config, with whatever else lies there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _is_whole(folder: Path) -> bool:
    try:
        return bool(weight_files(folder) and tokenizer_files(folder))
    except HybridizeError:
        return False


def _small(model: str, revision: str | None) -> tuple[Path, dict[str, int]]:
    """A folder with the small files of a model, and the size of each file that the hub has."""
    from huggingface_hub import HfApi

    commit = _download(model, revision, ["config.json"]).name
    entries = _again(lambda: list(HfApi().list_repo_tree(model, revision=commit, recursive=True)))
    sizes = {entry.path: int(getattr(entry, "size", -1)) for entry in entries}
    folder = _download(model, commit, [name for name in sizes if _is_small(name)])
    if tokenizer_code(folder)[1]:  # it names code, and may name more in that
        _download(model, commit, [name for name in sizes if fnmatch(name, "*.py")])
    return folder, {name: nbytes for name, nbytes in sizes.items() if nbytes >= 0}


def _is_small(name: str) -> bool:
    """Beside config.json: what lies in other folders is of other formats or checkpoints."""
    return any(
        fnmatch(name, pattern) for pattern in SMALL_FILES if name.count("/") == pattern.count("/")
    )


def _weights(folder: Path, sizes: Iterable[str]) -> list[str]:
    """Files of weights that a reader would choose; beside them often lie other formats' copies."""
    named = weights_named(folder / INDEX) if (folder / INDEX).exists() else []
    return [name for name in sizes if name == SINGLE or name in named]


def _download(model: str, revision: str | None, names: Iterable[str]) -> Path:
    """The folder in the cache, which has these files then."""
    from huggingface_hub import snapshot_download

    escaped = [name.replace("[", "[[]") for name in names]
    return Path(_again(lambda: snapshot_download(model, revision=revision, allow_patterns=escaped)))


def _again(ask: Callable[[], Result]) -> Result:
    """What the hub answers; a connection that breaks is tried again, after longer and longer."""
    pause = PAUSE
    for _ in range(TRIES - 1):
        try:
            return ask()
        except _broken_connections() as error:
            if not _is_broken(error):
                raise
            time.sleep(pause)
            pause *= 2
    return ask()


def _broken_connections() -> tuple[type[Exception], ...]:
    """Errors of whatever library huggingface_hub speaks HTTP with; an answer is one of them too."""
    from huggingface_hub import errors

    http = [kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"]
    return (*http, ConnectionError, TimeoutError)


def _is_broken(error: Exception) -> bool:
    """Whether there was no answer, or one that another try may mend."""
    from huggingface_hub import errors

    if not isinstance(error, errors.HfHubHTTPError):
        return not isinstance(error, errors.LocalEntryNotFoundError)
    return error.response is not None and error.response.status_code in (429, 500, 502, 503, 504)


@contextmanager
def _clear_errors(
    model: str, revision: str | None, *, offline: bool, place: str | None
) -> Iterator[None]:
    from huggingface_hub import constants, errors

    wanted = f"{model}@{revision or 'main'}"
    fix = f"see https://huggingface.co/{model}, and `hf auth login` if it needs an account"
    try:
        yield
    except errors.HFValidationError:
        found = f"there is no such folder, and '{shorten(model)}' is not a hub id"
        raise HybridizeError(found, fix="correct the path", place=place) from None
    except errors.RevisionNotFoundError:
        raise HybridizeError(f"the hub has no revision {wanted}", fix=fix, place=place) from None
    except errors.GatedRepoError:
        raise HybridizeError(f"the hub keeps {wanted} gated", fix=fix, place=place) from None
    except errors.HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        found = f"the hub refuses {wanted}: {reason}"
        raise HybridizeError(found, fix=fix, place=place) from None
    except errors.LocalEntryNotFoundError:
        cache = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
        why = "offline: the hub was not asked" if offline else "the hub did not answer"
        raise HybridizeError(
            f"there is no such folder, and the hub's {wanted} is not on this machine "
            f"(looked for config.json and safetensors files under {cache}; {why})",
            fix=f"`hf download {model}` where there is a network, or correct the path",
            place=place,
        ) from None
    except _broken_connections() as error:
        reason = shorten(" ".join(str(error).split())) or type(error).__name__
        raise HybridizeError(
            f"the connection to the hub broke {TRIES} times while {wanted} was fetched: {reason}",
            fix="run the same command again: what has arrived is kept",
            place=place,
        ) from None


def _headers(model: str, small: Path, sizes: dict[str, int]) -> Path:
    """Small files and headers of a model, in hybridize's own cache."""
    folder = cache_folder() / "headers" / model / small.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in small.iterdir() if small.is_dir() else ():
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file)
    missing = [name for name in sizes if not (folder / name).exists()]
    if missing:
        say(f"{model}: fetching the headers of {size(sum(sizes.values()))} of weights, not these")
    for name in missing:
        _write_header(model, small.name, folder / name, sizes[name])
    return folder


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

    def ask() -> bytes:
        response = http.get_session().get(url, headers=headers, timeout=30, follow_redirects=True)
        http.hf_raise_for_status(response)
        content: bytes = response.content
        return content[: end - begin]

    return _again(ask)

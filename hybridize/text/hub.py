"""Documents of a data set of the hub, by the library `datasets`, which imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hybridize.errors import HybridizeError, did_you_mean
from hybridize.recipe.sections.text import TextSpec
from hybridize.text.formats import known_fields

COMMIT = re.compile(r"[0-9a-f]{40}")


def read_dataset(name: str, spec: TextSpec, *, place: str, offline: bool) -> Iterator[str]:
    """Documents of a data set in its own order, streamed: no more is fetched than is read.

    Args:
        name: id on the hub, or a folder.
        place: in the recipe, for errors.
        offline: never ask the network; then a data set must lie whole in the cache.

    Raises:
        HybridizeError: it is not within reach, or has no such subset, split or field.
    """
    with _offline(offline), _clear_errors(name, place):
        rows = _open(name, spec, place)
        for number, row in enumerate(rows, 1):
            if spec.field not in row:
                found = f"data set '{name}' has no field '{spec.field}'"
                raise HybridizeError(found, fix=known_fields(spec.field, row), place=place)
            document = row[spec.field]
            if document is not None and not isinstance(document, str):
                kind = type(document).__name__
                found = f"data set '{name}', row {number}: '{spec.field}' is of type {kind}"
                texts = [key for key, value in row.items() if isinstance(value, str)]
                raise HybridizeError(found, fix=known_fields(spec.field, texts), place=place)
            if document:
                yield document


def dataset_identity(name: str, spec: TextSpec, *, place: str, offline: bool) -> str:
    """The commit of a data set of the hub, which it takes a network to know of a branch or tag.

    Args:
        place: in the recipe, for errors.
        offline: never ask the network; then a data set must lie whole in the cache, unless the
            recipe names a commit.

    Raises:
        HybridizeError: it is not within reach, or has no such subset.
    """
    if spec.revision is not None and COMMIT.fullmatch(spec.revision):
        return spec.revision
    with _offline(offline), _clear_errors(name, place):
        return str(_builder(name, spec, place).hash)


def _builder(name: str, spec: TextSpec, place: str) -> Any:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(name, spec.subset, revision=spec.revision)
    # Without the hub `datasets` takes whatever revision was cached last, and says so in its log.
    is_cached = "packaged_modules.cache" in type(builder).__module__
    if is_cached and spec.revision not in (None, builder.hash):
        found = f"of data set '{name}' only revision {builder.hash} is on this machine"
        fix = "go where there is a network, or write that revision"
        raise HybridizeError(found, fix=fix, place=place)
    return builder


def _open(name: str, spec: TextSpec, place: str) -> Any:
    splits = _builder(name, spec, place).as_streaming_dataset()
    if spec.split not in splits:
        fix = did_you_mean(spec.split, [str(split) for split in splits])
        raise HybridizeError(f"data set '{name}' has no split '{spec.split}'", fix=fix, place=place)
    return splits[spec.split]


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Both libraries read the environment once, when they are imported: too early for a flag."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def _clear_errors(name: str, place: str) -> Iterator[None]:
    from datasets import config, exceptions

    try:
        yield
    except HybridizeError:
        raise
    except exceptions.DatasetNotFoundError as error:
        page = f"https://huggingface.co/datasets/{name}"
        fix = f"see {page}, and `hf auth login` if it needs an account"
        raise HybridizeError(_first_line(error), fix=fix, place=place) from None
    except ConnectionError:
        why = (
            "offline: the hub was not asked" if config.HF_HUB_OFFLINE else "the hub did not answer"
        )
        found = f"data set '{name}' is not on this machine ({why})"
        fix = f"datasets.load_dataset('{name}') where there is a network, or name files"
        raise HybridizeError(found, fix=fix, place=place) from None
    except Exception as error:  # each format of a data set fails in the words of its own library
        found = f"data set '{name}' cannot be read: {_first_line(error)}"
        raise HybridizeError(found, place=place) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

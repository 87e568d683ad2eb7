"""The demo's donors: what each one is, and a cache of folders so that none is trained twice."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hybridize.demo import training
from hybridize.demo.training import VOCABULARY, Say, Schedule
from hybridize.errors import HybridizeError
from hybridize.machine.lifeline import end_with_parent
from hybridize.text import built_in as corpus_module
from hybridize.text.built_in import DOMAINS, Corpus
from hybridize.torch_model.tokenization import open_tokenizer

RECORD = "training.json"  # in a donor's folder: what it was trained from, and how
BOTH = {"prose": 0.5, "code": 0.5}


@dataclass(frozen=True)
class DonorRecipe:
    """A donor of the demo.

    Attributes:
        config: arguments of its transformers config, beside those that all donors share unless
            they stand here; empty for a fine-tune.
        base: donor that a fine-tune starts from.
    """

    schedule: Schedule
    config: dict[str, Any]
    base: str | None = None


# A width of 128 and one of 96, tied and untied heads, and three architectures: Llama, Qwen3 with
# its norms on queries and keys, and OlmoHybrid, two GatedDeltaNet layers to one of attention.
DONORS = {
    "llama": DonorRecipe(
        Schedule(BOTH, steps=900, learning_rate=6e-3, seed=0),
        {
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    "llama-prose": DonorRecipe(
        Schedule({"prose": 1.0}, steps=200, learning_rate=2e-3, seed=1), {}, base="llama"
    ),
    "llama-code": DonorRecipe(
        Schedule({"code": 1.0}, steps=200, learning_rate=2e-3, seed=2), {}, base="llama"
    ),
    "qwen": DonorRecipe(
        Schedule(BOTH, steps=700, learning_rate=6e-3, seed=3),
        {
            "model_type": "qwen3",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "tie_word_embeddings": True,
        },
    ),
    "gdn": DonorRecipe(
        Schedule(BOTH, steps=600, learning_rate=6e-3, seed=4),
        {
            "model_type": "olmo_hybrid",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 24,
            "linear_value_head_dim": 32,
        },
    ),
}


def train_donors(
    folder: Path,
    corpus: Corpus,
    *,
    say: Say,
    processes: int = 2,
    donors: Mapping[str, DonorRecipe] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Path]:
    """Train every donor that is not yet in `folder` as this code would train it.

    Args:
        say: tells of progress; with several processes, a function that can be pickled.
        processes: that train side by side, each on one thread; 1 trains in this process.
        donors: by name, a fine-tune after its base; default: the demo's.
        tokenizer: of all of them; default: one trained on the whole corpus.

    Returns:
        Folder of each donor, by name.
    """
    donors = DONORS if donors is None else donors
    keys = donor_keys(corpus, donors=donors, tokenizer=tokenizer)
    missing = [name for name in donors if not is_cached(folder / name, keys[name])]
    for name in missing:
        if (folder / name).exists() and not (folder / name / RECORD).exists():
            raise HybridizeError(
                f"{folder / name} is in the way, and is not a donor of the demo",
                fix="move it elsewhere",
            )
    for name in donors:
        if name not in missing:
            say(f"  {name}: trained before, {folder / name}")
    if missing:
        if tokenizer is None:
            say("  tokenizer: training, then encoding the text")
            tokenizer = training.train_tokenizer(corpus)
        tokens = {d: training.encode(tokenizer, corpus.train[d]).numpy() for d in DOMAINS}
        families = [
            _Family(folder, {name: (donors[name], keys[name]) for name in names}, tokenizer, tokens)
            for names in _families(missing, donors)
        ]
        _train_families(families, say=say, processes=processes)
    return {name: folder / name for name in donors}


def donor_keys(
    corpus: Corpus,
    *,
    donors: Mapping[str, DonorRecipe] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, str]:
    """Hash of all that decides what each donor becomes, by name; see `train_donors`."""
    common = _hash(
        corpus.sha256(),
        *([json.dumps(tokenizer.get_vocab(), sort_keys=True)] if tokenizer else []),
        *(Path(file).read_text() for file in (corpus_module.__file__, training.__file__, __file__)),
        *(importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")),
    )
    keys: dict[str, str] = {}
    for name, recipe in (DONORS if donors is None else donors).items():
        base = keys[recipe.base] if recipe.base else ""
        keys[name] = _hash(common, base, json.dumps(asdict(recipe), sort_keys=True))
    return keys


def is_cached(folder: Path, key: str) -> bool:
    """Whether `folder` holds the donor of this key. Folders appear whole, or not at all."""
    record = folder / RECORD
    return record.exists() and json.loads(record.read_text()).get("key") == key


def load_model(folder: Path) -> PreTrainedModel:
    """A donor or a built model, in evaluation mode."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    model.train(False)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a donor; all donors have the same one."""
    tokenizer: PreTrainedTokenizerBase = open_tokenizer(folder)
    return tokenizer


def quiet() -> None:
    """No warnings of kernels that are not installed, no bars for files of a few megabytes."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def make_model(recipe: DonorRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A donor before its training, with random weights."""
    shared = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.06,  # the usual 0.02 is made for wider models, and learns slowly
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(**{**shared, **recipe.config})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


@dataclass(frozen=True)
class _Family:
    """Donors that are trained one after the other: a model, and its fine-tunes."""

    folder: Path
    donors: dict[str, tuple[DonorRecipe, str]]  # and its key
    tokenizer: PreTrainedTokenizerBase
    tokens: dict[str, np.ndarray]  # of each domain, one row


def _families(names: Iterable[str], donors: Mapping[str, DonorRecipe]) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(donors[name].base or name, []).append(name)
    return list(families.values())


def _train_families(families: Iterable[_Family], *, say: Say, processes: int) -> None:
    if processes == 1:
        for family in families:
            _train_family(family, say)
        return
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        for done in [pool.submit(_train_family, family, say) for family in families]:
            done.result()


def _start_worker(parent: int) -> None:
    end_with_parent(parent)
    quiet()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent alone reports an interrupt
    # Two threads for matrices this small are hardly faster than one, and on a busy machine they
    # wait for each other. One thread also adds up in the same order everywhere.
    torch.set_num_threads(1)


def _train_family(family: _Family, say: Say) -> None:
    tokens = {domain: torch.from_numpy(row) for domain, row in family.tokens.items()}
    for name, (recipe, key) in family.donors.items():
        torch.manual_seed(recipe.schedule.seed)
        if recipe.base:
            model = load_model(family.folder / recipe.base)
        else:
            model = make_model(recipe, family.tokenizer)
        training.train(model, tokens, recipe.schedule, name=name, say=say)
        _publish(model, family.tokenizer, {"key": key, **asdict(recipe)}, family.folder / name)


def _publish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    target: Path,
) -> None:
    """Write a donor so that its folder appears whole; an earlier one of the demo's gives way."""
    staging, stale = (target.parent / f".{target.name}.{end}" for end in ("partial", "stale"))
    for left_over in (staging, stale):
        shutil.rmtree(left_over, ignore_errors=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if target.exists():
        target.rename(stale)
    staging.rename(target)
    shutil.rmtree(stale, ignore_errors=True)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

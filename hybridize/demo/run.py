"""`hybridize demo`: train small donors, then build, verify and measure every demo recipe."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridize import console
from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.assembly.fit_report import fit_table
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.plan.report import plan_table
from hybridize.console import say
from hybridize.cpt import command as cpt
from hybridize.demo.donors import load_model, load_tokenizer, quiet, train_donors
from hybridize.demo.training import Loss, encode, measure, measure_unigram
from hybridize.errors import CheckFailed
from hybridize.recipe.file import load_recipe
from hybridize.text.built_in import DOMAINS, Corpus, read_corpus, reference_texts

PROMPT = "Return the "
SAMPLE = 40  # tokens
THREADS = 1  # more would wait for each other: the matrices are tiny
LIBRARY = 8  # one file in so many of the donors' text is replayed
UNIGRAM = "unigram model"
WHY = (
    "But for that which ends in -cpt, no hybrid was trained after its assembly. Layers of one "
    "model and its\nfine-tunes understand each other as they are; between strangers stand maps "
    "that were fitted on text, and lose\nsome of what the donors knew."
)

Show = Callable[[RenderableType], None]


def run_demo(folder: Path, *, show: Show = console.show) -> dict[str, Any]:
    """Train the donors (or find them trained), and take every recipe from plan to loss.

    Args:
        folder: a checkout of the repository, or any folder. Recipes that are not there are
            written to `recipes/demo`; donors and models go to `out/demo`.
        show: prints a result.

    Returns:
        `losses`: model -> domain -> nats per token and per byte; `samples`: model -> text that
        follows the prompt; `models`: model -> folder; `seconds`.

    Raises:
        CheckFailed: a model that was built does not pass its verification.
    """
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    quiet()
    recipes = find_recipes(folder)
    out = folder / "out" / "demo"
    say(f"donors, trained on the text of Python's standard library, in {out / 'donors'}")
    corpus = read_corpus()
    models = train_donors(out / "donors", corpus, say=say)
    tokenizer = load_tokenizer(models["llama"])
    _write_texts(out / "text", corpus)
    for recipe in recipes:
        models[recipe.stem] = _build(recipe, out / recipe.stem, show)
        if load_recipe(recipe).recipe.cpt is not None:
            models[f"{recipe.stem}-cpt"] = _train(recipe, models[recipe.stem], show)
    losses = {UNIGRAM: _unigram_losses(tokenizer, corpus)}
    samples = {}
    for name, path in models.items():
        say(f"measuring {name}")
        model = load_model(path)
        losses[name] = {d: measure(model, tokenizer, corpus.held_out[d]) for d in DOMAINS}
        samples[name] = continue_text(model, tokenizer, PROMPT)
    _show_losses(losses, show)
    _show_samples(samples, show)
    seconds = time.monotonic() - started
    show(f"\nThe models are in {out}. The demo took {seconds:.0f} s.")
    return {
        "losses": {m: {d: asdict(loss) for d, loss in row.items()} for m, row in losses.items()},
        "prompt": PROMPT,
        "samples": samples,
        "models": {name: str(path) for name, path in models.items()},
        "seconds": round(seconds, 1),
    }


def find_recipes(folder: Path) -> list[Path]:
    """The demo's recipes under `folder`, written there first if they are not there."""
    target = folder / "recipes" / "demo"
    if not target.exists():
        with resources.as_file(resources.files("hybridize.recipes") / "demo") as packaged:
            shutil.copytree(packaged, target)
    return sorted(target.glob("*.yaml"))


@torch.no_grad()
def continue_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """What a model writes after `prompt`: greedy, at most SAMPLE tokens."""
    inputs = tokenizer(prompt, return_tensors="pt")
    generate: Any = model.generate
    tokens = generate(**inputs, max_new_tokens=SAMPLE, do_sample=False)
    return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]))


def _build(recipe: Path, out: Path, show: Show) -> Path:
    show(f"\n== {recipe.parent.parent.name}/{recipe.parent.name}/{recipe.name}\n")
    plan = make_plan(load_recipe(recipe))
    show(plan_table(plan))
    built = build(plan, out, force=True)
    show(built.summary())
    if built.fit:
        show(fit_table(built.fit))
    verified = verify(out)
    show(verified.table())
    if not verified.ok:
        raise CheckFailed(f"{out} does not pass its verification")
    return out


def _write_texts(folder: Path, corpus: Corpus) -> None:
    """The text that a recipe's training names: new, and a part of what the donors have read."""
    folder.mkdir(parents=True, exist_ok=True)
    library = [text for domain in DOMAINS for text in corpus.train[domain][::LIBRARY]]
    for name, texts in (("reference", reference_texts()), ("library", library)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _train(recipe: Path, built: Path, show: Show) -> Path:
    """Go on training a built model as its recipe says."""
    out = built.with_name(f"{built.name}-cpt")
    for old in (out, out.with_name(f"{out.name}.work")):
        shutil.rmtree(old, ignore_errors=True)
    trained = cpt.train(recipe, built=built, out=out, device="cpu", offline=True)
    assert trained is not None  # one process
    show("")
    show(cpt.trained_table(trained))
    verified = verify(out)
    show(verified.table())
    if not verified.ok:
        raise CheckFailed(f"{out} does not pass its verification")
    return out


def _unigram_losses(tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> dict[str, Loss]:
    texts = [text for domain in DOMAINS for text in corpus.train[domain]]
    tokens = encode(tokenizer, texts)
    return {d: measure_unigram(tokens, tokenizer, corpus.held_out[d]) for d in DOMAINS}


def _show_losses(losses: dict[str, dict[str, Loss]], show: Show) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out loss, nats")
    for domain in DOMAINS:
        table.add_column(f"{domain}, per token", justify="right")
        table.add_column("per byte", justify="right")
    for name, row in losses.items():
        numbers = [n for loss in row.values() for n in (loss.per_token, loss.per_byte)]
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    show("")
    show(table)
    show(f"\n{WHY}")


def _show_samples(samples: dict[str, str], show: Show) -> None:
    show(f"\nWhat follows {PROMPT!r}, greedily:\n")
    for name, text in samples.items():
        show(f"{name:20} {text!r}")

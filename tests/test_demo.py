"""The demo's parts at toy scale: the text, the tokenizer, the training, the cache, the recipes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.plan.report import plan_table
from hybridize.console import show
from hybridize.demo import donors as donors_module
from hybridize.demo import training
from hybridize.demo.donors import (
    DONORS,
    donor_keys,
    is_cached,
    load_model,
    make_model,
    train_donors,
)
from hybridize.demo.run import find_recipes, run_demo
from hybridize.demo.training import Schedule, encode, measure, measure_unigram, train_tokenizer
from hybridize.errors import HybridizeError
from hybridize.recipe.file import load_recipe
from hybridize.text.built_in import DOMAINS, Corpus, is_held_out, read_corpus, split_source

ROOT = Path(__file__).parents[1]

MODULE = '''"""What the module is for."""

import os


def twice(x):
    """Double a number.

    Twice.
    """
    return 2 * x  # a comment
'''


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As the demo trains: two threads wait for each other wherever the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The toy library: 60 modules, each with its own words."""
    root = tmp_path_factory.mktemp("library")
    for i in range(60):
        text = MODULE.replace("twice", f"twice_{i}").replace("number", f"number below {i}")
        (root / f"module_{i}.py").write_text(text)
    (root / "test").mkdir()
    (root / "test" / "left_out.py").write_text("secret = 1\n")
    return read_corpus(root)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of training a donor, on sequences that the toy library is long enough for."""
    short = {
        name: replace(recipe, schedule=replace(recipe.schedule, steps=2))
        for name, recipe in DONORS.items()
    }
    monkeypatch.setattr(donors_module, "DONORS", short)
    monkeypatch.setattr(training, "SEQUENCE", 16)


def test_source_is_parted_into_docstrings_and_the_rest() -> None:
    prose, code = split_source(MODULE)
    assert prose == "What the module is for.\n\nDouble a number.\n\nTwice.\n"
    assert code == "\nimport os\n\n\ndef twice(x):\n    return 2 * x  # a comment\n"


def test_held_out_files_are_in_no_training_text(corpus: Corpus) -> None:
    """A loss on text that a donor has seen would say nothing."""
    held_out = {f"twice_{i}(" for i in range(60) if is_held_out(f"module_{i}.py")}
    assert held_out
    assert len(corpus.train["code"]) + len(corpus.held_out["code"]) == 60
    assert not any(name in text for name in held_out for text in corpus.train["code"])
    assert not any("secret" in text for part in corpus.train.values() for text in part)


def test_the_library_of_this_python_is_enough_to_train_on() -> None:
    corpus = read_corpus()
    for domain in DOMAINS:
        assert sum(map(len, corpus.train[domain])) > 500_000
        assert sum(map(len, corpus.held_out[domain])) > 20_000


def test_the_corpus_is_the_same_on_every_reading(tmp_path: Path) -> None:
    """Donors are kept from run to run by its hash."""
    for i in range(30):
        (tmp_path / f"module_{i}.py").write_text(MODULE.replace("twice", f"twice_{i}"))
    before = read_corpus(tmp_path).sha256()
    assert read_corpus(tmp_path).sha256() == before
    (tmp_path / "module_3.py").write_text(MODULE)
    assert read_corpus(tmp_path).sha256() != before


def test_no_library_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HybridizeError, match="no source of the standard library under"):
        read_corpus(tmp_path)


def test_the_tokenizer_gives_back_every_text(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus)
    for text in ("def f(x):\n\treturn  x\n", "Ünïcödé → 漢字", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)


def test_loss_is_that_of_one_pass_over_the_text(corpus: Corpus, toy: None) -> None:
    """Windows must neither skip a token nor count one twice: here the text fits into one."""
    tokenizer = train_tokenizer(corpus)
    torch.manual_seed(0)
    model = make_model(DONORS["qwen"], tokenizer)
    texts = corpus.held_out["code"][:2]
    tokens = encode(tokenizer, texts)
    assert len(tokens) < training.WINDOW
    with torch.no_grad():
        whole = model(input_ids=tokens[None], labels=tokens[None]).loss.item()
    loss = measure(model, tokenizer, texts)
    assert loss.per_token == pytest.approx(whole, rel=1e-5)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert loss.per_byte == pytest.approx(whole * (len(tokens) - 1) / num_bytes, rel=1e-5)


def test_every_token_is_measured_once_whatever_the_windows(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that predicts the same everywhere has one loss, however the text is cut."""
    tokenizer = train_tokenizer(corpus)
    model = make_model(DONORS["llama"], tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    expected = torch.tensor(float(training.VOCABULARY)).log().item()
    for window in (7, 16, 256):
        monkeypatch.setattr(training, "WINDOW", window)
        loss = measure(model, tokenizer, corpus.held_out["prose"])
        assert loss.per_token == pytest.approx(expected, rel=1e-5)


def test_training_learns_more_than_how_often_each_token_stands(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus)
    tokens = {domain: encode(tokenizer, corpus.train[domain]) for domain in DOMAINS}
    torch.manual_seed(0)
    model = make_model(DONORS["llama"], tokenizer)
    schedule = Schedule({"code": 1.0}, steps=20, learning_rate=6e-3, seed=0)
    lines: list[str] = []
    training.train(model, tokens, schedule, name="toy", say=lines.append)
    unigram = measure_unigram(tokens["code"], tokenizer, corpus.held_out["code"])
    assert measure(model, tokenizer, corpus.held_out["code"]).per_token < unigram.per_token
    assert lines[-1].startswith("  toy: step 20/20, loss ")


def test_the_same_seed_gives_the_same_donors_and_none_is_trained_twice(
    corpus: Corpus, toy: None, tmp_path: Path
) -> None:
    first = train_donors(tmp_path / "a", corpus, say=_quiet, processes=1)
    second = train_donors(tmp_path / "b", corpus, say=_quiet, processes=1)
    assert list(first) == list(DONORS)
    for name in DONORS:
        weights = [(path[name] / "model.safetensors").read_bytes() for path in (first, second)]
        assert weights[0] == weights[1]
    lines: list[str] = []
    train_donors(tmp_path / "a", corpus, say=lines.append, processes=1)
    assert all("trained before" in line for line in lines)


def test_a_donor_is_trained_again_when_what_decides_it_changes(
    corpus: Corpus, toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = train_donors(tmp_path, corpus, say=_quiet, processes=1)
    keys = donor_keys(corpus)
    longer = replace(
        donors_module.DONORS["llama"], schedule=Schedule({"code": 1.0}, 3, 1e-3, seed=0)
    )
    monkeypatch.setitem(donors_module.DONORS, "llama", longer)
    changed = {name for name, key in donor_keys(corpus).items() if key != keys[name]}
    assert changed == {"llama", "llama-prose", "llama-code"}  # the fine-tunes start from it
    train_donors(tmp_path, corpus, say=_quiet, processes=1)
    record = json.loads((folders["llama"] / "training.json").read_text())
    assert record["schedule"]["steps"] == 3


def test_half_a_donor_is_never_taken_for_a_donor(
    corpus: Corpus, toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo may be killed at any moment; its next run has to end well."""

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            train_donors(tmp_path, corpus, say=_quiet, processes=1)
    assert not any(is_cached(tmp_path / name, key) for name, key in donor_keys(corpus).items())
    assert not (tmp_path / "llama").exists()
    train_donors(tmp_path, corpus, say=_quiet, processes=1)
    assert {path.name for path in tmp_path.iterdir()} == set(DONORS)


def test_a_folder_of_the_users_is_never_overwritten(
    corpus: Corpus, toy: None, tmp_path: Path
) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "thesis.txt").write_text("precious")
    with pytest.raises(HybridizeError, match="is not a donor of the demo"):
        train_donors(tmp_path, corpus, say=_quiet, processes=1)
    assert (tmp_path / "llama" / "thesis.txt").read_text() == "precious"


@pytest.fixture(scope="module")
def checkout(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the demo finds it, with its donors untrained."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes" / "demo", folder / "recipes" / "demo")
    tokenizer = train_tokenizer(corpus)
    for name, recipe in DONORS.items():
        torch.manual_seed(0)  # a fine-tune shares its base's basis
        model = make_model(recipe if not recipe.base else DONORS[recipe.base], tokenizer)
        model.save_pretrained(folder / "out" / "demo" / "donors" / name)
        tokenizer.save_pretrained(folder / "out" / "demo" / "donors" / name)
    return folder


def recipe_files() -> list[Path]:
    return sorted((ROOT / "recipes" / "demo").glob("*.yaml"))


TARGETS = {
    "cross-architecture": "hybrid",
    "merged-donor": "native",
    "same-architecture": "native",
    "swap": "hybrid",
}


def test_every_demo_recipe_is_listed_here() -> None:
    assert {file.stem for file in recipe_files()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_demo_recipes_plan_as_their_comments_say(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(checkout / "cache"))  # where merges are kept
    plan = make_plan(load_recipe(checkout / "recipes" / "demo" / f"{name}.yaml"))
    assert plan.target == TARGETS[name]
    assert plan.tokenizer is not None


def test_the_readme_shows_a_recipe_that_runs_and_the_plan_that_it_gives(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever copies the first screen must get what it shows."""
    name = "cross-architecture.yaml"
    readme = (ROOT / "README.md").read_text()
    recipe = (ROOT / "recipes" / "demo" / name).read_text()
    assert f"```yaml\n{recipe}```\n" in readme
    show(plan_table(make_plan(load_recipe(checkout / "recipes" / "demo" / name))))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "```text\n{}\n```\n".format("\n".join(lines)) in readme


def test_without_a_checkout_the_packaged_recipes_are_written_where_donors_will_be_found(
    tmp_path: Path,
) -> None:
    """A user of the wheel has no repository."""
    found = find_recipes(tmp_path)
    assert [file.name for file in found] == [file.name for file in recipe_files()]
    for file in found:
        recipe = load_recipe(file)
        for spec in recipe.recipe.donors.values():
            if spec.model:
                folder = recipe.path(spec.model).resolve()
                assert folder.parent == (tmp_path / "out" / "demo" / "donors").resolve()
                assert folder.name in DONORS
    assert (tmp_path / "recipes" / "demo" / "merges" / "slerp.yaml").exists()


def test_a_trained_donor_is_an_ordinary_model(corpus: Corpus, toy: None, tmp_path: Path) -> None:
    folders = train_donors(tmp_path, corpus, say=_quiet, processes=1)
    for folder in folders.values():
        model = load_model(folder)
        assert not model.training
        assert (folder / "generation_config.json").exists()
        assert (folder / "tokenizer.json").exists()
        assert not list(folder.glob("*.bin"))


@pytest.mark.slow
def test_the_whole_demo_runs_from_nothing_in_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With donors that are hardly trained; `make demo` runs it as it is."""
    short = {
        name: replace(recipe, schedule=replace(recipe.schedule, steps=2))
        for name, recipe in DONORS.items()
    }
    monkeypatch.setattr(donors_module, "DONORS", short)
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(tmp_path / "cache"))
    shown: list[object] = []
    result = run_demo(tmp_path, show=shown.append)
    assert set(result["models"]) == {*DONORS, *TARGETS, "cross-architecture-cpt"}
    assert set(result["samples"]) == set(result["models"])
    numbers = [
        n for row in result["losses"].values() for loss in row.values() for n in loss.values()
    ]
    assert all(0 < number < 20 for number in numbers)
    assert shown
    json.dumps(result)


def _quiet(line: str) -> None:
    del line

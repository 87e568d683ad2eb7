"""Text is packed in one pass, in little memory, once: then its rows are found by what made them."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridize.cpt.data import blocks, dividing, text
from hybridize.cpt.data import tokens as tokens_module
from hybridize.cpt.data.blocks import Blocks, Document, digest, pack
from hybridize.cpt.data.packing import NOTE, STAGING, STALE
from hybridize.cpt.data.text import Source, gather_sources
from hybridize.cpt.data.tokens import Tokens
from hybridize.errors import HybridizeError
from hybridize.recipe.file import RecipeFile, load_recipe
from hybridize.torch_model.windows import Reader
from tests.support.readers import VOCABULARY, code, prose, tokenizer
from tests.support.stacks import write_recipe
from tests.support.text_files import write_lines, write_parquet

LENGTH = 32
PLENTY = 1_000_000  # tokens: more than any text here has


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rows are kept in this test; batches and chunks are so small that there are several."""
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dividing, "BATCH", 1 << 10)
    monkeypatch.setattr(blocks, "CHUNK", 10 * LENGTH)
    return tmp_path / "cache" / "text"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    tokenizer([prose()]).save_pretrained(folder)
    return Reader("tiny", folder, rows=VOCABULARY, start_token="<|end|>")


def documents(number: int, *, seed: int = 0) -> list[str]:
    """Parts of a text, of some hundred characters each."""
    chance, whole = random.Random(seed), prose() + code()
    starts = [chance.randrange(len(whole) - 400) for _ in range(number)]
    return [whole[start : start + chance.randint(100, 400)] for start in starts]


def recipe_of(folder: Path, data: Any, **cpt: Any) -> RecipeFile:
    data = data if isinstance(data, dict) and "new" in data else {"new": [data]}
    recipe = {
        "donors": {"a": {"model": "a"}},
        "slots": [{"from": "a", "layers": "0-1"}],
        "cpt": {"data": data, "length": LENGTH, **cpt},
    }
    return load_recipe(write_recipe(folder / "recipe.yaml", recipe))


def gather(
    folder: Path,
    reader: Reader,
    data: Any,
    *,
    packed: bool = True,
    tokens: int = PLENTY,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **cpt: Any,
) -> list[Source]:
    recipe = recipe_of(folder, data, **cpt)
    return gather_sources(
        recipe, reader, packed=packed, tokens=tokens, offline=True, progress=progress
    )


def write_texts(path: Path, texts: Sequence[str]) -> str:
    return write_lines(path, *({"text": some} for some in texts)).name


def in_memory(reader: Reader, texts: Sequence[str], *, packed: bool = True) -> Blocks:
    """Rows of whole documents, tokenized one by one by the call that fits use."""
    end = reader.tokenizer.eos_token_id
    ids = [[*reader.start, *reader.tokens(some)[0], end] for some in texts]
    return pack([Document(some) for some in ids], LENGTH, packed=packed)


def assert_rows(found: Blocks, wanted: Blocks) -> None:
    assert np.array_equal(found.tokens, wanted.tokens)
    assert np.array_equal(found.labels, wanted.labels)
    assert np.array_equal(found.positions, wanted.positions)


def said(call: Callable[[], object]) -> str:
    with pytest.raises(HybridizeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_are_those_of_packing_in_memory(tmp_path: Path, reader: Reader, packed: bool) -> None:
    """Whoever trains on text of any size, on the rows that small text would have."""
    texts = documents(100)
    (source,) = gather(tmp_path, reader, write_texts(tmp_path / "a.jsonl", texts), packed=packed)
    train = [some for i, some in enumerate(texts) if i % 20 != 19]
    assert_rows(source.train, in_memory(reader, train, packed=packed))
    assert_rows(source.held_out, in_memory(reader, texts[19::20], packed=packed))
    assert isinstance(source.train.tokens, np.memmap)
    assert source.noted["documents"] == 100
    assert source.noted["rows"] == len(source.train)
    assert source.noted["tokens"] == source.train.num_targets
    assert source.noted["rows_blake3"] == digest(source.train)
    assert source.noted["held_out"]["rows_blake3"] == digest(source.held_out)


def test_the_second_time_nothing_is_read(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tries another learning rate does not wait for the text again."""
    name = write_texts(tmp_path / "a.jsonl", documents(40))
    first = gather(tmp_path, reader, name)[0]
    monkeypatch.setattr(text, "read_text", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(Tokens, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    told: list[tuple[int, int]] = []
    again = gather(tmp_path, reader, name, progress=lambda *some: told.append(some))[0]
    assert_rows(again.train, first.train)
    assert_rows(again.held_out, first.held_out)
    assert again.noted == first.noted
    assert told == [(PLENTY, PLENTY)]


def test_whatever_decides_the_rows_makes_others(
    tmp_path: Path, reader: Reader, cache: Path
) -> None:
    """Whoever changes anything gets the rows of what the recipe says now."""
    texts = documents(40)
    write_lines(tmp_path / "a.jsonl", *({"text": some, "other": some} for some in texts))
    write_texts(tmp_path / "b.jsonl", texts[1:])
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "a.txt")
    folder = tmp_path / "reader"
    tokenizer([prose()], vocabulary=VOCABULARY - 1).save_pretrained(folder)
    another = Reader("another", folder, rows=VOCABULARY)
    folder = Path(reader.tokenizer.name_or_path)
    begins = Reader("begins", folder, rows=VOCABULARY, start_token="none")
    a = "a.jsonl"
    runs: list[Callable[[], object]] = [
        lambda: gather(tmp_path, reader, a),
        lambda: gather(tmp_path, reader, a, length=LENGTH + 1),
        lambda: gather(tmp_path, reader, a, packed=False),
        lambda: gather(tmp_path, reader, a, tokens=100),
        lambda: gather(tmp_path, another, a),
        lambda: gather(tmp_path, begins, a),
        lambda: gather(tmp_path, reader, "b.jsonl"),
        lambda: gather(tmp_path, reader, "a.txt"),
        lambda: gather(tmp_path, reader, {"files": a, "field": "other"}),
        lambda: gather(tmp_path, reader, {"files": [a, "b.jsonl"]}),
        lambda: gather(tmp_path, reader, {"files": ["b.jsonl", a]}),
    ]
    for number, run in enumerate(runs, 1):
        run()
        assert len(list(cache.iterdir())) == number
    runs[0]()
    gather(tmp_path, reader, {"files": a, "name": "known"}, learning_rate=0.1, batch=2)
    assert len(list(cache.iterdir())) == len(runs)


def test_a_changed_file_is_noticed(tmp_path: Path, reader: Reader) -> None:
    """Whoever mends the text is not given rows of the old one, wherever its times are set to."""
    file = tmp_path / "a.jsonl"
    texts = documents(40)
    before = gather(tmp_path, reader, write_texts(file, texts))[0]
    state = file.stat()
    file.write_bytes(file.read_bytes().replace(b"a", b"o"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = gather(tmp_path, reader, file.name)[0]
    assert after.noted["blake3"] != before.noted["blake3"]
    assert_rows(after.held_out, in_memory(reader, [s.replace("a", "o") for s in texts[19::20]]))


def test_text_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, reader: Reader, cache: Path
) -> None:
    """A program that is still writing: what was read has no hash to be found by."""
    file = tmp_path / "a.jsonl"
    name = write_texts(file, documents(400))

    def grow(done: int, total: int) -> None:
        with file.open("a") as stream:
            stream.write("\n")

    assert "recipe.yaml:10:7: cpt.data.new[0]: the text of 'a' was changed while it was read" in (
        said(lambda: gather(tmp_path, reader, name, progress=grow))
    )
    assert not list(cache.iterdir())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no note": lambda folder: (folder / NOTE).unlink(),
    "half a note": lambda folder: cut(folder / NOTE),
    "another note": lambda folder: (folder / NOTE).write_text("[]"),
    "another format": lambda folder: (folder / NOTE).write_text(
        (folder / NOTE).read_text().replace('"format": ', '"format": 9')
    ),
    "no rows": lambda folder: shutil.rmtree(folder / "train"),
    "no labels": lambda folder: (folder / "train/labels.npy").unlink(),
    "half of the rows": lambda folder: cut(folder / "held-out/tokens.npy"),
    "empty rows": lambda folder: (folder / "train/tokens.npy").write_bytes(b""),
    "more rows": lambda folder: (folder / "train/tokens.npy").open("ab").write(b"1234"),
    "other rows": lambda folder: np.save(folder / "train/positions.npy", np.zeros((3, LENGTH))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_packed_anew(
    tmp_path: Path, reader: Reader, cache: Path, damage: str
) -> None:
    """After a full disk or a crash, nobody trains on half of the text."""
    name = write_texts(tmp_path / "a.jsonl", documents(40))
    before = gather(tmp_path, reader, name)[0].noted
    (folder,) = cache.iterdir()
    DAMAGES[damage](folder)
    source = gather(tmp_path, reader, name)[0]
    assert source.noted == before
    assert digest(source.train) == before["rows_blake3"]
    assert list(cache.iterdir()) == [folder]
    assert gather(tmp_path, reader, name)[0].noted == before


def words_reader(folder: Path, texts: Sequence[str]) -> Reader:
    """A tokenizer that is fast enough for much text: whole words."""
    words = sorted({word for some in texts for word in some.split()})
    numbers = {word: i for i, word in enumerate(["[UNK]", "<end>", *words])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(folder)
    return Reader("words", folder, rows=len(numbers))


def memory() -> int:
    """Bytes that this process holds, files that are mapped aside."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s*(\d+)", status)
    assert found is not None
    return int(found[1]) << 10


def test_memory_does_not_grow_with_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has more text than memory."""
    monkeypatch.setattr(dividing, "BATCH", 1 << 17)
    monkeypatch.setattr(blocks, "CHUNK", 1 << 16)
    texts = documents(2000)
    reader = words_reader(tmp_path / "reader", texts)
    line = "".join(json.dumps({"text": some}) + "\n" for some in texts)
    file = tmp_path / "a.jsonl"
    with file.open("w") as stream:
        for _ in range(30_000_000 // len(line)):
            stream.write(line)
    held: list[int] = []
    before = memory()
    (source,) = gather(
        tmp_path, reader, file.name, tokens=10**9, progress=lambda *_: held.append(memory())
    )
    assert len(held) > 100
    assert source.train.tokens.nbytes * 3 > 30_000_000
    assert max(held) - before < file.stat().st_size / 3


@pytest.mark.parametrize("number", [1, 19])
def test_of_few_documents_the_ends_are_held_out(
    tmp_path: Path, reader: Reader, number: int
) -> None:
    """Whoever trains on a book: without an end held out, nothing could be measured."""
    texts = documents(number)
    (source,) = gather(tmp_path, reader, write_texts(tmp_path / "a.jsonl", texts))
    cuts = [len(some) - len(some) // 20 for some in texts]
    assert_rows(source.train, in_memory(reader, [s[:c] for s, c in zip(texts, cuts, strict=True)]))
    assert_rows(
        source.held_out, in_memory(reader, [s[c:] for s, c in zip(texts, cuts, strict=True)])
    )
    assert source.noted["documents"] == number


def test_of_twenty_documents_the_last_is_held_out(tmp_path: Path, reader: Reader) -> None:
    """A document that is in no part trained on tells more than the end of one that is."""
    texts = documents(20)
    (source,) = gather(tmp_path, reader, write_texts(tmp_path / "a.jsonl", texts))
    assert_rows(source.train, in_memory(reader, texts[:19]))
    assert_rows(source.held_out, in_memory(reader, texts[19:]))


def test_the_first_documents_held_out_are_kept(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two losses are compared often: they must not cost more than the training."""
    monkeypatch.setattr(dividing, "MOST_HELD_OUT", 333)
    texts = documents(200)
    (source,) = gather(tmp_path, reader, write_texts(tmp_path / "a.jsonl", texts))
    whole = in_memory(reader, texts[19::20])
    assert source.held_out.num_targets == 333
    assert len(whole) > len(source.held_out) > 1
    assert np.array_equal(source.held_out.tokens[:-1], whole.tokens[: len(source.held_out) - 1])
    assert_rows(source.train, in_memory(reader, [s for i, s in enumerate(texts) if i % 20 != 19]))


def test_no_more_is_read_than_is_trained_on(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a terabyte and trains on a million tokens of it."""
    texts = documents(1000)
    read = 0

    def counted(*given: Any, **options: Any) -> Iterator[str]:
        nonlocal read
        for some in texts:
            read += 1
            yield some

    monkeypatch.setattr(text, "read_text", counted)
    name = write_texts(tmp_path / "a.jsonl", texts)
    (source,) = gather(tmp_path, reader, name, tokens=10_000)
    number = source.noted["documents"]
    assert number <= read < number + 20
    train = [some for i, some in enumerate(texts[:number]) if i % 20 != 19]
    assert_rows(source.train, in_memory(reader, train))
    assert in_memory(reader, train[:-1]).num_targets < 10_000 <= source.noted["tokens"]
    assert source.held_out.num_targets > 0


def test_little_training_still_has_text_held_out(tmp_path: Path, reader: Reader) -> None:
    """Old text that is not replayed is measured; so is a try of a few steps."""
    texts = documents(100)
    a, b = (write_texts(tmp_path / name, texts) for name in ("a.jsonl", "b.jsonl"))
    new, old = gather(tmp_path, reader, {"new": [a], "old": [b], "replay": 0.0}, tokens=100)
    assert (new.share, old.share) == (1.0, 0.0)
    for source, number in ((new, 1), (old, 1)):
        assert_rows(source.train, in_memory(reader, texts[:number]))
        assert_rows(source.held_out, in_memory(reader, texts[19:20]))
        assert source.noted["documents"] == number + 1


def test_domains_get_their_shares(tmp_path: Path, reader: Reader) -> None:
    """Three domains, one of them replayed; each is read as far as its share asks."""
    for seed, name in enumerate(("a", "b", "c")):
        write_texts(tmp_path / f"{name}.jsonl", documents(300, seed=seed))
    data = {
        "new": [{"files": "a.jsonl", "weight": 3}, {"files": "b.jsonl"}],
        "old": ["c.jsonl"],
        "replay": 0.2,
    }
    told: list[tuple[int, int]] = []
    found = gather(tmp_path, reader, data, tokens=20_000, progress=lambda *some: told.append(some))
    assert [(s.name, s.kind) for s in found] == [("a", "new"), ("b", "new"), ("c", "old")]
    assert [s.share for s in found] == pytest.approx([0.6, 0.2, 0.2])
    for source in found:
        wanted = 20_000 * source.share
        assert wanted <= source.train.num_targets < wanted + 400
    assert told == sorted(told)
    assert told[-1] == (20_000, 20_000)
    assert len(told) > 10


def test_any_kind_of_file_makes_the_same_rows(tmp_path: Path, reader: Reader) -> None:
    """Parquet, lines of JSON, packed or not, or a folder that is a data set."""
    texts = documents(50)
    write_texts(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    write_parquet(tmp_path / "c.parquet", text=texts)
    (tmp_path / "set").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "set/train.jsonl")
    entries = ["a.jsonl", "b.jsonl.gz", "c.parquet", {"dataset": "set"}]
    sources = [gather(tmp_path, reader, entry)[0] for entry in entries]
    assert len({source.noted["rows_blake3"] for source in sources}) == 1
    assert len({source.noted["blake3"] for source in sources}) == 1


class TestDatasets:
    """A data set is known by its files or its commit."""

    def test_a_changed_folder_is_noticed(self, tmp_path: Path, reader: Reader) -> None:
        for number in (40, 60):
            (tmp_path / "set").mkdir(exist_ok=True)
            write_texts(tmp_path / "set/train.jsonl", documents(number))
            (source,) = gather(tmp_path, reader, {"dataset": "set"})
            assert source.noted["documents"] == number

    def test_a_commit_is_found_without_a_network(
        self, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever trains where there is no network, on text that was packed where there is."""
        entry = {"dataset": "org/set", "revision": "0123456789" * 4}
        with monkeypatch.context() as online:
            online.setattr(text, "read_text", lambda *_, **__: iter_of(documents(40)))
            (first,) = gather(tmp_path, reader, entry)
        (again,) = gather(tmp_path, reader, entry)
        assert again.noted == first.noted
        other = {**entry, "revision": "1" * 40}
        assert "data set 'org/set' is not on this machine (offline: the hub was not asked)" in (
            said(lambda: gather(tmp_path, reader, other))
        )

    def test_a_branch_is_asked_for_its_commit(
        self, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        """It may have moved since the text was packed."""
        from datasets import config, load_dataset

        (tmp_path / "set").mkdir()
        write_texts(tmp_path / "set/train.jsonl", documents(40))
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        assert "is not on this machine (offline: the hub was not asked)" in (
            said(lambda: gather(tmp_path, reader, {"dataset": "org/set"}))
        )
        assert not cache.exists()
        load_dataset(str(tmp_path / "set"))
        (tmp_path / "datasets/set").rename(tmp_path / "datasets/org___set")  # as from the hub
        (first,) = gather(tmp_path, reader, {"dataset": "org/set"})
        monkeypatch.setattr(text, "read_text", lambda *_, **__: pytest.fail("read again"))
        assert gather(tmp_path, reader, {"dataset": "org/set"})[0].noted == first.noted


def iter_of(texts: Sequence[str]) -> Iterator[str]:
    yield from texts


class TestErrors:
    """They are clear, and leave nothing behind."""

    def test_all_missing_files_are_named_at_once(self, tmp_path: Path, reader: Reader) -> None:
        (tmp_path / "empty.txt").touch()
        recipe = recipe_of(tmp_path, {"new": ["no.txt", "empty.txt"], "old": ["none.txt"]})
        found = said(lambda: text.check_text(recipe)).replace(f"{tmp_path}/", "")
        assert re.findall(r"no such file: \S+|\S+ is empty", found) == [
            "no such file: no.txt",
            "empty.txt is empty",
            "no such file: none.txt",
        ]

    def test_too_little_text(self, tmp_path: Path, reader: Reader, cache: Path) -> None:
        (tmp_path / "a.txt").write_text("short")
        (tmp_path / "b.txt").write_text("brief")
        found = said(lambda: gather(tmp_path, reader, {"new": ["a.txt"], "old": ["b.txt"]}))
        assert found.replace(f"{tmp_path}/", "") == (
            "recipe.yaml:10:7: cpt.data.new[0]: the text of 'a' is too short: it makes 1 rows of "
            "32 tokens to train on, and 0 held out\n"
            "recipe.yaml:12:7: cpt.data.old[0]: the text of 'b' is too short: it makes 1 rows of "
            "32 tokens to train on, and 0 held out\n  fix: name more text"
        )
        assert not list(cache.iterdir())

    def test_a_line_that_is_broken(self, tmp_path: Path, reader: Reader, cache: Path) -> None:
        write_texts(tmp_path / "a.jsonl", documents(200))
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write("{\n")
        found = said(lambda: gather(tmp_path, reader, "a.jsonl"))
        assert "a.jsonl:201: is not a JSON object" in found
        assert not list(cache.iterdir())

    def test_tokens_that_the_model_does_not_have(
        self, tmp_path: Path, reader: Reader, cache: Path
    ) -> None:
        name = write_texts(tmp_path / "a.jsonl", documents(200))
        few = Reader("few", Path(reader.tokenizer.name_or_path), rows=200)
        found = said(lambda: gather(tmp_path, few, name))
        assert re.search(r"the tokenizer gives token 2\d\d, the embedding has 200 rows", found)
        assert not list(cache.iterdir())

    def test_a_break_leaves_nothing(self, tmp_path: Path, reader: Reader, cache: Path) -> None:
        name = write_texts(tmp_path / "a.jsonl", documents(200))

        def interrupt(done: int, total: int) -> None:
            assert list(cache.glob(f"*{STAGING}/train/tokens.npy"))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            gather(tmp_path, reader, name, progress=interrupt)
        assert not list(cache.iterdir())

    def test_a_cache_that_cannot_be_written(
        self, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a cluster, home is often read-only."""
        monkeypatch.setenv("HYBRIDIZE_CACHE", "/proc/nowhere")
        name = write_texts(tmp_path / "a.jsonl", documents(40))
        found = said(lambda: gather(tmp_path, reader, name))
        assert "the cache of packed text: No such file or directory" in found
        assert "fix: set HYBRIDIZE_CACHE to a folder that can be written" in found

    def test_a_file_that_may_not_be_read(
        self, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = write_texts(tmp_path / "a.jsonl", documents(40))

        def refuse(path: Path) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(text, "file_hash", refuse)  # root may read everything
        assert "a.jsonl: cannot be read: Permission denied" in (
            said(lambda: gather(tmp_path, reader, name))
        )


def test_two_who_pack_the_same_do_not_harm_each_other(
    tmp_path: Path, reader: Reader, cache: Path
) -> None:
    """Several processes of one training begin at the same time."""
    name = write_texts(tmp_path / "a.jsonl", documents(200))
    inner: list[Source] = []

    def other(done: int, total: int) -> None:
        if not inner:
            inner.extend(gather(tmp_path, reader, name))

    (outer,) = gather(tmp_path, reader, name, progress=other)
    assert_rows(outer.train, inner[0].train)
    assert outer.noted == inner[0].noted
    assert len(list(cache.iterdir())) == 1
    assert str(outer.train.tokens.filename).startswith(str(next(cache.iterdir())))


def test_what_a_killed_process_has_left_is_removed_after_a_day(
    tmp_path: Path, reader: Reader, cache: Path
) -> None:
    """And nothing of one that still writes: its folder is old, its files are not."""
    now = time.time()
    old, alive = (cache / f".{name}{STAGING}" for name in ("old", "alive"))
    for folder in (old, alive):
        (folder / "train").mkdir(parents=True)
        (folder / "train/tokens.npy").touch()
        for path in (folder / "train/tokens.npy", folder / "train", folder):
            os.utime(path, (now - STALE - 60, now - STALE - 60))
    (alive / "train/tokens.npy").write_bytes(b"more")
    gather(tmp_path, reader, write_texts(tmp_path / "a.jsonl", documents(40)))
    assert not old.exists()
    assert alive.exists()


class TestTokens:
    """Many documents at a time have the tokens that each has alone."""

    def test_they_are_those_of_the_tokenizer(self, tmp_path: Path, reader: Reader) -> None:
        """Even if it was saved with a limit and padding, and where text has its special words."""
        folder = tmp_path / "reader"
        made = tokenizer([prose()])
        made.backend_tokenizer.enable_truncation(5)
        made.backend_tokenizer.enable_padding(length=50)
        made.save_pretrained(folder)
        saved = Reader("saved", folder, rows=VOCABULARY, start_token="<|end|>")
        texts = [*documents(5), "<|end|> of <|end|>", " ", "ä\u2028\n"]
        wanted = [[0, *reader.tokens(some)[0], 0] for some in texts]
        before = Tokens(saved)
        assert [list(some.tokens) for some in before.of(texts)] == wanted
        saved.tokens("a call")
        assert Tokens(saved).blake3 == before.blake3

    @pytest.mark.parametrize("gap", ["\n", " "])
    def test_a_long_document_is_tokenized_in_pieces(
        self, reader: Reader, monkeypatch: pytest.MonkeyPatch, gap: str
    ) -> None:
        """Whoever has one file of a gigabyte; words are not cut."""
        monkeypatch.setattr(tokens_module, "PIECE", 100)
        monkeypatch.setattr(tokens_module, "AT_ONCE", 3)
        whole = gap.join((prose() + code()).split())
        calls = []
        inside = Tokens._tokenize

        def watched(self: Tokens, texts: Sequence[str]) -> Any:
            calls.append(max(map(len, texts)))
            return inside(self, texts)

        monkeypatch.setattr(Tokens, "_tokenize", watched)
        found = Tokens(reader).of_long(whole, PLENTY)
        assert len(calls) > 20
        assert max(calls) <= 100
        assert list(found.tokens) == list(Tokens(reader).of([whole])[0].tokens)

    def test_text_without_a_gap_is_cut_anywhere(
        self, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens_module, "PIECE", 100)
        for some in ("a" * 1050, "\n" * 1050, " a" * 10 + "b" * 1000):
            pieces = list(tokens_module._pieces(some))
            assert "".join(pieces) == some
            assert all(0 < len(piece) <= 100 for piece in pieces)

    def test_a_long_document_is_read_as_far_as_it_is_trained_on(
        self, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module, name, value in (
            (tokens_module, "PIECE", 100), (tokens_module, "AT_ONCE", 3), (dividing, "LONG", 2000),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, value)
        whole = (prose() + code())[:50_000]
        (tmp_path / "a.txt").write_text(whole)
        (source,) = gather(tmp_path, reader, "a.txt", tokens=1000)
        assert 1000 <= source.noted["tokens"] < 1000 + 3 * 100
        everything = in_memory(reader, [whole])
        rows = len(source.train) - 1
        assert np.array_equal(source.train.tokens[:rows], everything.tokens[:rows])
        assert source.held_out.num_targets > 0

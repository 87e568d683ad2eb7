"""Calibration text in stretches, and positions of two tokenizers that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from hybridize.errors import HybridizeError
from hybridize.torch_model import windows
from hybridize.torch_model.windows import DomainText, Encoded, Reader, align, cut
from tests.support.readers import code, prose, tokenizer


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Reader]:
    """Two tokenizers of other sizes, trained on other text."""
    found = []
    for name, text, size in (("one", prose(), 400), ("two", code(), 300)):
        folder = tmp_path_factory.mktemp(name)
        tokenizer([text], vocabulary=size).save_pretrained(folder)
        found.append(Reader(name, folder, rows=size, start_token="<|end|>"))
    return found[0], found[1]


TEXTS = [prose()[:300], code()[:300], "naïve café, 漢字 and 🙂🙂 emoji\n", "x"]


def save_adding(folder: Path, template: str) -> Path:
    """A tokenizer that puts special tokens around a text: `<|end|> $A`, say."""
    made = tokenizer([prose()])
    special = [(token, made.convert_tokens_to_ids(token)) for token in ("<|end|>", "Ġ")]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=special
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("template", "asked", "start"),
    [
        ("$A", "auto", "none"),
        ("<|end|> $A", "auto", "<|end|>"),
        ("$A <|end|>", "auto", "none"),
        ("Ġ <|end|> $A <|end|>", "auto", "Ġ <|end|>"),
        ("<|end|> $A", "none", "none"),
        ("$A", "Ġ", "Ġ"),
    ],
)
def test_text_follows_what_the_tokenizer_puts_there_or_the_recipe_says(
    tmp_path: Path, template: str, asked: str, start: str
) -> None:
    """A model that never saw a start token should not be given one."""
    reader = Reader("a", save_adding(tmp_path, template), rows=288, start_token=asked)
    assert reader.start_words == start
    plain = reader.tokens("words")[0]
    assert reader.encode(["words"]).tokens[0].tolist() == [*reader.start, *plain]


@pytest.mark.parametrize(
    ("asked", "found"), [("bos", "no BOS token"), ("<nobody>", "no token '<nobody>'")]
)
def test_a_start_token_that_is_not_there_is_an_error(
    tmp_path: Path, asked: str, found: str
) -> None:
    with pytest.raises(HybridizeError, match=found):
        Reader("a", save_adding(tmp_path, "$A"), rows=288, start_token=asked)


def test_losses_with_and_without_a_start_token_are_of_the_same_text(tmp_path: Path) -> None:
    """Else a donor that reads one would be charged for the first word of every stretch."""
    save_adding(tmp_path, "$A")
    with_, without = (
        Reader("a", tmp_path, rows=288, start_token=start).encode(TEXTS)
        for start in ("<|end|>", "none")
    )
    assert with_.num_tokens == without.num_tokens == sum(len(row) - 1 for row in without.ends)
    first = without.ends[2][0]
    assert TEXTS[2][:first] == "n"
    assert with_.num_bytes(TEXTS) == without.num_bytes(TEXTS)


def test_a_first_position_belongs_to_first_positions_alone(tmp_path: Path) -> None:
    """Most models have a huge state there, which says nothing about any other position."""
    save_adding(tmp_path, "$A")
    with_, without = (
        Reader("a", tmp_path, rows=288, start_token=start).encode(TEXTS[:1])
        for start in ("<|end|>", "none")
    )
    (_, here), (_, there) = align(with_, without)
    assert here.tolist() == [column + 1 for column in there.tolist()]
    assert there.tolist() == list(range(1, without.tokens.shape[1]))


def spelt(reader: Reader, batch: Encoded, row: int, column: int) -> str:
    return str(reader.tokenizer.decode(batch.tokens[row, : column + 1], skip_special_tokens=True))


def test_aligned_positions_have_seen_the_same_text(readers: tuple[Reader, Reader]) -> None:
    one, two = (reader.encode(TEXTS) for reader in readers)
    (rows, here), (rows_there, there) = align(one, two)
    assert rows.tolist() == rows_there.tolist()
    for row, i, j in zip(rows.tolist(), here.tolist(), there.tolist(), strict=True):
        assert spelt(readers[0], one, row, i) == spelt(readers[1], two, row, j)
    share = len(rows) / sum(map(len, one.ends))
    assert 0.4 < share < 1


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_whatever_the_text_is(readers: tuple[Reader, Reader], text: str) -> None:
    """The first position (before the text) and the last one always belong together."""
    one, two = (reader.encode([text]) for reader in readers)
    (_, here), (_, there) = align(one, two)
    assert (here[0], there[0]) == (0, 0)
    assert (here[-1], there[-1]) == (one.tokens.shape[1] - 1, two.tokens.shape[1] - 1)
    assert (here.diff() > 0).all()
    assert (there.diff() > 0).all()


def test_one_tokenizer_is_aligned_with_itself(readers: tuple[Reader, Reader]) -> None:
    batch = readers[0].encode(TEXTS[:2])
    (_, here), (_, there) = align(batch, batch)
    assert here.tolist() == there.tolist()
    assert len(here) == batch.num_tokens + 4  # of each row, the start and the first of text


def test_padding_is_masked(readers: tuple[Reader, Reader]) -> None:
    batch = readers[0].encode(TEXTS)
    assert batch.mask is not None
    assert [int(row.sum()) for row in batch.mask] == [len(row) for row in batch.ends]
    assert readers[0].encode(TEXTS[:1]).mask is None


def test_a_tokenizer_larger_than_its_embedding_is_an_error(tmp_path: Path) -> None:
    tokenizer([prose()], vocabulary=400).save_pretrained(tmp_path)
    with pytest.raises(HybridizeError, match="the tokenizer of donor 'a' gives token 3"):
        Reader("a", tmp_path, rows=300).encode([prose()])


def documents(folder: Path, *texts: tuple[int, str]) -> Path:
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps({"domain": d, "text": t}) + "\n" for d, t in texts))
    return file


def test_stretches_are_parts_of_the_text(tmp_path: Path, readers: tuple[Reader, Reader]) -> None:
    """No part is taken twice, none after the budget is full, and nothing is left out before."""
    texts = {"prose": [prose()], "code": [code(), prose()]}
    file = documents(tmp_path, (0, prose()), (1, code()), (1, prose()))
    whole = len(readers[0].tokens(prose())[0])
    domains = [DomainText("prose", whole - 70, "here"), DomainText("code", 900, "there")]
    parts = cut(file, domains, readers[0], length=64, held_out=0.2, seed=3)
    for part in parts:
        chosen = [*part.fit, *part.held_out]
        places = {next(t.index(c) for t in texts[part.domain.name] if c in t) for c in chosen}
        assert len(places) == len(chosen) == len(set(chosen))
        counts = [len(readers[0].tokens(text)[0]) for text in chosen]
        assert max(counts) <= 66  # a stretch may be split otherwise than the whole was
        assert part.domain.tokens <= sum(counts) + 3
        assert sum(counts) <= part.domain.tokens + 66
        held_out = sum(counts[len(part.fit) :])
        assert 0.15 < held_out / sum(counts) < 0.6
    again = cut(file, domains, readers[0], length=64, held_out=0.2, seed=3)
    assert again == parts
    assert cut(file, domains, readers[0], length=64, held_out=0.2, seed=4) != parts


def test_all_documents_have_a_part_and_whole_ones_are_held_out(
    tmp_path: Path, readers: tuple[Reader, Reader]
) -> None:
    """A few long documents would say little about others, and be judged by themselves."""
    texts = [prose()[i * 700 : (i + 1) * 700] for i in range(10)]
    file = documents(tmp_path, *((0, text) for text in texts))
    (part,) = cut(file, [DomainText("prose", 1200, "here")], readers[0], length=32, held_out=0.2)

    def sources(stretches: tuple[str, ...]) -> set[int]:
        return {next(i for i, t in enumerate(texts) if s in t) for s in stretches}

    assert sources(part.fit) | sources(part.held_out) == set(range(10))
    assert not sources(part.fit) & sources(part.held_out)


def test_too_little_text_is_an_error_for_each_domain(
    tmp_path: Path, readers: tuple[Reader, Reader]
) -> None:
    file = documents(tmp_path, (0, "some words"), (1, prose()))
    domains = [
        DomainText("a", 100, "recipe:3:5"),
        DomainText("b", 100_000, "recipe:4:5"),
        DomainText("c", 9, "recipe:5:5"),
    ]
    with pytest.raises(HybridizeError) as caught:
        cut(file, domains, readers[0], length=64, held_out=0.2)
    few, total = (len(readers[0].tokens(text)[0]) for text in ("some words", prose()))
    assert [(f.place, f.found) for f in caught.value.findings] == [
        (
            "recipe:3:5",
            f"the text of 'a' is shorter than needed: {few} tokens for 100",
        ),
        ("recipe:4:5", f"the text of 'b' is shorter than needed: {total} tokens for 100000"),
        ("recipe:5:5", "the text of 'c' is shorter than needed: 0 tokens for 9"),
    ]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab \n", max_size=60), st.integers(3, 9))
def test_long_documents_come_in_pieces_that_are_the_document(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "PIECE", size)
        pieces = list(windows._pieces(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)
    for piece in pieces[:-1]:
        assert piece[-1] in " \n" or not set(piece) & {" ", "\n"} or piece.rfind(" ") <= 0

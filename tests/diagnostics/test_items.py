"""Probes that come with hybridize are right and fair; a file of the user's is read or refused."""

from __future__ import annotations

import ast
import importlib
import io
import json
import keyword
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybridize.diagnostics.probes._words import NOUNS, PEOPLE
from hybridize.diagnostics.subject.items import Item, brought, find_items, read_items
from hybridize.errors import HybridizeError
from hybridize.plugins import plugin_names

NAMES = plugin_names("probes")
KNOWN = "agreement, arithmetic, copying, induction, lookup, python"
ALL = [(name, item) for name in NAMES for item in brought(name).items]
ONE_OBJECT = 'write one JSON object in each line: {"prompt": "2+3=", "answer": "5"}'

each_set = pytest.mark.parametrize("name", NAMES)


class TestBroughtSets:
    """Whoever compares models by these sets needs the same fair questions every time."""

    @each_set
    def test_it_is_48_plain_items_that_differ(self, name: str) -> None:
        items = brought(name).items
        assert len(items) == len({item.prompt for item in items}) == 48
        for item in items:
            assert (item.prompt + item.answer).isascii()
            assert item.prompt == item.prompt.strip()
            assert len(item.prompt.split()) < 60
            assert len(item.prompt) < 400  # fits 512 tokens, one per character at worst
            assert re.fullmatch(r" ?\w+", item.answer)

    @each_set
    def test_it_says_what_it_asks(self, name: str) -> None:
        found = brought(name)
        doc = importlib.import_module(f"hybridize.diagnostics.probes.{name}").__doc__
        assert doc is not None
        assert re.match(rf"Probe `{name}`: .*\?\n|Probe `{name}`: .*\.\n", doc)
        assert (found.name, found.source) == (name, "brought by hybridize")
        assert found.title
        assert "\n" not in found.title

    @each_set
    def test_saying_one_thing_scores_little(self, name: str) -> None:
        items = brought(name).items
        answers = Counter(item.answer for item in items)
        commonest = max(answers.values()) / len(items)
        if name == "agreement":  # there are two answers, and each is right as often
            assert commonest == 0.5
        else:
            assert commonest <= 0.125
            first = Counter(item.answer.strip()[0] for item in items)
            assert len(first) >= 8
            assert max(first.values()) <= 12

    def test_every_run_has_the_same_items(self) -> None:
        code = (
            "from hybridize.diagnostics.subject.items import brought, plugin_names\n"
            "for name in plugin_names('probes'):\n"
            "    assert brought(name) == brought(name)\n"
            "    print(repr(brought(name)))"
        )
        runs = [
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]
        here = "".join(f"{brought(name)!r}\n" for name in NAMES)
        assert runs == [here, here]

    def test_words_are_told_apart_by_how_they_begin(self) -> None:
        for words in (NOUNS, PEOPLE):
            assert len(set(words)) == len(words)
            assert not [(a, b) for a in words for b in words if a != b and b.startswith(a)]
            assert max(Counter(word[:2] for word in words).values()) <= 2


class TestAnswersAreRight:
    """Recomputed from the prompt alone, by other code than that which made it."""

    @pytest.mark.parametrize(("name", "item"), ALL, ids=lambda value: str(value)[:12])
    def test_by_another_way(self, name: str, item: Item) -> None:
        assert item.answer == SOLVERS[name](item.prompt)

    def test_no_item_of_copying_repeats_a_word_within_its_sentence(self) -> None:
        for item in brought("copying").items:
            words = item.prompt.split(". ")[0].split()
            assert len(set(words)) == len(words) >= 4

    def test_induction_is_not_copying(self) -> None:
        """What leads to the last word stood nowhere before; another word is as frequent."""
        for item in brought("induction").items:
            words = item.prompt.split()
            pairs = list(pairwise(words))
            assert pairs.count(pairs[-1]) == 1
            repeated = {pair: n for pair, n in Counter(pairs).items() if n > 1}
            assert len(repeated) in (0, 2)
            assert len(set(repeated.values())) <= 1
            last = max(i for i, word in enumerate(words[:-1]) if word == words[-1])
            assert len(words) - 1 - last > 3

    def test_examples_of_arithmetic_are_right_and_no_help(self) -> None:
        for item in brought("arithmetic").items:
            for line in item.prompt.split("\n")[:-1]:
                question, result = re.fullmatch(r"(.*[=,])(\d+)", line).groups()  # type: ignore[union-attr]
                assert arithmetic(question) == result
                assert result[0] != item.answer[0]

    def test_no_shortcut_to_agreement_beats_one_half(self) -> None:
        """The nearest noun, the last verb and the other verb are each right in half the items."""
        nearest = last = 0
        for item in brought("agreement").items:
            told = re.findall(r"\b(is|are)\b", item.prompt)
            assert sorted(told) == ["are", "is"]
            nearest += number(item.prompt.split()[-1]) == item.answer.strip()
            last += told[-1] == item.answer.strip()
        assert nearest == last == 24

    def test_examples_of_python_have_another_value(self) -> None:
        for item in brought("python").items:
            if item.prompt.startswith("print"):
                commented = re.search(r"  # (\w+)\n", item.prompt)[1]  # type: ignore[index]
                assert printed(item.prompt)[0] == commented
                assert commented != item.answer.strip()


def copying(prompt: str) -> str:
    *whole, part = prompt.split(". ")
    [sentence] = set(whole)
    assert sentence.startswith(f"{part} ")
    return " " + sentence.removeprefix(f"{part} ").split()[0]


def induction(prompt: str) -> str:
    words = prompt.split()
    [follower] = {b for a, b in pairwise(words) if a == words[-1]}
    return f" {follower}"


def lookup(prompt: str) -> str:
    pairs = dict(re.findall(r"(\w+)(?:: | has the )(\w+)", prompt))
    owners = {thing: person for person, thing in pairs.items()}
    assert len(pairs) == len(owners) >= 2
    if backwards := re.search(r"The (\w+) belongs to$", prompt):
        return f" {owners[backwards[1]]}"
    asked = re.search(r"(\w+)(?: has the|:)$", prompt)
    assert asked is not None
    return f" {pairs[asked[1]]}"


def arithmetic(prompt: str) -> str:
    asked = prompt.split("\n")[-1]
    numbers = [int(number) for number in re.findall(r"\d+", asked)]
    if asked.endswith(","):
        assert len({b - a for a, b in pairwise(numbers)}) == 1
        return str(2 * numbers[-1] - numbers[-2])
    if "*" in asked:
        return str(numbers[0] * numbers[1])
    return str(numbers[0] - numbers[1] if "-" in asked else sum(numbers))


SINGULAR = (
    "file name value key line object class method list man woman child dog house tree box city"
)
PLURAL = (
    "files names values keys lines objects classes methods lists men women children dogs houses "
    "trees boxes cities"
)


def number(noun: str) -> str:
    """The form of *to be* that a noun has."""
    return {**dict.fromkeys(SINGULAR.split(), "is"), **dict.fromkeys(PLURAL.split(), "are")}[noun]


def agreement(prompt: str) -> str:
    *told, subject = prompt.split(". ")
    for sentence in told:
        _, noun, verb, _ = sentence.split()
        assert number(noun) == verb
    nouns = {*SINGULAR.split(), *PLURAL.split()}
    head = next(word for word in subject.split() if word in nouns)  # English: the first one
    return f" {number(head)}"


# What an item says that a keyword begins: code that begins so, and the node that it parses to.
BEGINNINGS: dict[str, tuple[str, type[ast.AST]]] = {
    "a function": ("def f(): pass", ast.FunctionDef),
    "a class": ("class A: pass", ast.ClassDef),
    "a function without a name": ("lambda: 1", ast.Lambda),
    "a loop over the items of a list": ("for x in [1]: pass", ast.For),
    "a loop that runs as long as a condition holds": ("while x: pass", ast.While),
    "a block that closes a file at its end": ("with open('x'): pass", ast.With),
    "a block whose exceptions are caught": ("try: pass\nexcept: pass", ast.Try),
    "a statement that throws an exception": ("raise ValueError", ast.Raise),
    "a statement that gives back the result of a function": ("return 1", ast.Return),
    "a statement that checks a condition": ("assert x", ast.Assert),
}
# Code that is given, and a rest with which only one keyword stands between the two.
RESTS = {
    "for name": "names: pass",
    "from os.path": "join",
    "value = 1 if found": "2",
    "import numpy as np\nimport pandas": "pd",
    "names = [x for x": "y]",
    "if key not": "keys: pass",
}


def python(prompt: str) -> str:
    if prompt.startswith("print"):
        return f" {printed(prompt)[1]}"
    if begins := re.search(r"begins with del, and (.*) begins with$", prompt):
        code, node = BEGINNINGS[begins[1]]
        assert any(type(found) is node for found in ast.walk(ast.parse(code)))
        return f" {re.match(r'[a-z]+', code)[0]}"  # type: ignore[index]
    if asked := re.search(r"(\w+) is in the module$", prompt):
        modules = [
            item.answer.strip() for item in brought("python").items if "module" in item.prompt
        ]
        [module] = [name for name in modules if hasattr(importlib.import_module(name), asked[1])]
        return f" {module}"
    if prompt.startswith("class"):
        return attribute(prompt)
    [only] = [word for word in keyword.kwlist if parses(f"{prompt} {word} {RESTS[prompt]}")]
    return f" {only}"


def printed(code: str) -> list[str]:
    with redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue().split()


def attribute(code: str) -> str:
    """The argument with which the class keeps what it is called with, under the same name."""
    name = re.match(r"class (\w+)", code)[1]  # type: ignore[index]
    [arguments] = re.findall(r"\(self, (.*)\)", code)
    right = []
    for argument in arguments.split(", "):
        space: dict[str, Callable[..., object]] = {}
        exec(f"{code} {argument}", space)
        given = dict(zip(arguments.split(", "), (1, 2), strict=True))
        right += [argument] if vars(space[name](**given)) == given else []
    [only] = right
    return f" {only}"


def parses(code: str) -> bool:
    with suppress(SyntaxError):
        ast.parse(code)
        return True
    return False


SOLVERS: dict[str, Callable[[str], str]] = {
    "agreement": agreement,
    "arithmetic": arithmetic,
    "copying": copying,
    "induction": induction,
    "lookup": lookup,
    "python": python,
}


class TestFiles:
    """Whoever asks questions of their own learns of every mistake at once, with its line."""

    def test_a_line_is_an_item(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.jsonl"
        file.write_bytes(
            b'\xef\xbb\xbf{"prompt": "2+3=", "answer": "5"}\r\n\n \t\n'
            b'{"answer": " Gr\xc3\xbcn", "prompt": "a\\u2028b", "note": null}'
        )
        found = read_items(file)
        assert found.items == (Item("2+3=", "5"), Item("a\u2028b", " Grün"))
        assert (found.name, found.title, found.source) == (
            "mine",
            "items of mine.jsonl",
            str(file),
        )
        assert read_items(file, name="other").name == "other"

    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b"", f"x.jsonl: no items: the file is empty\n  fix: {ONE_OBJECT}"),
            (b" \n\n", f"x.jsonl: no items: the file is empty\n  fix: {ONE_OBJECT}"),
            (
                b'{"prompt": "a", "answer": "b"}\n{"prompt": "a" "answer": "b"}',
                f"x.jsonl:2:16: is not JSON: Expecting ',' delimiter\n  fix: {ONE_OBJECT}",
            ),
            (
                b'{"prompt": ' + b"[" * 100_000,
                f"x.jsonl:1: is JSON that cannot be read\n  fix: {ONE_OBJECT}",
            ),
            (
                b'["a", "b"]\nnull',
                f"x.jsonl:1: is not a JSON object, but of type list\n"
                f"x.jsonl:2: is not a JSON object, but of type NoneType\n  fix: {ONE_OBJECT}",
            ),
            (
                b'{"prompt": "a", "answr": "b"}\n\n{"text": "a"}\n{}',
                "x.jsonl:1: has no 'answer'\n  fix: did you mean 'answr'? (known: answr)\n"
                "x.jsonl:3: has no 'prompt'\n"
                "x.jsonl:3: has no 'answer'\n  fix: known: text\n"
                "x.jsonl:4: has no 'prompt'\n"
                f"x.jsonl:4: has no 'answer'\n  fix: {ONE_OBJECT}",
            ),
            (
                b'{"prompt": "", "answer": 5}\n{"prompt": "a", "answer": " \\n"}',
                "x.jsonl:1: 'prompt' is empty\n  fix: write what the model reads\n"
                "x.jsonl:1: 'answer' is not a string, but of type int\n"
                "x.jsonl:2: 'answer' is white space only\n"
                "  fix: write what follows, with the space before it",
            ),
            (
                b'{"prompt": "a\\ud800", "answer": "b"}',
                "x.jsonl:1: 'prompt' has half a character (a lone surrogate)\n"
                "  fix: write what the model reads",
            ),
            (
                b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xff", "answer": "b"}\n{}',
                "x.jsonl:2: is not UTF-8 text (byte 12 of the line)\n"
                "  fix: save the file as UTF-8\n"
                "x.jsonl:3: has no 'prompt'\n"
                f"x.jsonl:3: has no 'answer'\n  fix: {ONE_OBJECT}",
            ),
        ],
        ids=str,
    )
    def test_mistakes_name_file_and_line(self, tmp_path: Path, data: bytes, found: str) -> None:
        (tmp_path / "x.jsonl").write_bytes(data)
        assert complaint(tmp_path, "./x.jsonl") == found

    def test_the_first_twenty_mistakes_are_told_and_the_rest_counted(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text("oops\n" * 50)
        lines = complaint(tmp_path, "./x.jsonl").splitlines()
        assert lines[-3:] == [
            "x.jsonl:20:1: is not JSON: Expecting value",
            f"  fix: {ONE_OBJECT}",
            "... and 30 more",
        ]
        assert len(lines) == 22  # their fix, which is one, is told once

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("absent.jsonl", f"absent.jsonl: no such file\n  fix: name a file, or one of: {KNOWN}"),
            ("a/b", f"a/b: no such file\n  fix: name a file, or one of: {KNOWN}"),
            ("a\0b", f"a\\0b: no such file\n  fix: name a file, or one of: {KNOWN}"),
            ("./folder", f"folder: is a folder\n  fix: name a file, or one of: {KNOWN}"),
            (
                "copyng",
                f"no probes and no file 'copyng'\n  fix: did you mean 'copying'? (known: {KNOWN})",
            ),
            ("_words", f"no probes and no file '_words'\n  fix: known: {KNOWN}"),
            ("", f"no probes and no file ''\n  fix: known: {KNOWN}"),
        ],
    )
    def test_what_is_neither_set_nor_file_is_refused(
        self, tmp_path: Path, text: str, found: str
    ) -> None:
        (tmp_path / "folder").mkdir()
        assert complaint(tmp_path, text) == found

    def test_a_set_goes_before_a_file_of_its_name(self, tmp_path: Path) -> None:
        for name in ("copying", "mine"):
            (tmp_path / name).write_text(json.dumps({"prompt": "a", "answer": "b"}))
        assert find_items("copying", tmp_path) == brought("copying")
        assert find_items("./copying", tmp_path).source == "./copying"
        assert find_items("mine", tmp_path).items == (Item("a", "b"),)

    def test_a_file_that_may_not_be_read_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "x.jsonl").touch()
        monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
        assert complaint(tmp_path, "x.jsonl") == "x.jsonl: cannot be read: Permission denied"

    def test_any_bytes_end_in_items_or_in_a_clear_error(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("any") / "x.jsonl"
        text = st.text(max_size=5) | st.integers()
        rows = st.dictionaries(st.sampled_from(["prompt", "answer", "promt"]), text)

        @given(st.binary(max_size=64) | rows.map(lambda row: json.dumps(row).encode()))
        @example(b'{"\\ud800": 3}')
        @example(b'{"prompt": ' + b"1" * 5000 + b"}")
        @example(b'{"prompt": "\\ud800", "answer": "\\udfff"}')
        def check(data: bytes) -> None:
            file.write_bytes(data)
            try:
                items = read_items(file).items
            except HybridizeError as error:
                assert str(error).encode().startswith(str(file).encode())  # noqa: PT017
            else:
                assert items
                assert all(item.prompt and item.answer.strip() for item in items)

        check()


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(HybridizeError) as caught:
        find_items(text, folder)
    return str(caught.value).replace(f"{folder}/", "")

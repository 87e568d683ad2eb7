"""YAML is read with positions, without YAML 1.1's surprises, and never ends in a traceback."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.errors import HybridizeError
from hybridize.files.yaml_source import dotted_path, parse_yaml, read_yaml

FILE = Path("x.yaml")


def test_every_node_has_its_place() -> None:
    """Who reads an error wants to put the cursor there."""
    document = parse_yaml("slots:\n  - {from: a}\n  - from: b\n    layers: 0-3\n", FILE)
    assert document.place(("slots", 1, "layers")) == "x.yaml:4:13: slots[1].layers"
    assert document.place(("slots", 1, "absent")) == "x.yaml:3:5: slots[1].absent"


def test_duplicate_keys_are_refused_all_of_them() -> None:
    """PyYAML keeps the last one silently."""
    with pytest.raises(HybridizeError) as caught:
        parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\n", FILE)
    assert str(caught.value).splitlines() == [
        "x.yaml:2:11: b.c: key 'c' stands twice (first in line 2)",
        "x.yaml:3:1: a: key 'a' stands twice (first in line 1)",
        "  fix: keep one of the two",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("1:30", "1:30"), ("010", "010"), ("2026-01-02", "2026-01-02"),
     ("true", True), ("7", 7), ("1e5", 1e5), ("0.1", 0.1), ("1_000", 1000), ("~", None)],
)  # fmt: skip
def test_words_stay_words(text: str, value: object) -> None:
    """A donor called `on`, a range `1:30`: YAML 1.1 would make true and 90 of them."""
    assert parse_yaml(f"a: {text}", FILE).data == {"a": value}


def test_anchors_and_merges_work() -> None:
    """Recipes repeat themselves."""
    data = parse_yaml("a: &x {m: 1, n: 2}\nb: {<<: *x, n: 3}\n", FILE).data
    assert data["b"] == {"m": 1, "n": 3}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [1", "x.yaml:1:6: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: &x [*x]", "x.yaml:1:4: an anchor that contains itself"),
        ("a: !!python/object:os.system {}", "x.yaml:1:4: not YAML: unknown tag"),
        ("a: b\n---\nc: d", "not YAML: but found another document"),
        ("? [1]\n: 2", "x.yaml:1:3: a key must be a word"),
        ("[" * 5000 + "]" * 5000, "not YAML: nested too deeply"),
        ("a\x00b", "not YAML"),
    ],
)
def test_what_is_not_yaml_is_said(text: str, found: str) -> None:
    with pytest.raises(HybridizeError) as caught:
        parse_yaml(text, FILE)
    assert found in str(caught.value)


def test_aliases_of_aliases_do_not_explode() -> None:
    """The billion laughs."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(HybridizeError, match="more than 200000 nodes"):
        parse_yaml("\n".join(lines), FILE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Jürgen".encode("latin-1"))
    for name, found in [("absent.yaml", "no such file"), (".", "folder"), ("latin.yaml", "UTF-8")]:
        with pytest.raises(HybridizeError, match=found):
            read_yaml(tmp_path / name)


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"#%@,~ \n\t0<=."), max_size=40))
def test_any_text_is_data_or_a_clear_error(text: str) -> None:
    with suppress(HybridizeError):
        parse_yaml(text, FILE)


def test_dotted_path() -> None:
    assert dotted_path(("slots", 3, "mixer", "from")) == "slots[3].mixer.from"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: !!timestamp x", "unknown tag 'tag:yaml.org,2002:timestamp'"),
        ("a: !!timestamp 2001-01-01", "unknown tag"),
        ("a: !!bool perhaps", "'perhaps' is not a valid bool"),
        ("!!bool perhaps: a", "'perhaps' is not a valid bool"),
        ("a: !!int x", "'x' is not a valid int"),
        ("a: !!float x", "'x' is not a valid float"),
        ("a: !!binary x", "unknown tag"),
        ("a: !!set {x}", "unknown tag"),
        ("a: !!python/name:os.system x", "unknown tag"),
        ('a: "b\\0"', "a NUL in a text"),
    ],
)
def test_tags_are_of_what_they_say(text: str, found: str) -> None:
    """PyYAML answers some of these with a KeyError, or with a date."""
    with pytest.raises(HybridizeError) as caught:
        parse_yaml(text, Path("x.yaml"))
    assert str(caught.value).startswith("x.yaml:1:")
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("!!str 3", "3"), ("!!int '3'", 3), ("!!bool true", True), ("!!null x", None)],
)
def test_plain_tags_are_kept(text: str, value: object) -> None:
    assert parse_yaml(f"a: {text}", Path("x.yaml")).data == {"a": value}

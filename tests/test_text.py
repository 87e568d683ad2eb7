"""Text of a recipe is found before it is read, and read as it is or refused with its place."""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybridize.errors import Finding, HybridizeError
from hybridize.recipe.file import load_recipe
from hybridize.text.sources import TextSource, find_text, read_text
from tests.support.text_files import write_lines, write_parquet

ROWS = [{"text": "one", "id": 1}, {"text": "two\u2028lines", "id": 2}]


def find(folder: Path, entry: str) -> tuple[TextSource, list[Finding]]:
    """The entry of a recipe `x.yaml` in `folder`."""
    file = folder / "x.yaml"
    file.write_text(
        "donors: {a: {model: x}}\nslots: [{from: a, layer: 1}]\n"
        f"calibration:\n  data:\n    - {entry}\n"
    )
    recipe = load_recipe(file)
    assert recipe.recipe.calibration is not None
    findings: list[Finding] = []
    spec = recipe.recipe.calibration.data[0]
    return find_text(recipe, ("calibration", "data", 0), spec, findings), findings


def read(folder: Path, entry: str, *, longest: int | None = None) -> list[str]:
    source, findings = find(folder, entry)
    assert not findings
    return list(read_text(source, offline=True, longest=longest))


def complaint(folder: Path, entry: str) -> str:
    """What is wrong with an entry, found while planning or else while reading."""
    source, findings = find(folder, entry)
    found = "\n".join(map(str, findings))
    if not findings:
        with pytest.raises(HybridizeError) as caught:
            list(read_text(source, offline=True))
        found = str(caught.value)
    return found.replace(f"{folder}/", "")


def write_feather(path: Path, **columns: list[Any]) -> None:
    import pyarrow

    table = pyarrow.table(columns)
    with pyarrow.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table)


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffwörd\r\n\nend".encode())
    assert read(tmp_path, "a.txt") == ["wörd\r\n\nend"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "A.JSONL"])
def test_a_line_of_json_is_a_document(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / name, *ROWS, {"text": None}, {"text": " \n"})
    with (tmp_path / name).open("a") as file:
        file.write("\n  \n")
    assert read(tmp_path, name) == ["one", "two\u2028lines"]


def test_another_field_is_taken_if_the_recipe_says_so(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "no", "content": "yes"})
    assert read(tmp_path, "{files: a.jsonl, field: content}") == ["yes"]


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", *ROWS).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"plain"))
    assert read(tmp_path, "{files: [a.jsonl.gz, b.txt.gz]}") == ["one", "two\u2028lines", "plain"]


@pytest.mark.parametrize("layout", ["stream", "file"])
def test_a_row_of_arrow_is_a_document(tmp_path: Path, layout: str) -> None:
    """As `datasets` keeps them on disk (a stream), and as Feather does (a file)."""
    import pyarrow

    table = pyarrow.table({"text": ["one", None, "", "two", "three"], "id": [*range(5)]})
    made = getattr(pyarrow.ipc, f"new_{layout}")
    with made(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=2)
    assert read(tmp_path, "a.arrow") == ["one", "two", "three"]


def test_a_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["one", None, "", "two", "three"], id=[*range(5)])
    assert read(tmp_path, "a.parquet") == ["one", "two", "three"]


def test_patterns_give_files_by_name_and_none_twice(tmp_path: Path) -> None:
    for name in ("src/b.py", "src/a.py", "src/deep/c.py", "src/deep/__init__.py", "more [1].txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "init" in name else name)
    everything = read(tmp_path, '{files: [src/b.py, "src/**/*.py", "more [1].txt"]}')
    assert everything == ["src/b.py", "src/a.py", "src/deep/c.py", "more [1].txt"]
    absolute = read(tmp_path, f"{{files: '{tmp_path}/src/*.py'}}")
    assert absolute == ["src/a.py", "src/b.py"]


def test_a_recipe_may_lie_in_a_folder_that_is_called_like_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    assert read(folder, "{files: '*.txt'}") == ["text"]


def test_a_document_is_cut_at_the_end_of_a_character(tmp_path: Path) -> None:
    """Whoever has one huge file: what is not needed is not read."""
    (tmp_path / "a.txt").write_text("äöü" * 1000)
    write_lines(tmp_path / "a.jsonl", {"text": "äöü" * 1000}, {"text": "a"})
    write_parquet(tmp_path / "a.parquet", text=["äöü"])
    files = "{files: [a.txt, a.jsonl, a.parquet]}"
    assert read(tmp_path, files, longest=5) == ["äö", "äö", "a", "äö"]
    assert read(tmp_path, "a.txt", longest=6) == ["äöü"]


def test_a_huge_file_is_read_only_as_far_as_needed(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"text")
        file.truncate(1 << 40)  # a hole of a terabyte
    assert [text[:4] for text in read(tmp_path, "a.txt", longest=100)] == ["text"]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (
            "absent.txt",
            "x.yaml:5:7: calibration.data[0]: no such file: absent.txt\n"
            "  fix: paths start at the recipe",
        ),
        (
            "{files: [a.txt, absent.txt]}",
            "x.yaml:5:23: calibration.data[0].files[1]: no such file: absent.txt\n"
            "  fix: paths start at the recipe",
        ),
        (
            "{files: 'src/*.rs'}",
            "x.yaml:5:15: calibration.data[0].files: no file matches src/*.rs\n"
            "  fix: paths start at the recipe; ** stands for folders at any depth",
        ),
        (
            "'**.txt'",
            "x.yaml:5:7: calibration.data[0]: **.txt: cannot be looked for: Invalid pattern: "
            "'**' can only be an entire path component",
        ),
        (
            "folder",
            "x.yaml:5:7: calibration.data[0]: folder is a folder\n"
            "  fix: name the files in it: folder/*.txt, say",
        ),
        (
            "empty.txt",
            "x.yaml:5:7: calibration.data[0]: empty.txt is empty\n  fix: fill it, or leave it out",
        ),
        (
            "{files: 'empt?.*'}",
            "x.yaml:5:15: calibration.data[0].files: every file that matches empt?.* is empty",
        ),
        (
            "blank.txt",
            "x.yaml:5:7: calibration.data[0]: the text of 'blank' is empty: its documents are "
            "only whitespace\n  fix: name other files or another field",
        ),
        (
            "latin.txt",
            "x.yaml:5:7: calibration.data[0]: latin.txt: is not UTF-8 text (byte 3)\n"
            "  fix: save it as UTF-8, or leave it out",
        ),
        (
            "latin.jsonl",
            "x.yaml:5:7: calibration.data[0]: latin.jsonl: is not UTF-8 text (byte 24)\n"
            "  fix: save it as UTF-8, or leave it out",
        ),
        (
            "broken.jsonl",
            "x.yaml:5:7: calibration.data[0]: broken.jsonl:2: is not a JSON object: Expecting "
            "value, column 10\n  fix: write one JSON object in each line; "
            "`jq -c '.[]' a.json > a.jsonl` parts a list",
        ),
        (
            "list.json",
            "x.yaml:5:7: calibration.data[0]: list.json:1: is not a JSON object, but of type list\n"
            "  fix: write one JSON object in each line",
        ),
        (
            "rows.jsonl",
            "x.yaml:5:7: calibration.data[0]: rows.jsonl:1: has no field 'text'\n"
            "  fix: field: NAME; did you mean 'texts'? (known: texts, id)",
        ),
        (
            "{files: rows.jsonl, field: id}",
            "x.yaml:5:15: calibration.data[0].files: rows.jsonl:1: the field 'id' is not a string, "
            "but of type int\n  fix: field: NAME; known: texts",
        ),
        (
            "half.jsonl",
            "x.yaml:5:7: calibration.data[0]: half.jsonl:1: the field 'text' has half a character "
            "(a lone surrogate) at 1\n  fix: mend the line, or remove it",
        ),
        (
            "rows.parquet",
            "x.yaml:5:7: calibration.data[0]: rows.parquet: has no column 'text'\n"
            "  fix: field: NAME; did you mean 'texts'? (known: texts, id)",
        ),
        (
            "{files: rows.parquet, field: id}",
            "x.yaml:5:15: calibration.data[0].files: rows.parquet: the column 'id' is not a "
            "string, but int64\n  fix: field: NAME; known: texts",
        ),
        (
            "no.arrow",
            "x.yaml:5:7: calibration.data[0]: no.arrow: cannot be read as Arrow: "
            "Expected to read 1954047348 metadata bytes, but only read 10",
        ),
        (
            "rows.arrow",
            "x.yaml:5:7: calibration.data[0]: rows.arrow: has no column 'text'\n"
            "  fix: field: NAME; did you mean 'texts'? (known: texts)",
        ),
        (
            "no.parquet",
            "x.yaml:5:7: calibration.data[0]: no.parquet: cannot be read as parquet: "
            "Parquet magic bytes not found in footer. Either the file is corrupted or this is not "
            "a parquet file.",
        ),
        (
            "torn.txt.gz",
            "x.yaml:5:7: calibration.data[0]: torn.txt.gz: is not a complete gzip file\n"
            "  fix: fetch or pack it again",
        ),
        (
            "{dataset: ./absent}",
            "x.yaml:5:17: calibration.data[0].dataset: no such folder: absent\n"
            "  fix: paths start at the recipe; a data set of the hub is written org/name",
        ),
        (
            "{dataset: folder, revision: v1}",
            "x.yaml:5:35: calibration.data[0].revision: 'folder' is a folder here, and a folder "
            "has no revision 'v1'\n  fix: remove the key revision, or rename the folder",
        ),
    ],
)
def test_mistakes_name_recipe_and_file(tmp_path: Path, entry: str, found: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t")
    (tmp_path / "latin.txt").write_bytes("vorüber".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": oops}\n')
    (tmp_path / "list.json").write_text('[{"text": "a"}]')
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud800"}\n')
    write_lines(tmp_path / "rows.jsonl", {"texts": "a", "id": 3})
    write_parquet(tmp_path / "rows.parquet", texts=["a"], id=[3])
    (tmp_path / "no.parquet").write_text("text, not parquet")
    (tmp_path / "no.arrow").write_text("text, no arrow")
    write_feather(tmp_path / "rows.arrow", texts=["a"])
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(os.urandom(100))[:60])
    assert complaint(tmp_path, entry) == found


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    source, _ = find(tmp_path, "a.txt")
    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(HybridizeError, match=r"a\.txt: cannot be read: Permission denied"):
        list(read_text(source, offline=True))


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.parquet", "a.arrow", "a.txt.gz", "a.jsonl.gz"]
)
def test_any_bytes_end_in_documents_or_in_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_bytes(b"x")
    source, _ = find(folder, name)

    @given(st.binary(max_size=64), st.none() | st.integers(1, 20))
    @example(b'{"text": "\\ud800"}', None)
    @example(b'{"text": ' + b"[" * 100_000, None)
    @example(b'{"text": ' + b"1" * 5000 + b"}", None)
    @example(b'{"\\ud800": 3}', None)
    @example(gzip.compress(b"\xff"), None)
    @example(b"PAR1\x00\x00\x00\x00PAR1", None)
    @example(b"ARROW1\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7fARROW1", None)
    def check(data: bytes, longest: int | None) -> None:
        (folder / name).write_bytes(data)
        with suppress(HybridizeError):
            for document in read_text(source, offline=True, longest=longest):
                assert document
                assert len(document.encode()) <= (longest or len(data))

    check()


class TestDatasets:
    """Data sets go through the library that knows them; a folder is read without a network."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "set").mkdir()
        write_lines(tmp_path / "set/train.jsonl", *ROWS, {"text": None, "id": 3})
        return tmp_path

    def test_rows_are_documents(self, folder: Path) -> None:
        assert read(folder, "{dataset: set}") == ["one", "two\u2028lines"]
        assert read(folder, "{dataset: set}", longest=2) == ["on", "tw"]

    @pytest.mark.parametrize(
        ("entry", "found"),
        [
            (
                "{dataset: set, split: tain}",
                "data set 'set' has no split 'tain'\n  fix: did you mean 'train'? (known: train)",
            ),
            (
                "{dataset: set, field: texts}",
                "data set 'set' has no field 'texts'\n"
                "  fix: field: NAME; did you mean 'text'? (known: text, id)",
            ),
            (
                "{dataset: set, field: id}",
                "data set 'set', row 1: 'id' is of type int\n  fix: field: NAME; known: text",
            ),
            (
                "{dataset: set, subset: en}",
                "data set 'set' cannot be read: BuilderConfig 'en' not found. "
                "Available: ['default']",
            ),
            (
                "{dataset: org/absent}",
                "data set 'org/absent' is not on this machine (offline: the hub was not asked)\n"
                "  fix: datasets.load_dataset('org/absent') where there is a network, "
                "or name files",
            ),
        ],
    )
    def test_mistakes_are_clear(self, folder: Path, entry: str, found: str) -> None:
        assert complaint(folder, entry) == f"x.yaml:5:7: calibration.data[0]: {found}"

    def test_offline_what_is_cached_is_read_and_no_other_revision(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`datasets` itself takes any revision that it finds: not what the recipe asks for."""
        from datasets import config, load_dataset

        cache = folder / "cache"
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
        load_dataset(str(folder / "set"))
        (cache / "set").rename(cache / "org___set")  # as if it came from the hub
        [commit] = [path.name for path in cache.glob("org___set/default/0.0.0/*") if path.is_dir()]
        for entry in ("{dataset: org/set}", f"{{dataset: org/set, revision: {commit!r}}}"):
            assert read(folder, entry) == ["one", "two\u2028lines"]
        assert complaint(folder, "{dataset: org/set, revision: v2}") == (
            f"x.yaml:5:7: calibration.data[0]: of data set 'org/set' only revision {commit} is on "
            "this machine\n  fix: go where there is a network, or write that revision"
        )
        assert complaint(folder, "{dataset: org/set, subset: en}") == (
            "x.yaml:5:7: calibration.data[0]: data set 'org/set' cannot be read: "
            "Couldn't find cache for org/set for config 'en'"
        )

    def test_offline_holds_for_the_reading_alone(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """--offline is a flag, and both libraries ask the environment before there are flags."""
        from datasets import config
        from huggingface_hub import constants

        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert "the hub was not asked" in complaint(folder, "{dataset: org/absent}")
        assert (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE) == (False, False)

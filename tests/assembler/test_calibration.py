"""Calibration text: the same seed gives the same documents, and each domain has its share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from hybridize.errors import Finding, HybridizeError
from hybridize.recipe.file import RecipeFile, load_recipe
from hybridize.text import calibration as module
from hybridize.text.built_in import DOMAINS, Corpus
from hybridize.text.calibration import Calibration, gather, plan_calibration

HEAD = "donors: {a: {model: x}}\nslots: [{from: a, layer: 1}]\n"


def planned(folder: Path, text: str) -> tuple[Calibration, RecipeFile, list[Finding]]:
    file = folder / "x.yaml"
    file.write_text(HEAD + text)
    recipe = load_recipe(file)
    findings: list[Finding] = []
    return plan_calibration(recipe, findings), recipe, findings


def gathered(
    folder: Path, text: str, *, tokens: int = 64
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and documents of a recipe's calibration text."""
    calibration, recipe, findings = planned(folder, text)
    assert not findings
    file = folder / "documents.jsonl"
    summary = gather(calibration, recipe, file, tokens=tokens, offline=True)
    return summary, [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(path: Path, num_rows: int, text: str = "row {i}") -> None:
    rows = (json.dumps({"text": text.format(i=i)}) for i in range(num_rows))
    path.write_text("\n".join(rows))


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    corpus = Corpus(
        train={domain: [f"{domain} {i} " + "x" * 100 for i in range(20)] for domain in DOMAINS},
        held_out={domain: [f"secret {domain}"] for domain in DOMAINS},
    )
    monkeypatch.setattr(module, "read_corpus", lambda: corpus)
    return corpus


@pytest.mark.parametrize("text", ["", "calibration:\n", "calibration: {tokens: 100, length: 64}\n"])
def test_without_text_of_their_own_all_get_that_of_the_standard_library(
    tmp_path: Path, small_corpus: Corpus, text: str
) -> None:
    """Only its training part: the demo measures on the rest."""
    calibration, _, findings = planned(tmp_path, text)
    assert not findings
    assert calibration.brought
    assert [domain.name for domain in calibration.domains] == ["prose", "code"]
    summary, documents = gathered(tmp_path, text, tokens=64)
    assert {document["domain"] for document in documents} == {0, 1}
    for document in documents:
        assert document["text"] in small_corpus.train[DOMAINS[document["domain"]]]
    assert all(d["source"].startswith("standard library of Py") for d in summary["domains"])


def test_the_plan_says_what_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("text")
    calibration, _, findings = planned(
        tmp_path,
        "calibration:\n  data: [prose.txt, {name: code, files: prose.txt, weight: 2}]\n"
        "  tokens: 100\n  length: 64\n  seed: 3\n  stream: donor\n",
    )
    assert not findings
    assert [(domain.name, domain.weight) for domain in calibration.domains] == [
        ("prose", 1.0),
        ("code", 2.0),
    ]
    assert calibration.domains[1].place == f"{tmp_path}/x.yaml:4:21: calibration.data[1]"
    assert (calibration.tokens, calibration.length, calibration.seed) == (100, 64, 3)
    assert (calibration.stream, calibration.brought) == ("donor", False)
    assert [(d.name, share) for d, share in calibration.shares(99)] == [("prose", 33), ("code", 66)]


def test_the_plan_finds_every_missing_file(tmp_path: Path) -> None:
    _, _, findings = planned(tmp_path, "calibration: {data: [a.txt, {files: b/*.txt}]}")
    assert "\n".join(map(str, findings)).replace(f"{tmp_path}/", "") == (
        "x.yaml:3:22: calibration.data[0]: no such file: a.txt\n"
        "  fix: paths start at the recipe\n"
        "x.yaml:3:37: calibration.data[1].files: no file matches b/*.txt\n"
        "  fix: paths start at the recipe; ** stands for folders at any depth"
    )


def test_each_domain_gets_its_share_of_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 2000)
    write_rows(tmp_path / "b.jsonl", 2000)
    text = "calibration: {data: [a.jsonl, {files: b.jsonl, weight: 3}]}"
    summary, documents = gathered(tmp_path, text, tokens=400)
    assert [domain["name"] for domain in summary["domains"]] == ["a", "b"]
    for i, least in enumerate((1600, 4800)):
        texts = [document["text"] for document in documents if document["domain"] == i]
        noted = summary["domains"][i]
        assert noted["bytes"] == sum(map(len, texts))
        assert least <= noted["bytes"] < least + 10  # one document more than needed, at most
        assert noted["documents"] == len(texts) == len(set(texts))
        assert noted["blake3"] == blake3("".join(t + "\0" for t in texts).encode()).hexdigest()
    assert summary["domains"][1]["source"] == {"files": ["b.jsonl"]}


def test_the_seed_decides_which_documents(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 1000)

    def texts(seed: int) -> list[str]:
        _, documents = gathered(tmp_path, f"calibration: {{data: [a.jsonl], seed: {seed}}}")
        return [document["text"] for document in documents]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert texts(0) != sorted(texts(0), key=lambda text: int(text.split()[1]))


def test_documents_are_those_of_any_other_run(tmp_path: Path) -> None:
    """PYTHONHASHSEED changes nothing: the manifest of a build can be made again."""
    for name in ("a", "b", "c"):
        write_rows(tmp_path / f"{name}.jsonl", 50, text=name + " {i} ä\u2028\n")
    text = "calibration: {data: [{name: all, files: '*.jsonl'}]}"
    summary, _ = gathered(tmp_path, text)
    before = (tmp_path / "documents.jsonl").read_bytes()
    code = """
import sys
from pathlib import Path
from hybridize.text.calibration import gather, plan_calibration
from hybridize.recipe.file import load_recipe
recipe = load_recipe(Path("x.yaml"))
gather(plan_calibration(recipe, []), recipe, Path("again.jsonl"), tokens=64, offline=True)
assert not {"torch", "datasets", "transformers", "pyarrow"} & set(sys.modules)
"""
    (tmp_path / "documents.jsonl").unlink()
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONHASHSEED": seed}, check=True
        )
        assert (tmp_path / "again.jsonl").read_bytes() == before
        (tmp_path / "again.jsonl").unlink()
    assert summary["domains"][0]["source"] == {"files": ["*.jsonl"]}


def test_of_a_source_without_end_little_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names 10 TB of text waits for what is needed of it."""
    monkeypatch.setattr(module, "LEAST_POOL", 1)
    write_rows(tmp_path / "a.jsonl", 10_000)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("\nno JSON")
    _, documents = gathered(tmp_path, "calibration: {data: [a.jsonl]}", tokens=100)
    numbers = [int(document["text"].split()[1]) for document in documents]
    read = module.POOL * 100 * module.BYTES_PER_TOKEN / len("row 000")
    assert read / 2 < max(numbers) < read * 1.1  # of all that was read, not the first of it


def test_too_little_text_is_an_error_of_each_domain(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ä" * 50)
    (tmp_path / "b.txt").write_text("b" * 900)
    (tmp_path / "c.txt").write_text("c" * 100)
    text = "calibration:\n  data:\n    - a.txt\n    - {files: b.txt, weight: 2}\n    - c.txt\n"
    with pytest.raises(HybridizeError) as caught:
        gathered(tmp_path, text, tokens=800)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "x.yaml:5:7: calibration.data[0]: the text of 'a' is shorter than needed: 100 bytes for "
        "200 tokens\n"
        "x.yaml:7:7: calibration.data[2]: the text of 'c' is shorter than needed: 100 bytes for "
        "200 tokens\n"
        "  fix: name more text, give it a lower weight, or write tokens: 400"
    )
    assert gathered(tmp_path, text, tokens=400)[0]["domains"][0]["bytes"] == 100


def test_too_many_tokens_for_the_text_that_is_brought(tmp_path: Path, small_corpus: Corpus) -> None:
    with pytest.raises(HybridizeError) as caught:
        gathered(tmp_path, "", tokens=6000)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "x.yaml:1:1: calibration: the text of 'prose' is shorter than needed: 2170 bytes for "
        "3000 tokens",
        "x.yaml:1:1: calibration: the text of 'code' is shorter than needed: 2150 bytes for "
        "3000 tokens",
        "  fix: name text of your own: calibration: {data: [...]}",
    ]


def test_mistakes_inside_files_of_all_domains_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.jsonl").write_text("oops")
    with pytest.raises(HybridizeError) as caught:
        gathered(tmp_path, "calibration: {data: [a.txt, b.jsonl]}")
    assert [finding.found.partition(":")[0] for finding in caught.value.findings] == [
        f"{tmp_path}/a.txt",
        f"{tmp_path}/b.jsonl",
    ]


def test_a_file_that_goes_after_the_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 1000)
    calibration, recipe, _ = planned(tmp_path, "calibration: {data: [a.txt]}")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(HybridizeError, match="no such file"):
        gather(calibration, recipe, tmp_path / "out", tokens=64, offline=True)

"""A recipe is read whole or refused with everything that is wrong with it."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.diagnostics.subject.trace import trace_schema
from hybridize.errors import HybridizeError
from hybridize.recipe.file import RecipeFile, load_recipe, recipe_schema
from hybridize.recipe.sections.cpt import CptSpec
from hybridize.recipe.sections.whole import Recipe

ROOT = Path(__file__).parents[1]


def read(tmp_path: Path, text: str) -> RecipeFile:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    return load_recipe(file)


def complaints(tmp_path: Path, text: str) -> str:
    with pytest.raises(HybridizeError) as caught:
        read(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_all_mistakes_at_once_with_their_places(tmp_path: Path) -> None:
    """One run of the tool, one round of corrections."""
    text = """\
version: 1
dtyp: keep
donors:
  a: {model: x}
  b: {modle: x}
embeddings: c
slots:
  - {from: a, layers: 7-0}
  - {from: q, layers: 0-3, bridge: liner}
  - {from: a, layer: 3, mixer: {from: z, layer: x}}
  - {from: a}
  - {from: a, layer: 1, layers: 2}
bridges: {kind: lin, where: all}
target: natve
shard_size: 5
"""
    assert (
        complaints(tmp_path, text)
        == """\
x.yaml:2:1: dtyp: unknown key 'dtyp'
  fix: did you mean 'dtype'? (known: version, name, donors, slots, embeddings, head, tokenizer, \
bridges, calibration, diagnostics, placement, cpt, target, dtype, shard_size)
x.yaml:5:6: donors.b: neither 'model' nor 'merge'
  fix: write model: FOLDER-OR-HUB-ID, or merge: MERGEKIT-CONFIG
x.yaml:5:7: donors.b.modle: unknown key 'modle'
  fix: did you mean 'model'? (known: model, revision, merge, start_token)
x.yaml:6:13: embeddings: no donor is called 'c'
  fix: known: a, b
x.yaml:8:23: slots[0].layers: the range 7-0 is reversed
  fix: write 0-7; to reverse the order of the layers, list them one by one
x.yaml:9:12: slots[1].from: no donor is called 'q'
  fix: known: a, b
x.yaml:9:36: slots[1].bridge: unknown bridge kind 'liner'
  fix: did you mean 'linear'? (known: block, identity, linear, lowrank)
x.yaml:10:39: slots[2].mixer.from: no donor is called 'z'
  fix: known: a, b
x.yaml:10:49: slots[2].mixer.layer: 'x' is not a whole number
x.yaml:11:5: slots[3]: no layers
x.yaml:12:5: slots[4]: both 'layer' and 'layers'
  fix: write layers: 0-7, or layer: 3 for a single one
x.yaml:13:17: bridges.kind: unknown bridge kind 'lin'
  fix: did you mean 'linear'? (known: block, identity, linear, lowrank)
x.yaml:13:29: bridges.where: unknown where 'all'
  fix: known: auto, changes, width-changes, none, or a list of slots
x.yaml:14:9: target: unknown target 'natve'
  fix: did you mean 'native'? (known: auto, native, hybrid)
x.yaml:15:13: shard_size: '5' is not a size
  fix: write 5GB, say; units: KB, MB, GB, KiB, MiB, GiB"""
    )


def test_mistakes_in_calibration_have_their_places(tmp_path: Path) -> None:
    text = """\
donors: {a: {model: x}}
slots: [{from: a, layer: 1}]
calibration:
  lenght: 512
  tokens: 0
  length: 4
  data:
    - texts/code.txt
    - {name: code, files: [src/*.py, more/*.txt], weight: 0}
    - {name: chat, file: x}
    - {files: a.txt, dataset: org/b, weight: x}
    - {files: other/code.txt, split: test}
    - {files: [], subset: en, revision: abc}
    - {dataset: org/name, files: [3]}
    - {dataset: org/web, feild: x}
    - 3
  stream: donors
  measure: 0
"""
    known = "(known: name, files, dataset, subset, revision, split, field, weight)"
    assert (
        complaints(tmp_path, text)
        == f"""\
x.yaml:4:3: calibration.lenght: unknown key 'lenght'
  fix: did you mean 'length'? (known: data, tokens, length, seed, stream, measure)
x.yaml:5:11: calibration.tokens: tokens 0 is too small
  fix: write 1 or more
x.yaml:6:11: calibration.length: length 4 is too small
  fix: write 8 or more
x.yaml:9:14: calibration.data[1].name: a second domain is called 'code' (first in line 8)
  fix: write another name: {{name: NAME, files: ...}}
x.yaml:9:59: calibration.data[1].weight: weight 0 is too small
  fix: write more than 0
x.yaml:10:7: calibration.data[2]: neither 'files' nor 'dataset'
  fix: write files: FILE-OR-PATTERN, or dataset: HUB-ID
x.yaml:10:20: calibration.data[2].file: unknown key 'file'
  fix: did you mean 'files'? {known}
x.yaml:11:7: calibration.data[3]: both 'files' and 'dataset'
  fix: write files: FILE-OR-PATTERN, or dataset: HUB-ID
x.yaml:11:46: calibration.data[3].weight: input should be a valid number, unable to parse string \
as a number, got 'x'
x.yaml:12:7: calibration.data[4].name: a second domain is called 'code' (first in line 8)
  fix: write another name: {{name: NAME, files: ...}}
x.yaml:12:38: calibration.data[4].split: files have no split
  fix: remove the key split, or write dataset: HUB-ID
x.yaml:13:15: calibration.data[5].files: no files
  fix: write texts/a.txt, a pattern such as src/**/*.py, or a list of both
x.yaml:13:27: calibration.data[5].subset: files have no subset
  fix: remove the key subset, or write dataset: HUB-ID
x.yaml:13:41: calibration.data[5].revision: files have no revision
  fix: remove the key revision, or write dataset: HUB-ID
x.yaml:14:7: calibration.data[6]: both 'files' and 'dataset'
  fix: write files: FILE-OR-PATTERN, or dataset: HUB-ID
x.yaml:14:34: calibration.data[6].files: 3 is not a file
  fix: write texts/a.txt, a pattern such as src/**/*.py, or a list of both
x.yaml:15:26: calibration.data[7].feild: unknown key 'feild'
  fix: did you mean 'field'? {known}
x.yaml:16:7: calibration.data[8]: 3 is not a mapping
  fix: known: name, files, dataset, subset, revision, split, field, weight
x.yaml:17:11: calibration.stream: unknown stream 'donors'
  fix: did you mean 'donor'? (known: hybrid, donor)
x.yaml:18:12: calibration.measure: '0' is neither true, false nor a number of tokens
  fix: write one of these"""
    )


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("texts/prose.txt", "prose"),
        ("{files: chats.jsonl.gz}", "chats"),
        ("{files: [b.txt, a.txt]}", "b"),
        ("'src/**/*.py'", "src"),
        ("'*.txt'", "text"),
        ("../.hidden", ".hidden"),
        ("{dataset: org/web.v2}", "web.v2"),
        ("{files: a.txt, name: 语料}", "语料"),
        ("{files: a.txt, name: ''}", "a"),
    ],
)
def test_a_domain_is_named_after_its_source(tmp_path: Path, entry: str, name: str) -> None:
    text = f"{DONORS}slots: [{{from: a, layer: 1}}]\ncalibration: {{data: [{entry}]}}"
    calibration = read(tmp_path, text).recipe.calibration
    assert calibration is not None
    assert [domain.name for domain in calibration.data] == [name]


DONORS = "donors: {a: {model: x}, b: {model: y}}\n"


@pytest.mark.parametrize(
    ("layers", "picks"),
    [
        ("0-7", list(range(8))),
        ("3", [3]),
        ("[12, 12, 13]", [12, 12, 13]),
        ("[0-2, 5]", [0, 1, 2, 5]),
        ("4 - 5", [4, 5]),
        ("[3, 2, 1]", [3, 2, 1]),
    ],
)
def test_ranges_are_inclusive_lists_repeat_in_any_order(
    tmp_path: Path, layers: str, picks: list[int]
) -> None:
    recipe = read(tmp_path, f"{DONORS}slots: [{{from: a, layers: {layers}}}]").recipe
    assert recipe.slots[0].picks == picks


@pytest.mark.parametrize(
    "layers", ["7-0", "[]", "-1", "0:3", "a", "true", "1.5", "0-99999999", "~"]
)
def test_what_is_no_range_is_refused_in_place(tmp_path: Path, layers: str) -> None:
    """mergekit takes a reversed range silently."""
    text = f"{DONORS}slots: [{{from: a, layers: {layers}}}]"
    assert complaints(tmp_path, text).startswith("x.yaml:2:")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("donors: {a: {model: x}}", "'slots' is missing"),
        (f"{DONORS}slots: []", "'slots' is empty"),
        (f"{DONORS}slots: 3", "slots: input should be a valid list, got 3"),
        (
            f"{DONORS}slots: [{{from: a, layers: 1, mixer: {{from: b, layer: 1}}}}]",
            "one single layer",
        ),
        (f"{DONORS}slots: [{{from: a, layer: 1}}]\nversion: 2", "unknown version '2'"),
        (f"{DONORS}slots: [{{from: a, layer: 1}}]\nname: ../x", "'../x' is not a valid name"),
        (
            f"{DONORS}slots: [{{from: a, layer: 1}}]\nbridges: {{where: [-1]}}",
            "'-1' is not a slot",
        ),
        ("donors: {a b: {model: x}}\nslots: [{from: a b, layer: 1}]", "'a b' is not a valid name"),
        ("donors: {a: {model: x, merge: y}}\nslots: [{from: a, layer: 1}]", "both 'model' and"),
        (
            f"{DONORS}slots: [{{from: a, layer: 1}}]\ncalibration: {{data: []}}",
            "calibration.data: 'data' is empty",
        ),
    ],
)
def test_single_mistakes(tmp_path: Path, text: str, found: str) -> None:
    assert found in complaints(tmp_path, text)


@pytest.mark.parametrize(("old", "new"), CptSpec.RENAMED.items())
def test_a_key_that_was_renamed_is_told_by_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    """Recipes live longer than the names of keys."""
    text = f"donors: {{a: {{model: x}}}}\nslots: [{{from: a, layer: 0}}]\ncpt: {{{old}: 1}}\n"
    found = complaints(tmp_path, text)
    assert found == f"x.yaml:3:7: cpt.{old}: unknown key '{old}'\n  fix: it is called {new}"
    assert new in CptSpec.model_fields


def test_defaults(tmp_path: Path) -> None:
    file = read(tmp_path, f"{DONORS}slots: [{{from: a, layers: 0-1}}]")
    assert file.name == "x"
    assert (file.recipe.target, file.recipe.dtype, file.recipe.shard_size) == (
        "auto",
        "keep",
        5 * 10**9,
    )
    assert file.path("m") == tmp_path / "m"


def test_the_schema_in_docs_is_that_of_the_code() -> None:
    """Editors read docs/recipe.schema.json; `hybridize schema` prints it."""
    assert json.loads((ROOT / "docs/recipe.schema.json").read_text()) == recipe_schema()


def test_the_schema_of_a_trace_in_docs_is_that_of_the_code() -> None:
    assert json.loads((ROOT / "docs/trace.schema.json").read_text()) == trace_schema()


def test_the_schema_knows_every_key() -> None:
    text = json.dumps(recipe_schema())
    for name, field in Recipe.model_fields.items():
        assert f'"{field.alias or name}"' in text
    assert re.search(r'"enum": \["block", "identity", "linear", "lowrank"\]', text)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*Recipe.model_fields, "x"]), yaml_values, min_size=1, max_size=4
    )
)
def test_any_mapping_is_a_recipe_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(json.dumps(data))
    with suppress(HybridizeError):
        load_recipe(file)

"""Which tensors a policy trains: an exact list, in the model's order, with no surprise in it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from transformers import PreTrainedModel

from hybridize.cpt.plan.model_tensors import ModelTensors, Tensor, read_model_tensors
from hybridize.cpt.plan.policy import Entry, Policy, auto, resolve
from hybridize.cpt.plan.policy_words import difference, policy_table
from hybridize.cpt.trainable.patterns import matches
from hybridize.errors import HybridizeError
from hybridize.plugins import load_plugin, plugin_names
from tests.support.stacks import build_in, load, save_donor
from tests.support.tiny import FAMILIES

KINDS = plugin_names("freeze")
#: A value for each kind that takes one.
VALUES: dict[str, Any] = {
    "shallow": 0.25,
    "deep": 2,
    "mid": 3,
    "slots": ["0-1", 5],
    "donor": "wide",
    "patterns": ["model.layers.*.*.*.weight", "lm_head.weight"],
}
#: Families whose names on disk are not those in memory, and why.
RENAMED = {
    "mixtral": "experts one by one, in a module of another name",
    "qwen3_moe": "experts one by one",
    "deepseek_v3": "experts one by one",
    "qwen3_next": "experts one by one",
    "kimi_linear": "experts one by one",
    "jamba": "experts one by one",
    "gpt_neox": "embed_out",
    "olmo_hybrid": "norms of another name, convolutions one by one",
    "granitemoehybrid": "experts in a module of another name",
    "nemotron_h": "another prefix, and experts one by one",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Donors, and two hybrids of them.

    `out`: a mixer of another width swapped into slot 1, a block bridge with its layer in slot 4.
    `plain`: a linear bridge before slot 2, and one before the head.
    """
    path = tmp_path_factory.mktemp("policy")
    save_donor(path / "host", "llama")
    save_donor(path / "wide", "qwen3", seed=2, hidden_size=48)
    save_donor(path / "deep", "llama", seed=3, num_hidden_layers=12)
    save_donor(path / "tied", "gpt2", seed=4)
    donors = {name: {"model": name} for name in ("host", "wide")}
    swap = {"from": "host", "layer": 1, "mixer": {"from": "wide", "layer": 2}}
    slots: list[dict[str, Any]] = [
        {"from": "host", "layer": 0}, swap, {"from": "host", "layers": "2-3"},
        {"from": "wide", "layers": "2-3"},
    ]  # fmt: skip
    block = {"kind": "block", "init": "random", "norm": True}
    build_in(path, {"donors": donors, "slots": slots, "bridges": block})
    ends = [{"from": "host", "layers": "0-1"}, {"from": "wide", "layers": "2-3"}]
    bridges = {"init": "random", "where": [2, "head"]}
    build_in(path, {"donors": donors, "slots": ends, "head": "host", "bridges": bridges}, "plain")
    return path


@pytest.fixture(scope="module")
def hybrid(folder: Path) -> ModelTensors:
    return read_model_tensors(folder / "out")


@pytest.fixture(scope="module")
def deep(folder: Path) -> ModelTensors:
    return read_model_tensors(folder / "deep")


def entry(kind: str) -> Entry:
    return {kind: VALUES[kind]} if kind in VALUES else kind


def trained(stack: ModelTensors, *entries: Entry) -> list[str]:
    return [tensor.name for tensor in resolve(stack, entries).trained]


def slots_of(policy: Policy) -> set[int | None]:
    return {tensor.slot for tensor in policy.trained}


def error_of(stack: ModelTensors, *entries: Any) -> str:
    with pytest.raises(HybridizeError) as caught:
        resolve(stack, entries)
    return str(caught.value)


def printed(what: RenderableType) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(what)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


# ---- every kind --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(hybrid: ModelTensors, kind: str) -> None:
    """Whoever adds a kind: a file with a title, a value's description, and names in order."""
    plugin = load_plugin("freeze", kind)
    assert plugin.TITLE
    assert isinstance(plugin.VALUE, str)
    assert bool(plugin.VALUE) == (kind in VALUES)
    names = plugin.names(hybrid, VALUES.get(kind))
    known = [tensor.name for tensor in hybrid.tensors]
    assert names
    assert names == [name for name in known if name in set(names)]
    assert len(names) == len(set(names))
    assert (plugin.__doc__ or "").startswith(f"Train `{kind}`: ")


def test_kinds_train_what_they_are_called_after(hybrid: ModelTensors) -> None:
    model = "model.layers."
    assert trained(hybrid, "embeddings") == ["model.embed_tokens.weight"]
    assert trained(hybrid, "head") == ["lm_head.weight"]
    assert slots_of(resolve(hybrid, [{"shallow": 0.25}])) == {0, 1}  # of 7
    assert slots_of(resolve(hybrid, [{"deep": 3}])) == {4, 5, 6}
    assert slots_of(resolve(hybrid, [{"mid": 3}])) == {2, 3, 4}
    assert slots_of(resolve(hybrid, [{"mid": 2}])) == {2, 3}
    assert slots_of(resolve(hybrid, [{"slots": "5-6"}])) == {5, 6}
    assert slots_of(resolve(hybrid, [{"shallow": 0.01}])) == {0}
    bridges = resolve(hybrid, ["bridges"])
    assert slots_of(bridges) == {None, 1, 4}
    assert {t.name.split("proj")[0] for t in bridges.trained if "proj" in t.inner[-11:]} >= {
        f"{model}1.self_attn.enter.", f"{model}1.self_attn.leave.", "model.bridges.4.",
    }  # fmt: skip
    norms = trained(hybrid, "norms")
    assert "model.norm.weight" in norms
    assert f"{model}1.self_attn.module.q_norm.weight" in norms
    assert not any("bridges" in name or ".enter." in name for name in norms)
    donor = trained(hybrid, {"donor": "wide"})
    assert {name.split(".self_attn.module.")[0] for name in donor if ".1." in name} == {f"{model}1"}
    assert {int(name.split(".")[2]) for name in donor} == {1, 5, 6}  # 4 is a bridging layer


def test_what_entries_name_adds_up(hybrid: ModelTensors) -> None:
    one, other = trained(hybrid, "bridges"), trained(hybrid, {"shallow": 0.25})
    both = trained(hybrid, "bridges", {"shallow": 0.25})
    assert set(both) == set(one) | set(other)
    assert both == trained(hybrid, {"shallow": 2}, "bridges", "bridges")
    policy = resolve(hybrid, ["full"])
    assert policy.frozen == ()
    half = resolve(hybrid, ["bridges", {"shallow": 0.25}])
    assert {*half.trained, *half.frozen} == set(hybrid.tensors)
    assert half.num_trained + half.num_frozen == hybrid.num_parameters == policy.num_trained
    assert set(half.roles.values()) == {"bridge", "slot"}


# ---- stacks ------------------------------------------------------------------------------------


def test_a_hybrid_is_seen_as_it_was_built(hybrid: ModelTensors, folder: Path) -> None:
    assert hybrid.donors == ("host",) * 4 + ("wide",) * 3
    assert hybrid.bridges == {"1.self_attn.enter": 1, "1.self_attn.leave": 1, "4": 4}
    assert hybrid.made == (4,)
    assert (hybrid.tied, hybrid.width, hybrid.vocabulary) == (False, 32, 64)
    plain = read_model_tensors(folder / "plain")
    assert plain.bridges == {"2": 2, "head": 4}
    order = [plain.position(tensor) for tensor in plain.tensors]
    assert order == sorted(order)
    assert plain.tensors[0].role == "embeddings"
    assert [tensor.role for tensor in plain.tensors[-4:]] == ["bridge", "bridge", "norm", "head"]


def test_a_tied_matrix_stands_there_once(folder: Path) -> None:
    stack = read_model_tensors(folder / "tied")
    assert stack.tied
    assert trained(stack, "embeddings") == ["transformer.wte.weight"]
    positions = stack.by_name["transformer.wpe.weight"]
    assert positions.role == "other"
    assert trained(stack, "norms")[-2:] == ["transformer.ln_f.bias", "transformer.ln_f.weight"]
    assert "embeddings and head (tied)" in printed(policy_table(resolve(stack, ["embeddings"])))


def test_a_native_model_knows_its_donors_if_hybridize_built_it(folder: Path) -> None:
    recipe = {
        "donors": {"a": {"model": "host"}, "b": {"model": "deep"}},
        "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "10-11"}],
        "bridges": {"where": "none"},
    }
    stack = read_model_tensors(build_in(folder, recipe, "native").folder)
    assert stack.donors == ("a", "a", "b", "b")
    assert slots_of(resolve(stack, [{"donor": "b"}])) == {2, 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_the_loaded_model(tmp_path: Path, family: str) -> None:
    """Whoever freezes by the list: a parameter that it misses would silently learn, or not."""
    save_donor(tmp_path, family)
    stack, model = read_model_tensors(tmp_path), load(tmp_path)
    parameters = {n: tuple(p.shape) for n, p in model.named_parameters()}
    full = resolve(stack, ["full"])
    assert full.num_trained == sum(math.prod(shape) for shape in parameters.values())
    if family not in RENAMED:
        assert {t.name: t.shape for t in full.trained} == parameters
        assert set(trained(stack, "norms")) == norm_parameters(model)


@pytest.mark.parametrize("name", ["out", "plain"])
def test_names_are_those_of_the_loaded_hybrid(folder: Path, name: str) -> None:
    model = load(folder / name)
    full = resolve(read_model_tensors(folder / name), ["full"])
    parameters = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert {t.name: t.shape for t in full.trained} == parameters


def norm_parameters(model: PreTrainedModel) -> set[str]:
    """By the classes of the modules."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }


def test_a_hybrid_with_slots_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    config = (folder / "plain" / "config.json").read_text()
    (tmp_path / "model.safetensors").hardlink_to(folder / "plain" / "model.safetensors")
    (tmp_path / "config.json").write_text(config.replace('"slots": [', '"slots": [{},'))
    with pytest.raises(HybridizeError) as caught:
        read_model_tensors(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: config.json says 5 slots, the tensors are of 4\n"
        "  fix: copy the model again, whole"
    )


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(HybridizeError):
        read_model_tensors(tmp_path)


# ---- prefix ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "first", "prefix"),
    [
        (["embeddings"], 0, None),
        (["full"], 0, None),
        ([{"slots": 0}], 0, "embeddings"),
        ([{"slots": "1-2"}], 1, "embeddings and slot 0"),
        (["bridges"], 2, "embeddings and slots 0-1"),
        ([{"patterns": "model.bridges.head.*.*"}], 4, "embeddings and slots 0-3"),
        (["head"], 4, "embeddings and slots 0-3"),
        (["head", {"deep": 1}], 3, "embeddings and slots 0-2"),
    ],
)
def test_what_comes_before_anything_learns_needs_no_autograd(
    folder: Path, entries: list[Entry], first: int, prefix: str | None
) -> None:
    policy = resolve(read_model_tensors(folder / "plain"), entries)
    assert (policy.first_trained_slot, policy.prefix) == (first, prefix)


def test_learned_positions_leave_no_prefix(folder: Path) -> None:
    policy = resolve(read_model_tensors(folder / "tied"), [{"patterns": "transformer.wpe.*"}])
    assert (policy.first_trained_slot, policy.prefix) == (0, None)


# ---- patterns ----------------------------------------------------------------------------------


def test_a_pattern_is_anchored(deep: ModelTensors) -> None:
    """Whoever trains layer 1: as a part of a name, `.1.` hits other layers' experts, and 11."""
    assert slots_of(resolve(deep, [{"patterns": "model.layers.1.*.weight"}])) == {1}
    assert slots_of(resolve(deep, [{"patterns": "model.layers.1.**"}])) == {1}
    assert slots_of(resolve(deep, [{"patterns": "model.layers.1?.**"}])) == {10, 11}
    assert slots_of(resolve(deep, [{"patterns": "model.layers.[2-4].mlp.*.weight"}])) == {2, 3, 4}
    assert len(trained(deep, {"patterns": "model.layers.1.*.weight"})) == 2  # its two norms
    assert len(trained(deep, {"patterns": "model.layers.*.mlp.up_proj.weight"})) == 12
    assert "matches no tensor" in error_of(deep, {"patterns": "layers.1.**"})
    assert "matches no tensor" in error_of(deep, {"patterns": "model.layers.1"})


@pytest.mark.parametrize(
    ("regex", "glob"),
    [
        ("model.layers.[0-9]+.self_attn", "model.layers.*.self_attn.**"),
        (r"^model\.layers\.1[01]\.", "model.layers.1[01].**"),
        ("model.layers.2[0-9]*.mlp.*", "model.layers.2*.mlp**"),
        ("^lm_head.weight$", "lm_head.weight"),
        (r"^model\.embed_tokens\.weight$", "model.embed_tokens.weight"),
        (r"model\.layers\.\d+\.mlp\.up_proj\.weight$", "model.layers.*.mlp.up_proj.weight"),
        (r".*\.(q|k)_proj\.weight", None),
        (r"(a+)+$", None),
        (r"self_attn\.q_proj", None),  # found anywhere, but not where axolotl looks
    ],
)
def test_a_regular_expression_is_told_as_a_glob_where_that_is_sure(
    deep: ModelTensors, regex: str, glob: str | None
) -> None:
    said = error_of(deep, {"patterns": regex})
    assert said.startswith(
        f"train[0]: '{regex}' matches no tensor: patterns are globs, no regular expressions\n"
    )
    if glob is None:
        assert said.endswith("\n  fix: * stays within one part of a name, ** does not")
        return
    assert said.endswith(f"\n  fix: write '{glob}'")
    names = {tensor.name for tensor in deep.tensors}
    assert set(trained(deep, {"patterns": glob})) == {n for n in names if re.match(regex, n)}


NAME = st.lists(st.sampled_from(["model", "layers", "1", "11", "w", "é"]), min_size=1).map(".".join)


@given(NAME)
def test_a_name_matches_itself_and_stars_for_its_words(name: str) -> None:
    words = name.split(".")
    assert matches(name, name)
    assert matches("**", name)
    assert matches(".".join("*" * len(words)), name)
    assert not matches(".".join("*" * (len(words) + 1)), name)
    assert not matches(name, f"{name}.more")
    assert not matches(name, f"x{name}")
    for i in range(len(words)):
        assert matches(".".join([*words[:i], "*", *words[i + 1 :]]), name)


@given(st.text("ab.*?[]!-0129\\^(", max_size=12), NAME)
def test_any_pattern_is_decided(pattern: str, name: str) -> None:
    """What stands for one word alone can never reach over a dot."""
    hit = matches(pattern, name)
    if "**" not in pattern and hit:
        assert pattern.count(".") == name.count(".")
    if not re.search(r"[*?\[]", pattern):
        assert hit == (pattern == name)


@given(st.lists(st.text(max_size=8), max_size=3))
def test_any_list_of_patterns_ends_in_names_or_a_clear_error(patterns: list[str]) -> None:
    assert names_or_clear_error({"patterns": patterns})


@given(st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.none(), st.booleans()))
def test_any_value_ends_in_names_or_a_clear_error(value: Any) -> None:
    assert all(names_or_clear_error({kind: value}) for kind in VALUES)


def names_or_clear_error(entry: Entry) -> bool:
    """On a stack of three tensors."""
    stack = ModelTensors(
        folder=Path("x"),
        tensors=(
            Tensor("wte", (4, 2), "F32", "embeddings"),
            Tensor("h.0.w", (2, 2), "F32", "slot", 0),
            Tensor("h.1.w", (2, 2), "F32", "slot", 1),
        ),
        donors=(None, None),
        bridges={},
        made=(),
        tied=True,
        width=2,
        vocabulary=4,
        config={},
    )
    try:
        return bool(trained(stack, entry))
    except HybridizeError as error:
        return all(f.place == "train[0]" and f.fix for f in error.findings)


# ---- errors ------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once(deep: ModelTensors) -> None:
    entries: list[Any] = [
        "bridges", {"shallow": 0}, {"shallow": 1.5}, {"deep": 13}, "shalow", "mid", {"head": 1},
        {"a": 1, "b": 2}, {"slots": "3-1"}, {"slots": [4, 12]}, {"donor": "host"}, "model.*.weight",
        {"patterns": ["model.layers.0.mlp.up.weight", "lm_head.weight", "[3-0]"]}, {"patterns": 3},
    ]  # fmt: skip
    neither = "is neither a share of the slots nor a number of them"
    fix = "a share lies between 0 and 1, such as 0.25; a number is whole and at most 12, the depth "
    known = ", ".join(KINDS)
    text = error_of(deep, *entries)
    assert text.startswith(
        "train[0]: this model has no bridges\n"
        "  fix: train slots: shallow, deep, mid, slots or donor; or build it with bridges "
        "(bridges: where: changes)\n"
        f"train[1]: 0 {neither}\n"
        f"train[2]: 1.5 {neither}\n"
        f"train[3]: 13 {neither}\n"
        f"  fix: {fix}of this model\n"
        "train[4]: unknown freeze policy 'shalow'\n"
        f"  fix: did you mean 'shallow'? (known: {known})\n"
        "train[5]: mid needs a value\n"
        "  fix: write mid: a share of the slots, such as 0.25, or a number of slots, such as 4\n"
        "train[6]: head takes no value\n"
        "  fix: write head alone\n"
        "train[7]: {'a': 1, 'b': 2} is not a freeze policy\n"
        "  fix: write a kind such as bridges, or one with its value: {shallow: 0.25}\n"
        "train[8]: the range 3-1 is reversed\n"
        "  fix: write 1-3\n"
        "train[9]: there is no slot 12: the model has 12\n"
        "  fix: its slots are 0-11, counted from 0, inclusive at both ends\n"
        "train[10]: this model's folder does not say which donors its slots are from\n"
        "  fix: name the slots: slots: 0-3\n"
        "train[11]: unknown freeze policy 'model.*.weight'\n"
        "  fix: to name tensors, write patterns: ['model.*.weight']\n"
        "train[12]: 'model.layers.0.mlp.up.weight' matches no tensor\n"
        "  fix: did you mean 'model.layers.0.mlp.up_proj.weight'? (known: "
    )
    assert text.endswith(
        "train[13]: 3 is not a list of patterns\n"
        "  fix: write a pattern such as model.layers.3.*.weight, or a list of them"
    )
    assert "\ntrain[12]: '[3-0]' matches no tensor\n" in text


def test_a_donor_that_is_not_there_is_an_error(hybrid: ModelTensors) -> None:
    assert error_of(hybrid, {"donor": "hots"}) == (
        "train[0]: no slot holds anything of a donor 'hots'\n"
        "  fix: did you mean 'host'? (known: host, wide)"
    )


def test_a_tied_head_alone_is_an_error(folder: Path) -> None:
    assert error_of(read_model_tensors(folder / "tied"), "head") == (
        "train[0]: this model's head is tied to its embedding\n"
        "  fix: write embeddings: that trains the matrix in both places"
    )


def test_a_policy_that_trains_nothing_is_an_error(deep: ModelTensors) -> None:
    assert error_of(deep) == (
        f"train: this policy trains nothing\n  fix: train one or several of {', '.join(KINDS)}"
    )


def test_what_cannot_learn_is_told_apart(tmp_path: Path) -> None:
    """A router's balance is among the weights, but no parameter: the optimizer never sees it."""
    stack = read_model_tensors(save_donor(tmp_path, "deepseek_v3"))
    assert not any("correction" in name for name in trained(stack, "full"))
    assert error_of(stack, {"patterns": "**.e_score_correction_bias"}) == (
        "train[0]: '**.e_score_correction_bias' matches only what cannot learn\n"
        "  fix: model.layers.2.mlp.gate.e_score_correction_bias is a constant of the model, or "
        "not in floating point"
    )


def test_errors_name_the_place_in_the_recipe(deep: ModelTensors) -> None:
    with pytest.raises(HybridizeError) as caught:
        resolve(deep, ["head", "hed"], place=lambda i: f"x.yaml:{i + 3}:5: cpt.train[{i}]")
    assert str(caught.value).startswith("x.yaml:4:5: cpt.train[1]: unknown freeze policy 'hed'\n")


# ---- plans -------------------------------------------------------------------------------------


def test_the_table_shows_parts_and_ranges(hybrid: ModelTensors) -> None:
    assert printed(policy_table(resolve(hybrid, ["bridges", {"slots": 0}, {"deep": 1}]))) == (
        "part                           tensors  parameters    bytes\n"
        "embeddings            frozen         1       2,048  8.19 kB\n"
        "slot 0 (host)         trained        9       7,744    31 kB\n"
        "bridges in slot 1     trained        6       3,232  12.9 kB\n"
        "slots 1-3 (host)      frozen        29      24,784  99.1 kB\n"
        "bridge before slot 4  trained        3       1,616  6.46 kB\n"
        "slot 4 (bridge)       trained       11      11,632  46.5 kB\n"
        "slot 5 (wide)         frozen        11      11,632  46.5 kB\n"
        "slot 6 (wide)         trained       11      11,632  46.5 kB\n"
        "final norm            frozen         1          48    192 B\n"
        "head                  frozen         1       3,072  12.3 kB\n"
        "\n"
        "trained: 35,856 of 77,440 parameters (46.3%), 40 tensors\n"
        "without autograd, as a frozen prefix: embeddings"
    )


def test_slots_that_learn_in_part_have_two_rows(deep: ModelTensors) -> None:
    rows = printed(policy_table(resolve(deep, ["norms"]))).splitlines()
    assert [row.split("  ")[0] for row in rows[1:4]] == ["embeddings", "slots 0-11", "slots 0-11"]
    assert rows[-1] == "without autograd, as a frozen prefix: embeddings"


def test_a_plan_is_the_same_however_it_was_asked_for(deep: ModelTensors) -> None:
    one = resolve(deep, [{"shallow": 0.25}]).as_dict()
    other = resolve(deep, [{"slots": "0-2"}]).as_dict()
    assert one["blake3"] == other["blake3"]
    assert one["trained"] == other["trained"]
    assert difference(one, other) == ""
    third = resolve(deep, [{"shallow": 2}]).as_dict()
    assert one["blake3"] != third["blake3"]


def test_a_plan_that_differs_is_told_by_slots(hybrid: ModelTensors) -> None:
    one = resolve(hybrid, [{"shallow": 3}, "bridges"]).as_dict()
    other = resolve(hybrid, [{"deep": 2}, {"slots": 0}, "head"]).as_dict()
    assert difference(one, other) == (
        "only the checkpoint trains:\n"
        "  slot 1: 17 tensors: self_attn.enter.norm.weight, self_attn.enter.proj.bias, "
        "self_attn.enter.proj.weight, ...\n"
        "  slot 2: 9 tensors: input_layernorm.weight, mlp.down_proj.weight, mlp.gate_proj.weight, "
        "...\n"
        "  bridges: 3 tensors: model.bridges.4.norm.weight, model.bridges.4.proj.bias, "
        "model.bridges.4.proj.weight\n"
        "  slot 4: 11 tensors: input_layernorm.weight, mlp.down_proj.weight, "
        "mlp.gate_proj.weight, ...\n"
        "only this run trains:\n"
        "  slots 5-6: 11 tensors each (22): input_layernorm.weight, mlp.down_proj.weight, "
        "mlp.gate_proj.weight, ...\n"
        "  head: 1 tensor: lm_head.weight"
    )
    other = {"trained": [{**one["trained"][0], "shape": [1]}, *one["trained"][1:]]}
    assert difference(one, other, names=("A", "B")) == (
        "model.layers.0.input_layernorm.weight has shape [32] in A, [1] in B"
    )


# ---- auto --------------------------------------------------------------------------------------


def a_trace(stack: ModelTensors, slots: int | None = 2, **model: Any) -> dict[str, Any]:
    sizes = [0] * stack.depth
    for tensor in stack.tensors:
        if tensor.slot is not None:
            sizes[tensor.slot] += tensor.numel
    boundary = None if slots is None else {"slots": slots, "why": "slots 0-1 hold 60%"}
    return {
        "model": {"name": "m", "source": "elsewhere", **model},
        "slots": [{"parameters": size} for size in sizes],
        "boundary": boundary,
    }


def test_auto_follows_the_trace_and_says_that_it_is_a_prior(
    hybrid: ModelTensors, deep: ModelTensors
) -> None:
    document = {"format": 2, "models": [a_trace(deep), a_trace(hybrid, slots=3)]}
    prior = auto(document, hybrid)
    assert prior.entries == ["bridges", {"shallow": 3}]
    assert prior.reason == "prior, not measured: slots 0-1 hold 60%"
    assert auto(document, deep).entries == [{"shallow": 2}]


def test_auto_tells_twins_apart_by_their_folder(deep: ModelTensors) -> None:
    twins = [a_trace(deep, 1), a_trace(deep, 5, source=str(deep.folder), name="n")]
    assert auto({"format": 2, "models": twins}, deep).entries == [{"shallow": 5}]


@pytest.mark.parametrize(
    ("which", "found"),
    [
        ("format", "this is not a trace that this version of hybridize reads"),
        ("boundary", "the trace puts no freeze boundary: no slot was found to be sensitive"),
        ("other", "the trace has no diagnosis of {folder}: its models are m"),
        ("twins", "several models of the trace could be {folder}: m, n"),
    ],
)
def test_auto_refuses_a_trace_that_cannot_say(
    hybrid: ModelTensors, deep: ModelTensors, which: str, found: str
) -> None:
    models = {
        "format": [],
        "boundary": [a_trace(deep, None)],
        "other": [a_trace(hybrid)],
        "twins": [a_trace(deep), a_trace(deep, name="n")],
    }[which]
    with pytest.raises(HybridizeError) as caught:
        auto({"format": 1 if which == "format" else 2, "models": models}, deep)
    (finding,) = caught.value.findings
    assert finding.found == found.format(folder=deep.folder)
    assert finding.fix


def test_every_kind_is_documented() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "freeze.md").read_text(encoding="utf-8")
    table = page.split("## Kinds\n")[1].split("## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)[`:]", table, re.MULTILINE)) == KINDS

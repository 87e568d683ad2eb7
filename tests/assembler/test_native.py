"""A stack that is called native is that stack: same layers, same inputs, same logits."""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name

from hybridize.architectures.native import NotExpressible, _shortest_period, obstacle, rewrite_depth
from hybridize.architectures.refused import refusal
from hybridize.assembler.worker.proof import LAYER_NUMBERS, NativeProof, prove_native
from tests.support.by_hand import IDS, MASK, Picks, by_hand, parts
from tests.support.tiny import DEPTH, FAMILIES, all_causal_types, tiny_config, tiny_model

MASK[0, :3] = 0  # left padding

IDENTITY = [0, 1, 2, 3]
REVERSED = [3, 2, 1, 0]
REPEATED = [0, 1, 1, 2, 3, 3]
TRUNCATED = [1, 2]

OTHERS = [name for name in all_causal_types() if name not in FAMILIES and refusal(name) is None]

NO_ATTENTION = "can only be called on Attention layers"

# Stacks of a family that are no native model, and a piece of the true reason.
REFUSED = {
    ("deepseek_v3", "reversed"): "first_k_dense_replace makes the lowest layers dense, but slot 3",
    ("jamba", "repeated"): "attn_layer_period and attn_layer_offset can state a period only",
}


def prove(
    donors: Mapping[str, PreTrainedModel], picks: Picks, embeddings: str, head: str, tied: bool
) -> NativeProof:
    configs = {name: json.loads(m.config.to_json_string()) for name, m in donors.items()}
    return prove_native(configs, picks, embeddings=embeddings, head=head, tied=tied)


def native(
    donors: Mapping[str, PreTrainedModel], picks: Picks, embeddings: str, head: str
) -> PreTrainedModel:
    """The native model that the proof promises, filled from the donors' tensors."""
    tied = embeddings == head and getattr(donors[head].config, "tie_word_embeddings", False)
    proof = prove(donors, picks, embeddings, head, tied)
    assert proof.reason is None
    assert proof.config is not None
    fields = CONFIG_MAPPING[proof.config["model_type"]]._decode_special_floats(proof.config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    )
    layers, _, norm = parts(donors[head])
    state = {
        name: tensor
        for name, tensor in donors[embeddings].state_dict().items()
        if not name.startswith((f"{layers}.", f"{norm}.", "lm_head."))
    }
    state |= {
        name: tensor
        for name, tensor in donors[head].state_dict().items()
        if name.startswith((f"{norm}.", "lm_head.", "embed_out."))
    }
    for slot, (donor, layer) in enumerate(picks):
        for name, tensor in parts(donors[donor])[1][layer].state_dict().items():
            state[f"{layers}.{slot}.{name}"] = tensor
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def assert_equal_by_hand(
    donors: Mapping[str, PreTrainedModel], picks: Picks, embeddings: str, head: str
) -> None:
    model = native(donors, picks, embeddings, head)
    logits = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
    assert torch.equal(logits, by_hand(donors, picks, embeddings, head))


@pytest.mark.parametrize("family", FAMILIES)
def test_native_stack_of_one_donor_runs_the_layers_it_names(family: str) -> None:
    """Depth-dependent config fields follow the slots, or the stack is refused for a true reason."""
    donors = {"only": tiny_model(family)}
    stacks = {"identity": IDENTITY, "reversed": REVERSED, "repeated": REPEATED}
    for kind, layers in (stacks | {"truncated": TRUNCATED}).items():
        picks = [("only", layer) for layer in layers]
        if reason := REFUSED.get((family, kind)):
            assert reason in str(prove(donors, picks, "only", "only", False).reason)
        else:
            assert_equal_by_hand(donors, picks, "only", "only")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OTHERS)
def test_native_stacks_of_every_other_type(model_type: str) -> None:
    """The proof is no list of architectures: whatever it lets pass must be equal by hand."""
    donors = {"only": tiny_model(model_type)}
    assert_equal_by_hand(donors, [("only", layer) for layer in IDENTITY], "only", "only")
    for layers in (REVERSED, REPEATED, TRUNCATED):
        picks = [("only", layer) for layer in layers]
        if prove(donors, picks, "only", "only", False).reason is None:
            assert_equal_by_hand(donors, picks, "only", "only")


@pytest.mark.parametrize("family", FAMILIES)
def test_native_stack_of_two_donors_runs_the_layers_it_names(family: str) -> None:
    """Two fine-tunes of one base make one model; embeddings and head may come from either."""
    donors = {"a": tiny_model(family, seed=0), "b": tiny_model(family, seed=1)}
    tied = donors["a"].config.tie_word_embeddings
    for donor in donors.values():
        if tied:  # an untied result needs heads of its own
            donor.config.tie_word_embeddings = False
            head = copy.deepcopy(donor.get_output_embeddings())
            head.weight = nn.Parameter(head.weight.detach().clone())
            donor.set_output_embeddings(head)
    assert_equal_by_hand(donors, [("a", 0), ("b", 1), ("a", 2), ("b", 3)], "a", "b")


def test_identity_keeps_the_donors_config() -> None:
    """The result of an identity recipe is the donor, for every tool that reads config.json."""
    donor = tiny_model("qwen3")
    written = json.loads(donor.config.to_json_string())
    proof = prove({"only": donor}, [("only", i) for i in IDENTITY], "only", "only", False)
    assert proof.config == written | {"architectures": ["Qwen3ForCausalLM"]}


def test_layer_types_follow_shifted_layers_and_another_depth() -> None:
    """mergekit leaves layer_types as they are, and swaps sliding and full attention."""
    for family in ("qwen3", "gemma3_text"):
        donor = tiny_model(family, num_hidden_layers=6, layer_types=SIX)
        layers = [1, 2, 3, 4, 5, 5, 0]
        picks = [("only", layer) for layer in layers]
        assert_equal_by_hand({"only": donor}, picks, "only", "only")
        config = prove({"only": donor}, picks, "only", "only", False).config
        assert config is not None
        assert config["layer_types"] == [SIX[layer] for layer in layers]
        assert config["num_hidden_layers"] == 7


SIX = ["sliding_attention"] * 4 + ["full_attention"] * 2


def test_donors_of_different_depth_and_pattern_make_one_model() -> None:
    """Each slot takes its kind from its own donor, not from the one whose config is rewritten."""
    donors = {
        "deep": tiny_model("gemma3_text", num_hidden_layers=6, layer_types=SIX),
        "flat": tiny_model("gemma3_text", seed=1),
    }
    assert_equal_by_hand(
        donors, [("deep", 4), ("flat", 0), ("deep", 1), ("flat", 3)], "deep", "deep"
    )


def test_a_config_without_layer_types_is_read_through_its_class() -> None:
    """Configs on the hub are older than most fields."""
    raw = json.loads(tiny_config("qwen2", layer_types=None, max_window_layers=2).to_json_string())
    expected = raw.pop("layer_types")
    raw |= {"rope_theta": 500.0}
    del raw["rope_parameters"]
    proof = prove_native({"a": raw}, [("a", 3), ("a", 0)], embeddings="a", head="a", tied=True)
    assert proof.config is not None
    assert proof.config["layer_types"] == [expected[3], expected[0]]
    assert proof.config["rope_parameters"]["rope_theta"] == 500.0
    assert proof.config["tie_word_embeddings"] is True


def test_written_config_says_nothing_of_the_donor_that_is_untrue_of_the_stack() -> None:
    """Remote code of the donor is not copied, so config.json must not ask for it."""
    raw = json.loads(tiny_config("phi3").to_json_string())
    raw |= {
        "_name_or_path": "someone/phi",
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "architectures": ["Phi3Model"],
        "custom": 1,
    }
    proof = prove_native({"a": raw}, [("a", 0)], embeddings="a", head="a", tied=False)
    assert proof.config is not None
    assert proof.config["architectures"] == ["Phi3ForCausalLM"]
    assert not {"auto_map", "_name_or_path"} & set(proof.config)
    assert proof.config["custom"] == 1
    assert list(proof.config) == sorted(proof.config)


DISAGREEMENTS: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        "rope_parameters.rope_theta",
    ),
    ("llama", {"rms_norm_eps": 0.25}, "rms_norm_eps"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
    ("llama", {"hidden_size": 48, "head_dim": 8}, "hidden_size"),
    ("llama", {"intermediate_size": 64}, "intermediate_size"),
    ("llama", {"attention_dropout": 0.5}, "attention_dropout"),
    ("mistral", {"sliding_window": 6}, "sliding_window"),
    ("mistral", {"sliding_window": None}, "sliding_window"),
    ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar"),
    ("gemma2", {"attn_logit_softcapping": 3.0}, "attn_logit_softcapping"),
    ("granite", {"embedding_multiplier": 7.0}, "embedding_multiplier"),
    ("granite", {"attention_multiplier": 7.0}, "attention_multiplier"),
    ("granite", {"residual_multiplier": 7.0}, "residual_multiplier"),
    ("granite", {"logits_scaling": 7.0}, "logits_scaling"),
    ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
    ("mamba2", {"chunk_size": 4}, "chunk_size"),
    ("llama", {"an_unheard_of_field": 1}, "an_unheard_of_field"),
]


@pytest.mark.parametrize(("family", "change", "field"), DISAGREEMENTS, ids=lambda v: str(v)[:40])
def test_donors_that_disagree_are_refused_by_field(
    family: str, change: dict[str, Any], field: str
) -> None:
    """A layer under another rotary base, window or multiplier is another layer."""
    configs = {
        "a": json.loads(tiny_config(family).to_json_string()),
        "b": json.loads(tiny_config(family, **change).to_json_string()),
    }
    picks = [("a", 0), ("b", 1)]
    reason = prove_native(configs, picks, embeddings="a", head="a", tied=False).reason
    assert reason is not None
    assert reason.startswith(f"{field} differs: a has ")
    assert ", b has " in reason
    if field != "an_unheard_of_field":  # both files state it, so the plan sees it, without torch
        assert obstacle(configs) == reason


def test_an_old_and_a_new_spelling_of_another_rotary_base_are_refused() -> None:
    """The plan cannot see it; the proof reads both through their class."""
    new = json.loads(tiny_config("llama").to_json_string())
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {"rope_theta": 77.0}
    assert obstacle({"old": old, "new": new}) is None
    proof = prove_native(
        {"old": old, "new": new}, [("old", 0), ("new", 1)], embeddings="old", head="new", tied=False
    )
    assert proof.reason == "rope_parameters.rope_theta differs: old has 77.0, new has 10000.0"


def test_reasons_name_donors_and_values() -> None:
    """Golden texts of the reasons that a plan prints."""
    llama, mamba = ({"model_type": kind} for kind in ("llama", "mamba"))
    assert obstacle({"x": llama, "y": mamba}) == 'model_type differs: x has "llama", y has "mamba"'
    assert (
        obstacle({"x": llama | {"a": 1}, "y": llama | {"a": [2]}})
        == "a differs: x has 1, y has [2]"
    )
    assert obstacle({"x": {"model_type": "gemma3", "text_config": {}}}) == (
        "x is a multimodal model: its language model's config is nested (text_config)"
    )
    assert obstacle({"x": llama}) is None


def test_context_length_matters_only_where_rotary_frequencies_depend_on_it() -> None:
    """Instruction-tuned models often state another length than their base."""
    base = json.loads(tiny_config("llama").to_json_string())
    tuned = base | {"max_position_embeddings": 128}
    picks = [("base", 0), ("tuned", 1)]
    proof = prove_native(
        {"base": base, "tuned": tuned}, picks, embeddings="base", head="base", tied=False
    )
    assert proof.reason is None
    scaled = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    base, tuned = ({**config, "rope_parameters": scaled} for config in (base, tuned))
    proof = prove_native(
        {"base": base, "tuned": tuned}, picks, embeddings="base", head="base", tied=False
    )
    assert proof.reason == "max_position_embeddings differs: base has 64, tuned has 128"


def test_a_window_that_is_switched_off_decides_nothing() -> None:
    """Qwen2.5 and its relatives state different windows, and use none."""
    base = json.loads(tiny_config("qwen2", use_sliding_window=False).to_json_string())
    del base["layer_types"]
    configs = {"base": base | {"sliding_window": 128}, "tuned": base | {"sliding_window": 4096}}
    picks = [("base", 0), ("tuned", 1)]
    assert obstacle(configs) is None
    proof = prove_native(configs, picks, embeddings="base", head="base", tied=True)
    assert proof.reason is None


def test_layers_that_predict_further_tokens_are_not_promised() -> None:
    """They lie above the stack in the donor's files and are not copied."""
    config = tiny_config("deepseek_v3", num_nextn_predict_layers=1).to_dict()
    new = rewrite_depth(config, [("a", 0), ("a", 3)], {"a": config})
    assert new["num_nextn_predict_layers"] == 0


def test_vocabularies_of_embeddings_and_head_must_be_equal() -> None:
    """A donor that gives layers only may have any vocabulary."""
    configs = {
        "a": json.loads(tiny_config("llama").to_json_string()),
        "b": json.loads(tiny_config("llama", vocab_size=80).to_json_string()),
    }
    picks = [("a", 0), ("b", 1)]
    assert prove_native(configs, picks, embeddings="a", head="a", tied=False).reason is None
    refused = prove_native(configs, picks, embeddings="a", head="b", tied=False).reason
    assert refused == "vocab_size differs: the embeddings of a have 64 tokens, the head of b 80"


def test_a_scale_that_grows_with_depth_is_seen() -> None:
    """GPT-2 can divide attention by the number of the layer: no config field names it by layer."""
    donor = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    moved = prove({"only": donor}, [("only", 1), ("only", 0)], "only", "only", False)
    assert str(moved.reason).startswith("slot 0 would not be layer 1 of only: attn.scaling is")
    assert prove({"only": donor}, [("only", 0), ("only", 1)], "only", "only", False).config


def test_stacks_that_their_class_cannot_run_are_refused() -> None:
    """transformers cannot run, or does not allow, some stacks that it can describe."""
    for family, reason in (("qwen3_next", NO_ATTENTION), ("olmo_hybrid", "at least one attention")):
        proof = prove({"only": tiny_model(family)}, [("only", 0)], "only", "only", False)
        assert reason in str(proof.reason)


def test_a_class_that_cannot_tie_is_not_asked_to() -> None:
    """Else the written model would look for a head that is not there."""
    inkling = tiny_config("inkling_text").to_dict()
    proof = prove_native({"a": inkling}, [("a", 0)], embeddings="a", head="a", tied=True)
    assert proof.reason == "InklingForCausalLM cannot tie head and embedding"


def test_unknown_types_are_refused() -> None:
    """The proof is asked for whatever a donor's config.json says."""
    for model_type, reason in (("warp", "knows no model_type warp"), ("vit", "type vit")):
        proof = prove_native(
            {"a": {"model_type": model_type}}, [("a", 0)], embeddings="a", head="a", tied=False
        )
        assert reason in str(proof.reason)


def test_a_period_is_the_shortest_of_all() -> None:
    """For every set of slots, against a search through all periods and offsets."""
    depth = 7
    pairs = [(p, o) for p in range(1, depth + 2) for o in range(p)]
    for bits in range(1 << depth):
        wanted = [slot for slot in range(depth) if bits >> slot & 1]
        fitting = [(p, o) for p, o in pairs if [*range(o, depth, p)] == wanted]
        step, first = _shortest_period(wanted, depth)
        fits = first < step and [*range(first, depth, step)] == wanted
        assert fits == bool(fitting)
        assert not fits or (step, first) == fitting[0]


def test_periods_are_searched() -> None:
    """Jamba states periods: what a permuted stack needs may still be one."""
    jamba = tiny_config("jamba").to_dict()
    for layers, period, offset in (
        ([0, 1, 2, 3], 3, 1),
        ([1, 1, 1], 1, 0),
        ([0, 2, 1], 3, 2),
        ([0, 2], 3, 2),
    ):
        new = rewrite_depth(jamba, [("a", layer) for layer in layers], {"a": jamba})
        assert (new["attn_layer_period"], new["attn_layer_offset"]) == (period, offset)
    with pytest.raises(NotExpressible, match=r"slots 0, 1, 3 follow none"):
        rewrite_depth(jamba, [("a", layer) for layer in (1, 1, 0, 1)], {"a": jamba})


@pytest.mark.slow
def test_no_forward_computes_with_the_number_of_its_layer() -> None:
    """The proof passes over layer numbers; it may, as long as they only address the cache."""
    models = Path(transformers.__file__).parent / "models"
    found = set()
    for name in sorted({model_type_to_module_name(t) for t in all_causal_types()}):
        for file in sorted((models / name).glob("modeling_*.py")):
            for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                    found |= {f"{name}: {line}" for line in arithmetic(function)}
    assert found == {
        "hrm_text: self.layer_idx + cycle_offset",  # an entry of the cache
        "minimax: self.layer_idx / (self.num_hidden_layers - 1 + 1e-05)",  # fills a buffer
        "rwkv: self.layer_id == 0",  # only that layer has the norm that it asks for
    }


def arithmetic(function: ast.FunctionDef) -> list[str]:
    """Where a function computes with, or compares, the number of a layer."""
    return [
        ast.unparse(node)
        for node in ast.walk(function)
        if isinstance(node, (ast.BinOp, ast.Compare))
        for operand in ast.iter_child_nodes(node)
        if isinstance(operand, ast.Attribute) and operand.attr in LAYER_NUMBERS
        if not (isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)))
    ]


@pytest.mark.slow
def test_proofs_do_not_depend_on_the_hash_seed() -> None:
    """mergekit takes configs in set order; the same recipe must give the same bytes."""
    script = (
        "import json; from tests.support.tiny import tiny_config; "
        "from hybridize.assembler.worker.proof import prove_native; "
        "made = lambda t: json.loads(tiny_config(t).to_json_string()); "
        "picks = [('a', 3), ('b', 0), ('a', 1)]; "
        "print([prove_native({'a': made(t), 'b': made(t)}, picks, embeddings='b', head='a', "
        "tied=False) for t in ('gemma3_text', 'jamba', 'nemotron_h', 'olmo3', 'deepseek_v3')])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(answers) == 1


assert len(IDENTITY) == DEPTH

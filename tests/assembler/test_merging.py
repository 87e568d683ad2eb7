"""Merged donors: mergekit's own bytes, made once, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.merge import merging
from hybridize.assembler.merge.merge_file import lost, read_merge_file
from hybridize.assembler.merge.merging import Merged, merged_donor
from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.worker import merge_process
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import TensorHeader, open_checkpoint
from hybridize.recipe.file import load_recipe

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}

MERGES = {
    "ties": """
models:
  - {model: math, parameters: {weight: 0.6, density: 0.5}}
  - {model: code, parameters: {weight: 0.4, density: 0.7}}
merge_method: ties
base_model: base
parameters: {normalize: true}
""",
    "slerp": """
slices:
  - sources: [{model: math, layer_range: [0, 4]}, {model: code, layer_range: [0, 4]}]
merge_method: slerp
base_model: math
parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.3}]}
dtype: bfloat16
""",
    "linear": """
models:
  - {model: code, parameters: {weight: 0.25}}
  - {model: math, parameters: {weight: 0.75}}
merge_method: linear
""",
    "passthrough": """
slices:
  - sources: [{model: math, layer_range: [0, 3]}]
  - sources: [{model: code, layer_range: [1, 4]}]
merge_method: passthrough
""",
    "dare": """
models:
  - {model: math, parameters: {weight: 0.5, density: 0.5}}
  - {model: code, parameters: {weight: 0.5, density: 0.5}}
merge_method: dare_linear
base_model: base
""",
}

MERGEKIT = """
import sys, torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(2)
for name in sys.argv[1:]:
    config = MergeConfiguration.model_validate(yaml.safe_load(open(f"{name}.yaml")))
    run_merge(config, f"mergekit/{name}", MergeOptions(quiet=True, write_model_card=False))
"""


def _save(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)


def _wrapper() -> Any:
    """A language model with a vision tower beside it."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64}
    vision = {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**small, **heads}, vision_config={**small, **vision}, mm_tokens_per_image=4
        )
    )


def _fine_tune(base: Path, folder: Path, seed: int) -> None:
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    moved = {n: w + 0.02 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two fine-tunes of it, models that do not fit, and the merge files."""
    folder = tmp_path_factory.mktemp("donors")
    torch.manual_seed(0)
    _save(folder / "base", LlamaForCausalLM(LlamaConfig(**SIZES)))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "base")
    _fine_tune(folder / "base", folder / "math", 1)
    _fine_tune(folder / "base", folder / "code", 2)
    _save(folder / "wide", LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 48})))
    _save(folder / "deep", LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 5})))
    _save(folder / "words", LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 80})))
    _save(folder / "mlp", LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 56})))
    _save(folder / "whole", _wrapper())
    _save(folder / "qwen", Qwen3ForCausalLM(Qwen3Config(**SIZES)))
    for name, text in MERGES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the module, so that its tests share what was merged."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("HYBRIDIZE_CACHE", str(folder))
    yield folder  # type: ignore[misc]
    patch.undo()


@pytest.fixture(scope="module")
def by_mergekit(donors: Path) -> Path:
    """What mergekit makes of the same files by itself."""
    command = [sys.executable, "-c", MERGEKIT, "ties", "slerp", "linear", "passthrough"]
    subprocess.run(command, cwd=donors, check=True, capture_output=True)
    return donors / "mergekit"


def _merge(file: Path) -> Merged:
    return merged_donor(file, place="recipe.yaml:2:3", offline=True)


def _bytes(tensor: TensorHeader) -> tuple[str, tuple[int, ...], bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return tensor.dtype, tensor.shape, stream.read(tensor.nbytes)


def _contents(folder: Path) -> dict[str, Any]:
    return {name: _bytes(tensor) for name, tensor in open_checkpoint(folder).tensors.items()}


def _refused(call: Callable[[], Any]) -> str:
    with pytest.raises(HybridizeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", ["ties", "slerp", "linear", "passthrough"])
def test_a_merged_donor_holds_what_mergekit_makes(
    name: str, donors: Path, by_mergekit: Path
) -> None:
    """Who names a mergekit config in a recipe gets that merge, to the last bit."""
    merged = _merge(donors / f"{name}.yaml")

    assert _contents(merged.folder) == _contents(by_mergekit / name)
    assert open_checkpoint(merged.folder).config == open_checkpoint(by_mergekit / name).config
    assert (merged.folder / "tokenizer.json").read_bytes() == (
        donors / "base" / "tokenizer.json"
    ).read_bytes()


def test_a_recipe_with_merged_donors_builds(donors: Path, tmp_path: Path) -> None:
    """The issue's promise: TIES and SLERP of two fine-tunes are donors like any other."""
    recipe = donors / "hybrid.yaml"
    recipe.write_text(
        "donors: {blend: {merge: ties.yaml}, mix: {merge: slerp.yaml}, qwen: {model: qwen}}\n"
        "slots:\n- {from: blend, layers: 0-2}\n- {from: mix, layers: 1-2}\n"
        "- {from: qwen, layer: 3}\nhead: blend\nbridges: {where: none}\n"
    )
    plan = make_plan(load_recipe(recipe), offline=True)
    build(plan, tmp_path / "out", worker=LocalWorker())

    assert verify(tmp_path / "out", worker=LocalWorker(), whole=True).ok
    blend = _contents(_merge(donors / "ties.yaml").folder)
    made = _contents(tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    assert made[name] == blend[name]
    assert made["lm_head.weight"] == blend["lm_head.weight"]
    noted = json.loads((tmp_path / "out" / "hybridize.json").read_text())["donors"]["blend"]
    assert noted["merge"]["text"] == MERGES["ties"]
    assert [donor["source"] for donor in noted["merge"]["donors"]] == ["base", "math", "code"]
    assert all("model.safetensors" in donor["files"] for donor in noted["merge"]["donors"])
    assert str(donors) not in json.dumps(noted)


def test_a_merge_is_made_once(
    donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second plan costs no minutes, from another folder and with a comment more, too."""
    first = _merge(donors / "ties.yaml")
    monkeypatch.setattr(merging, "_make", lambda *_: pytest.fail("merged again"))

    assert _merge(donors / "ties.yaml") == first
    for name in ("base", "math", "code"):
        shutil.copytree(donors / name, tmp_path / name)
    (tmp_path / "other.yaml").write_text("# a comment\n" + MERGES["ties"])
    assert _merge(tmp_path / "other.yaml").folder == first.folder


def test_a_changed_donor_is_merged_anew(
    donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stale weights are never served: size and time of change may stay, the content counts."""
    asked: list[Path] = []
    monkeypatch.setattr(merging, "_make", lambda _, folder: asked.append(folder))
    for name in ("base", "math", "code"):
        shutil.copytree(donors / name, tmp_path / name)
    (tmp_path / "linear.yaml").write_text(MERGES["dare"])
    weights = tmp_path / "math" / "model.safetensors"

    before = _merge(tmp_path / "linear.yaml").folder
    state, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = _merge(tmp_path / "linear.yaml").folder
    (tmp_path / "linear.yaml").write_text(MERGES["dare"].replace("0.5", "0.6"))
    other = _merge(tmp_path / "linear.yaml").folder

    assert len({before, changed, other}) == 3
    assert asked == [before, changed, other]


@pytest.fixture(scope="module")
def killed_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a merge is killed."""
    return tmp_path_factory.mktemp("killed")


DARE_RECIPE = "donors: {blend: {merge: dare.yaml}}\nslots: [{from: blend, layers: 0-3}]\n"


def test_a_killed_merge_leaves_nothing(donors: Path, killed_cache: Path) -> None:
    """After `kill -9` there is no half donor and no process; the next two at once make it."""
    cache = killed_cache
    recipe = donors / "killed.yaml"
    recipe.write_text(DARE_RECIPE)
    environment = {**os.environ, "HYBRIDIZE_CACHE": str(cache)}

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *options, "-m", "hybridize", "plan", str(recipe), "--offline"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    killed = start()
    _wait_for(lambda: list(cache.glob("merges/.*.staging/model/*.safetensors")))
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert [path.name for path in cache.glob("merges/[!.]*")] == ["lock"]
    _wait_for(lambda: not _processes(str(cache)))

    both = [start(), start("-X", "importtime")]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("merging 3 donors by dare_linear" in error for error in errors) == 1
    assert "torch" not in errors[1]
    assert "mergekit.config" not in errors[1]
    assert len(list(cache.glob("merges/[!.l]*"))) == 1
    assert not list(cache.glob("merges/.*"))


def _wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.005)


def _processes(word: str) -> list[str]:
    """Processes with a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def test_random_merges_repeat(donors: Path, tmp_path: Path, killed_cache: Path) -> None:
    """DARE drops at random: the seed is fixed, and neither hash seed nor folder matter."""
    folder = tmp_path / "place +@"
    shutil.copytree(donors, folder, ignore=shutil.ignore_patterns("mergekit"))
    made = [_plan(donors, killed_cache, "1"), _plan(folder, tmp_path / "cache", "77")]

    assert made[0].name == made[1].name
    assert [f.read_bytes() for f in sorted(made[0].iterdir())] == [
        f.read_bytes() for f in sorted(made[1].iterdir())
    ]


def _plan(donors: Path, cache: Path, hash_seed: str) -> Path:
    """Plan a recipe with a DARE merge in a process of its own; the merge that it leaves."""
    (donors / "dare-recipe.yaml").write_text(DARE_RECIPE)
    environment = {**os.environ, "HYBRIDIZE_CACHE": str(cache), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "hybridize", "plan", str(donors / "dare-recipe.yaml")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (made,) = cache.glob("merges/[!.l]*")
    return made


REFUSED = {
    "[1, 2]": "a merge file is a mapping, as mergekit reads it",
    "merge_method: linear": "names no model: neither models nor slices",
    "models: [{model: bse}]\nmerge_method: linear": (
        "1:18: models[0].model: no such folder: {folder}/bse\n"
    ),
    "models: [{model: base}, {model: qwen}]\nmerge_method: linear": (
        "donors of different architectures: 'base' is llama, 'qwen' is qwen3\n"
        "  fix: stack them by the slots of a recipe"
    ),
    "models: [{model: base}, {model: wide}]\nmerge_method: linear": (
        "donors of different width: 'base' has 32, 'wide' has 48"
    ),
    "models: [{model: base}, {model: deep}]\nmerge_method: linear": (
        "models: donors of different depth: base 4, deep 5"
    ),
    "models: [{model: base}, {model: words}]\nmerge_method: linear": (
        "vocabularies differ: 'base' has 64 rows, 'words' has 80 rows"
    ),
    "models: [{model: base}, {model: mlp}]\nmerge_method: linear": (
        "layer 0 of the merge: 'mlp.down_proj.weight' is [32, 48] in layer 0 of 'base', "
        "[32, 56] in layer 0 of 'mlp'"
    ),
    "slices: [{sources: [{model: base, layer_range: [0, 9]}]}]\nmerge_method: passthrough": (
        "1:48: slices[0].sources[0].layer_range: [0, 9] is not a range of the 4 layers of 'base'\n"
        "  fix: mergekit's ranges leave out their end: [0, 4] is all of them"
    ),
    "slices: [{sources: [{model: base, layer_range: [3, 1]}]}]\nmerge_method: passthrough": (
        "[3, 1] is not a range"
    ),
    "slices: [{sources: [{model: base, layer_range: 3}]}]\nmerge_method: passthrough": (
        "layer_range wants two numbers"
    ),
    "slices: [{sources: [{model: base, layer_range: [0, 2]}, {model: math, layer_range: [0, 3]}]}]"
    "\nmerge_method: linear": "the sources of a slice need one number of layers each, here 2, 3",
    "models: [{model: base}, {model: code}]\nmerge_method: linear\ndtype: bfloat": (
        "wrong.yaml:3:8: dtype: unknown dtype 'bfloat'\n"
        "  fix: did you mean 'bfloat16'? (known: bfloat16, float16, float32, float64)"
    ),
    "models: [{model: base}, {model: code}]\nmerge_method: linear\nout_dtype: torch.half": (
        "wrong.yaml:3:12: out_dtype: unknown out_dtype 'torch.half'"
    ),
    "models: [{model: base}, {model: whole}]\nmerge_method: linear": (
        "wrong.yaml:1:33: models[1].model: 'whole' is a multimodal model (gemma3): the language "
        "model inside of it cannot be merged\n"
        "  fix: name it under donors, and stack its layers by slots instead of merging"
    ),
    "models: [{model: base+lora}]\nmerge_method: linear": "an adapter on top of a model",
    "models: [{model: base}]\nmodels: [{model: math}]": "key 'models' stands twice",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_merge_file_is_refused_before_mergekit_runs(
    text: str, donors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where mergekit is silent, or prints 70 lines: one message, its place, and the way out."""
    monkeypatch.setattr(merging, "_make", lambda *_: pytest.fail("mergekit ran"))
    file = donors / "wrong.yaml"
    file.write_text(text)

    said = _refused(lambda: _merge(file))

    assert REFUSED[text].format(folder=donors) in said
    assert str(file) in said


def test_a_missing_merge_file_is_shown_in_the_recipe(donors: Path) -> None:
    """The recipe names it: the error does, too."""
    assert _refused(lambda: _merge(donors / "tise.yaml")) == (
        f"recipe.yaml:2:3: no merge file {donors}/tise.yaml\n  fix: paths start at the recipe"
    )


def test_a_cache_that_cannot_be_written_is_named(
    donors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, home is often read-only."""
    monkeypatch.setenv("HYBRIDIZE_CACHE", "/proc/nowhere")

    said = _refused(lambda: _merge(donors / "ties.yaml"))

    assert "the cache of merges: No such file or directory" in said
    assert "fix: set HYBRIDIZE_CACHE to a folder that can be written" in said


def test_mergekits_own_rules_are_told_with_their_place(donors: Path, cache: Path) -> None:
    """Unknown keys and parameters vanish silently in mergekit; all are told at once."""
    file = donors / "typos.yaml"
    file.write_text(
        "models:\n- model: math\n  paramters: {weight: 1}\n- model: code\n"
        "  parameters: {wieght: 1}\nmerge_method: linear\ndtyp: float32\n"
    )

    assert _refused(lambda: _merge(file)).splitlines() == [
        f"{file}:3:3: models[0].paramters: unknown key 'paramters'",
        "  fix: did you mean 'parameters'? (known: model, parameters)",
        f"{file}:5:16: models[1].parameters.wieght: unknown key 'wieght'",
        "  fix: did you mean 'weight'? (known: normalize, weight)",
        f"{file}:7:1: dtyp: unknown key 'dtyp'",
        "  fix: did you mean 'dtype'? (known: base_model, chat_template, dtype, merge_method, "
        "models, modules, out_dtype, parameters, slices, tokenizer, tokenizer_source)",
    ]
    assert not list(cache.glob("merges/.*"))


def test_an_unknown_method_is_refused(donors: Path) -> None:
    """With the nearest one that mergekit has."""
    found = list(merge_process._mistakes({"merge_method": "tise", "models": []}))

    assert found[0][:2] == (("merge_method",), "unknown method 'tise'")
    assert str(found[0][2]).startswith("did you mean 'ties'? (known: arcee_fusion, breadcrumbs")


def test_a_failure_of_mergekit_is_its_last_line(donors: Path, cache: Path) -> None:
    """Not its traceback, and nothing stays behind."""
    file = donors / "slerp-without-t.yaml"
    file.write_text(MERGES["slerp"].replace("parameters:", "#"))

    said = _refused(lambda: _merge(file))

    assert said.startswith(f"{file}: mergekit failed\n    RuntimeError: Missing required parameter")
    assert len(said.splitlines()) == 2
    assert not list(cache.glob("merges/.*"))


def test_tensors_that_mergekit_loses_are_noticed(donors: Path) -> None:
    """It drops the final norm and the convolutions of this architecture, with exit status 0."""
    kinds = ["linear_attention", "full_attention"] * 2
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 4}
    config = OlmoHybridConfig(**SIZES, layer_types=kinds, pad_token_id=0, **linear)
    _save(donors / "gdn", OlmoHybridForCausalLM(config))
    file = donors / "gdn.yaml"
    file.write_text(
        "slices: [{sources: [{model: gdn, layer_range: [0, 4]}]}]\nmerge_method: passthrough\n"
    )

    said = _refused(lambda: _merge(file))

    assert "mergekit lost" in said
    assert "conv1d" in said
    assert "tensors of olmo_hybrid" in said


def test_every_missing_tensor_is_found(donors: Path, tmp_path: Path) -> None:
    """Of a layer, the head, the norm; and a depth that the config does not say."""
    merge = read_merge_file(donors / "ties.yaml", offline=True)
    shutil.copytree(donors / "base", tmp_path / "made")
    weights = load_file(donors / "base" / "model.safetensors")
    for name in ("model.layers.2.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"):
        left = {n: w for n, w in weights.items() if n != name}
        save_file(left, tmp_path / "made" / "model.safetensors", {"format": "pt"})
        (found,) = lost(merge, open_checkpoint(tmp_path / "made"))
        assert name.endswith(found)
    deeper = read_merge_file(donors / "passthrough.yaml", offline=True)
    assert "4 layers, its merge has 6" in _refused(
        lambda: lost(deeper, open_checkpoint(donors / "base"))
    )


def test_a_merge_that_is_not_finite_is_noticed(tmp_path: Path) -> None:
    """Wherever in the tensor the NaN stands."""
    tensor = torch.zeros(3, merge_process.CHUNK, dtype=torch.bfloat16)
    save_file({"a": torch.ones(2), "b": tensor}, tmp_path / "model.safetensors")
    assert merge_process._not_finite(tmp_path) is None
    tensor[2, -1] = torch.nan
    save_file({"a": torch.ones(2), "b": tensor}, tmp_path / "model.safetensors")
    assert merge_process._not_finite(tmp_path) == "b"


def test_layers_keep_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit would turn sliding into full attention, silently, where it moves a Gemma3 layer."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(**SIZES, layer_types=kinds)
    _save(tmp_path / "donors" / "0", Gemma3ForCausalLM(config))
    monkeypatch.chdir(tmp_path)

    assert not list(merge_process._moved_layers([[[0, i]] for i in (0, 3, 2, 1)]))
    shifted = list(merge_process._moved_layers([[[0, i]] for i in (1, 2, 3)]))
    assert shifted[0][1].startswith(
        "layer 0 of the merge is made of a layer of kind full_attention"
    )
    deeper = list(merge_process._moved_layers([[[0, i]] for i in (0, 1, 2, 3, 0)]))
    assert deeper[0][1].endswith("mergekit's config says absent")

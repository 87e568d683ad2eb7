"""A result reads text as its tokenizer's donor does, whatever its own config.json says."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cpt.data.tokens import Tokens
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.torch_model.tokenization import PROBE, fingerprint, keep_ids, open_tokenizer, read
from hybridize.torch_model.windows import Reader
from tests.support.readers import code, prose
from tests.support.stacks import build_in, save_donor
from tests.support.tokenizers import splitting, write_tokenizer

TEXT = "in 2023, 1234 people  said\n\n 你好 Привет 👍🏽 <|end|> they've DON'T"
ONE = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "0-3"}]}


def ids(folder: Path) -> list[int]:
    found: list[int] = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(TEXT)[
        "input_ids"
    ]
    return found


@pytest.mark.parametrize("model_type", ["olmo2", "granite", "olmo_hybrid"])
def test_a_hybrid_reads_as_its_donor_does(tmp_path: Path, model_type: str) -> None:
    save_donor(tmp_path / "a", model_type, vocab_size=512)
    write_tokenizer(tmp_path / "a", tokenizer_class="GPT2Tokenizer")
    built = build_in(tmp_path, ONE | {"target": "hybrid"})
    assert "the tokenizer gives the ids of 'a'" in built.checks
    wanted = ids(tmp_path / "a")
    assert ids(built.folder) == wanted
    ours, theirs = (Reader("x", f, rows=512) for f in (built.folder, tmp_path / "a"))
    assert ours.tokens(TEXT) == theirs.tokens(TEXT)  # calibration, diagnose
    documents = [Tokens(reader).of([TEXT])[0].tokens for reader in (ours, theirs)]
    assert np.array_equal(*documents)  # cpt
    for name in ("tokenizer.json", "tokenizer_config.json"):  # copied alone, they give others
        shutil.copy(tmp_path / "a" / name, built.folder / name)
    assert len(ids(built.folder)) < len(wanted)


def test_a_process_without_hybridize_and_without_trust_reads_the_same(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "olmo2", vocab_size=512)
    write_tokenizer(tmp_path / "a", tokenizer_class="GPT2Tokenizer")
    built = build_in(tmp_path, ONE | {"target": "hybrid"})
    script = (
        "import sys; from transformers import AutoTokenizer as A;"
        "t = A.from_pretrained(sys.argv[1], trust_remote_code=False);"
        "assert not any(m.startswith('hybridize') for m in sys.modules);"
        "print(t(sys.argv[2])['input_ids'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(built.folder), TEXT],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ids(tmp_path / "a")
    card = (built.folder / "README.md").read_text()
    assert 'AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=False)' in card


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_verify_knows_the_ids_without_the_donor(tmp_path: Path, target: str) -> None:
    save_donor(tmp_path / "a", "olmo2", vocab_size=512)
    write_tokenizer(tmp_path / "a", tokenizer_class="GPT2Tokenizer")
    out = build_in(tmp_path, ONE | {"target": target}).folder
    shutil.rmtree(tmp_path / "a")
    found = {o.what: o for o in verify(out, load="structure", worker=LocalWorker()).outcomes}
    assert found["tokenizer"].ok
    manifest = json.loads((out / "hybridize.json").read_text())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert fingerprint(open_tokenizer(out)) != manifest["tokenizer_ids"]
    found = {o.what: o for o in verify(out, load="structure", worker=LocalWorker()).outcomes}
    assert not found["tokenizer"].ok
    assert "gives other ids than its donor's in the build" in found["tokenizer"].detail


def folders(tmp_path: Path, config: dict[str, Any]) -> tuple[Path, Path]:
    """A donor's folder without weights, and one of a hybrid, to put tokenizers into."""
    found = tmp_path / "donor", tmp_path / "result"
    for folder, content in zip(found, (config, {"model_type": "hybridize"}), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
    return found


def kept(donor: Path, result: Path) -> bool:
    """Whether the files gave the donor's ids as they were; they do in the end."""
    for file in donor.iterdir():
        if file.name != "config.json":
            shutil.copy(file, result / file.name)
    found = read(donor)
    try:
        same = read(result)["ids"] == found["ids"]
    except HybridizeError:
        same = False
    keep_ids(donor, result, ids=found["ids"], kind=found["kind"])
    assert [ids(donor), found["ids"]] == [ids(result), read(result)["ids"]]
    return same


def write_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt alone, as GPT-2's age left them."""
    model = json.loads(splitting())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))


def write_pieces(folder: Path) -> None:
    """tokenizer.model alone."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter((prose() + code()).splitlines()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )


def byte_tokens() -> list[str]:
    """Base64 of each token's bytes, by rank."""
    byte_of = {c: b for b, c in pre_tokenizers_bytes().items()}
    vocabulary = json.loads(splitting())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[1:]
    return [base64.b64encode(bytes(byte_of[c] for c in token)).decode() for token in tokens]


def write_tiktoken(folder: Path) -> None:
    """tiktoken.model alone."""
    lines = (f"{token} {rank}" for rank, token in enumerate(byte_tokens()))
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write_tekken(folder: Path) -> None:
    """tekken.json alone."""
    tokens = byte_tokens()
    document = {
        "config": {
            "pattern": r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + 8,
            "default_num_special_tokens": 8,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": token, "token_str": None}
            for rank, token in enumerate(tokens)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(document))


def pre_tokenizers_bytes() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    found: dict[int, str] = bytes_to_unicode()
    return found


@pytest.mark.parametrize(
    ("model_type", "write"),
    [
        ("gpt2", write_vocabulary),
        ("qwen2", write_vocabulary),
        ("gpt_neox", write_vocabulary),
        ("llama", write_pieces),
        ("gemma2", write_pieces),
        ("kimi_linear", write_tiktoken),
        ("mistral", write_tekken),
    ],
)
def test_every_backend_keeps_its_ids(tmp_path: Path, model_type: str, write: Any) -> None:
    if library := {write_tiktoken: "tiktoken", write_tekken: "mistral_common"}.get(write):
        pytest.importorskip(library)
    donor, result = folders(tmp_path, {"model_type": model_type})
    write(donor)
    kept(donor, result)


def test_what_no_class_name_says_is_saved_anew(tmp_path: Path) -> None:
    """transformers mends the split of Mistral's tokenizers by the config.json beside them."""
    donor, result = folders(tmp_path, {"model_type": "mistral", "transformers_version": "4.50.0"})
    write_tokenizer(donor, tokenizer_class="PreTrainedTokenizerFast", fix_mistral_regex=True)
    document = json.loads((donor / "tokenizer.json").read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{N}+| ?\p{L}+|\s+"}
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"[{i}]": i for i in range(len(vocabulary), 100_001)}
    (donor / "tokenizer.json").write_text(json.dumps(document))
    assert not kept(donor, result)
    config = json.loads((result / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "TokenizersBackend"


def test_ids_that_cannot_be_kept_stop_the_build(tmp_path: Path) -> None:
    donor, result = folders(tmp_path, {"model_type": "olmo2"})
    for folder in (donor, result):
        write_tokenizer(folder)
    with pytest.raises(CheckFailed, match="gives other ids than that of"):
        keep_ids(donor, result, ids="of another", kind="TokenizersBackend")


def test_code_in_a_folder_is_not_run_and_nobody_is_asked(tmp_path: Path) -> None:
    donor, _ = folders(tmp_path, {"model_type": "unheard_of"})
    write_tokenizer(donor, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (donor / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(HybridizeError, match="its tokenizer cannot be read"):
        open_tokenizer(donor)


def test_the_probe_tells_tokenizers_apart_where_they_part(tmp_path: Path) -> None:
    """Digits, spaces, cases, scripts, line ends: each change of the split is seen."""
    assert any(c.isdigit() for c in PROBE[0])
    donor, other = folders(tmp_path, {"model_type": "olmo2"})
    write_tokenizer(donor)
    for old, new in ((r"\\p{N}|", r"\\p{N}+|"), (r"|\\s+|", r"|\\s|"), (r" ?\\p{L}+", r"\\p{L}+")):
        assert old in splitting()
        write_tokenizer(other)
        (other / "tokenizer.json").write_text(splitting().replace(old, new))
        assert read(donor)["ids"] != read(other)["ids"], old


@pytest.mark.slow
def test_every_class_that_a_model_type_may_choose_keeps_its_ids(tmp_path: Path) -> None:
    """Each class of transformers' mapping, trusted or not, under each name in the files."""
    kinds = {
        (own, model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS): model_type
        for model_type, own in {**TOKENIZER_MAPPING_NAMES, "llama": None}.items()
        if model_type != "rag"  # two tokenizers, of an encoder and a decoder
    }
    mended, opened = 0, 0
    for (own, _), model_type in kinds.items():
        for name in {"GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", None, own}:
            donor, result = folders(tmp_path, {"model_type": model_type})
            write_tokenizer(donor, **({"tokenizer_class": name} if name else {}))
            try:
                read(donor)
            except HybridizeError:  # a class that wants another kind of vocabulary
                continue
            opened += 1
            mended += not kept(donor, result)
    assert opened > 200
    assert mended > 20

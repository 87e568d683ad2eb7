"""All layers of one donor, in order, are that donor: bit for bit, from disk to logits."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker
from tests.support.stacks import assert_same, build_in, load, save_donor
from tests.support.tiny import FAMILIES

# A bias beside a tied head, and mixtures of experts: kernels round by where experts lie.
MORE = ("ctrl", "dots1", "glm4_moe", "lfm2_moe", "olmoe")
EACH = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.mark.parametrize("target", ["native", "hybrid"])
@pytest.mark.parametrize("family", EACH)
def test_identity(tmp_path: Path, family: str, target: str) -> None:
    """mergekit's identity loses norms, convolutions and experts of hybrids, silently."""
    donor = load(save_donor(tmp_path / "donor", family))
    depth = donor.config.num_hidden_layers
    built = build_in(
        tmp_path,
        {
            "donors": {"a": {"model": "donor"}},
            "slots": [{"from": "a", "layers": f"0-{depth - 1}"}],
            "target": target,
        },
    )
    assert built.plan.target == target
    assert_same(mapped(built.folder), donor)
    assert verify(built.folder, whole=True, worker=LocalWorker()).ok


def mapped(folder: Path) -> PreTrainedModel:
    """A model whose weights stay where they lie in the mapped file, as users load it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval()

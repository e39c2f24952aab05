"""Weights in bfloat16 handed over to engines of vLLM, each alone: two in one process disturb each other."""

import pytest
import torch

from tests.support_vllm import NEEDS_VLLM, make_engine, make_vllm_sampler, tiny_llama
from tests.test_vllm_handover import SHAPE, moved, trees
from treerl.config import SamplerSettings
from treerl.engine.handover import Handover, check_fingerprints, weights_of
from treerl.errors import HandoverError
from treerl.policy.model import wrap_model

pytestmark = NEEDS_VLLM


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_go_over_in_bfloat16(tmp_path, dtype):
    """Of a policy in bfloat16, and of one in float32 whose engine rounds; old weights are found."""
    torch.manual_seed(0)
    policy = wrap_model(tiny_llama(**SHAPE).to(dtype), name="tiny")
    with make_engine(policy.model, tmp_path, dtype=torch.bfloat16) as engine:
        settings = SamplerSettings()
        sampler = make_vllm_sampler(engine, policy.model, settings)
        handed = Handover(
            policy, sampler, settings, context=engine.max_length, sampler_dtype=torch.bfloat16
        )
        moved(policy)
        row = handed.publish(1, trees())
        assert (row["handover/checked"], row["handover/tensors"]) == (3, 2 * 13 + 3)
        assert 0 < row["handover/logp_difference"] < 0.05
        moved(policy)
        with pytest.raises(HandoverError, match="served otherwise than they were sent"):
            check_fingerprints(sampler.compare(weights_of(policy)), 2)

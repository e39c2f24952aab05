"""The fused decode step equals the model's own forward, and notices new weights."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treerl.config import SamplerSettings
from treerl.samplers.fused import can_fuse
from treerl.samplers.transformers import TransformersSampler
from treerl.search.sampler import Continuation


def llama(groups=2, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=groups,
        max_position_embeddings=64,
        initializer_range=0.3,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def sampled(model, prompts, version=0):
    sampler = TransformersSampler(
        model,
        settings=SamplerSettings(),
        stop_token_ids=[0],
        pad_token_id=1,
        device="cpu",
        version=version,
    )
    for ticket, prompt in enumerate(prompts):
        sampler.submit(ticket, Continuation(np.array(prompt, np.int32), ticket + 5, 24, True))
    spans = {}
    while len(spans) < len(prompts):
        spans |= dict(sampler.step())
    return spans


def plain_logprobs(model, prompt, span):
    ids = torch.tensor([[*prompt, *span.tokens.tolist()]])
    with torch.no_grad():
        logp = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logp[torch.arange(len(span.tokens)), torch.from_numpy(span.tokens).long()].numpy()


PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10], [2, 3, 4]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_logprobs_equal_a_plain_forward(groups):
    model = llama(groups)
    assert can_fuse(model)
    for ticket, span in sampled(model, PROMPTS).items():
        expected = plain_logprobs(model, PROMPTS[ticket], span)
        np.testing.assert_allclose(span.logprobs, expected, atol=2e-5)


def test_new_weights_are_used_at_the_next_step():
    model = llama()
    sampled(model, PROMPTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    for ticket, span in sampled(model, PROMPTS).items():
        expected = plain_logprobs(model, PROMPTS[ticket], span)
        np.testing.assert_allclose(span.logprobs, expected, atol=2e-5)


def test_weights_written_in_place_are_noticed_within_one_sampler():
    model = llama()
    sampler = TransformersSampler(
        model, settings=SamplerSettings(), stop_token_ids=[0], pad_token_id=1, device="cpu"
    )

    def one(ticket):
        sampler.submit(ticket, Continuation(np.array(PROMPTS[2], np.int32), 9, 6, True))
        return dict(sampler.step())[ticket]

    one(0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.3)
    sampler.set_version(1)
    span = one(1)
    np.testing.assert_allclose(span.logprobs, plain_logprobs(model, PROMPTS[2], span), atol=2e-5)


def test_what_is_not_a_plain_llama_keeps_its_own_forward():
    assert not can_fuse(llama(attention_bias=True))
    assert not can_fuse(llama(hidden_act="gelu"))
    assert not can_fuse(llama().to(torch.bfloat16))
    hooked = llama()
    hooked.model.layers[0].register_forward_hook(lambda *args: None)
    assert not can_fuse(hooked)

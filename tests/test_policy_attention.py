"""Packed trees equal one forward per leaf: log-probs, entropies and gradients, in every variant."""

import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama

from tests.support_policy import (
    gradient,
    one_row,
    packed_loss,
    ragged_tree,
    random_columns,
    random_tree,
    reference,
    reference_loss,
    relative,
    tiny_llama,
    with_attention,
)
from treerl.policy.forward import token_logprobs
from treerl.policy.pack import pack_trees, scatter_to_trees

VARIANTS = ["dense", "runs", "blocks"]


@pytest.fixture
def float64_norm(monkeypatch):
    """RMSNorm computed in the dtype of its input (the library's is float32 whatever the dtype)."""

    def forward(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)


def packed_columns(policy, batches, trees):
    lps, entropies = [], []
    for batch in batches:
        lp, entropy = token_logprobs(policy, batch, with_entropy=True)
        lps.append(lp.numpy())
        entropies.append(entropy.numpy())
    return scatter_to_trees(batches, lps, trees), scatter_to_trees(batches, entropies, trees)


def assert_equals_leaves(policy, batches, trees, tolerance):
    lps, entropies = packed_columns(policy, batches, trees)
    for tree, lp, entropy in zip(trees, lps, entropies, strict=True):
        with torch.no_grad():
            results, paths = reference(policy, tree)
        for values, path in zip(results, paths, strict=True):
            trained = tree.tokens.mask[path[1:]]
            wanted = values.numpy()[:, trained]
            np.testing.assert_allclose(lp[path[1:]][trained], wanted[0], atol=tolerance, rtol=0)
            np.testing.assert_allclose(
                entropy[path[1:]][trained], wanted[1], atol=tolerance, rtol=0
            )


LAYOUTS = {
    "one tree": {"max_tokens": 75},
    "two trees in a row": {"max_tokens": 150, "row_tokens": 150},
    "padded rows": {"max_tokens": 300},
    "cut": {"max_tokens": 50},
    "buckets": {"max_tokens": 128, "bucket": True},
    "flat": {"max_tokens": 100, "mode": "flat"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_equals_leaves_in_float64(float64_norm, variant, layout):
    policy = with_attention(tiny_llama(torch.float64), variant)
    trees = [ragged_tree(0), random_tree(1), ragged_tree(2, prompt=3)]
    batches = pack_trees(trees, **LAYOUTS[layout])
    assert_equals_leaves(policy, batches, trees, 1e-12)
    weights, bonus = random_columns(trees, 1), random_columns(trees, 2)
    wanted = gradient(policy, reference_loss(policy, trees, weights, bonus))
    packed = gradient(policy, packed_loss(policy, batches, weights, bonus))
    assert relative(packed, wanted) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_with_the_library_norm(variant):
    policy = with_attention(tiny_llama(torch.float64), variant)
    trees = [ragged_tree(0)]
    weights, bonus = random_columns(trees, 1), random_columns(trees, 2)
    wanted = gradient(policy, reference_loss(policy, trees, weights, bonus))
    packed = gradient(policy, packed_loss(policy, [one_row(trees)], weights, bonus))
    assert relative(packed, wanted) < 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_in_fp32(seed):
    trees = [random_tree(10 * seed + i, spans=4 + 3 * i) for i in range(3)]
    policy = tiny_llama()
    for variant in VARIANTS:
        batches = pack_trees(trees, max_tokens=160, row_tokens=80)
        assert_equals_leaves(with_attention(policy, variant), batches, trees, 2e-5)


# torch warns that uncompiled flex attention is slow: it only serves as a check here.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_forward_on_cpu():
    trees = [ragged_tree(0), random_tree(1, spans=20, longest=30)]
    policy = with_attention(tiny_llama(), "flex")
    batches = [one_row(trees), *pack_trees(trees, max_tokens=1024, row_tokens=0)]
    for batch in batches:
        lps, _ = packed_columns(policy, [batch], trees)
        dense, _ = packed_columns(with_attention(policy, "dense"), [batch], trees)
        for a, b in zip(lps, dense, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)

"""`update_policy` on broken credit, weights and gradients: it says what is wrong before the weights move."""

import numpy as np
import pytest
import torch

from tests.support_policy import random_credit, random_tree, tiny_llama
from tests.support_update import run_update, same, unweighted, weights
from treerl.config import UpdateSettings
from treerl.errors import ConfigError, UpdateError
from treerl.policy.optimizer import PolicyOptimizer


def test_nan_credit_stops_before_weights_and_optimizer_move():
    policy = tiny_llama()
    trees = [random_tree(1), random_tree(2)]
    optimizer = PolicyOptimizer(policy.model, UpdateSettings())
    run_update(policy, trees, [random_credit(tree, 1) for tree in trees], optimizer=optimizer)
    before = weights(policy), {k: v.clone() for k, v in optimizer.state_dict().items()}
    bad = random_credit(trees[1], 1)
    bad.positive[-1] = np.nan
    with pytest.raises(UpdateError, match="1 masses"):
        run_update(policy, trees, [random_credit(trees[0], 1), bad], optimizer=optimizer)
    assert same(before[0], weights(policy))
    assert same(before[1], optimizer.state_dict())
    assert all(p.grad is None for p in policy.model.parameters())


def test_nan_weights_are_named_as_the_cause():
    policy = tiny_llama()
    tree = random_tree(1)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    with pytest.raises(UpdateError, match="log-probs of the policy"):
        run_update(policy, [tree], [random_credit(tree, 1)])


def test_non_finite_gradient_stops_before_weights_move():
    policy = tiny_llama()
    optimizer = PolicyOptimizer(policy.model, UpdateSettings())
    before = weights(policy)
    for parameter in policy.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    with pytest.raises(UpdateError, match="gradient norm is inf"):
        optimizer.step()
    assert same(before, weights(policy))
    assert list(optimizer.state_dict()) == ["steps"]


def test_greedy_samples_and_a_missing_reference_are_refused():
    policy = tiny_llama()
    tree = random_tree(1)
    with pytest.raises(ConfigError, match=r"sampler\.temperature = 0"):
        run_update(policy, [tree], [random_credit(tree, 1)], temperature=0.0)
    with pytest.raises(ConfigError, match="needs a reference"):
        run_update(policy, [tree], [random_credit(tree, 1)], loss=unweighted(kl_coef=0.1))

"""Self-imitation: the re-based advantage, the ramp, and the masses of replayed rows."""

import numpy as np
import pytest
import torch

from tests.support_credit import span
from treerl.credit.imitate import imitation_credits, ramp, rebased, row_ratios, scaled_cached
from treerl.credit.importance import effective_share
from treerl.credit.masses import TokenCredit
from treerl.engine.imitation import good_rows
from treerl.policy.losses import token_ratio, truncated_weights
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


def stored(lengths, rewards):
    tree = Tree([7, 7], seed=1, max_completion_length=8)
    for source, (length, reward) in enumerate(zip(lengths, rewards, strict=True), start=1):
        tree.judge(tree.graft(ROOT, span(length), source=source), Verdict("scored", reward))
    return tree


def test_weight_rises_along_a_half_cosine():
    assert [ramp(step, 200) for step in (0, 50, 100, 150, 200, 999)] == pytest.approx(
        [0, 0.1464, 0.5, 0.8536, 1, 1], abs=1e-4
    )


def test_rewards_are_compared_with_the_median_of_the_group_means():
    found = rebased(np.array([1, 0.3, 0.45]), [0.2, 0.4, 0.5, 0.9])
    assert found == pytest.approx([0.55, 0, 0])


def test_a_replayed_token_weighs_a_share_of_a_fresh_one():
    tree = stored((2, 3), (1.0, 1.0))
    values = np.array([0.5, 0.2])
    (credit,) = imitation_credits([tree], [values], weight=0.5, loss_agg_mode="token-mean")
    assert credit.positive.tolist() == pytest.approx([0, 0, 0.25, 0.25, 0.1, 0.1, 0.1])
    assert not credit.negative.any()
    assert not credit.weight.any()  # KL and entropy leave replayed tokens alone
    assert (credit.denominator, credit.n_rows) == (5.0, 2)


def test_rows_taken_out_are_not_in_the_denominator():
    tree = stored((2, 3), (1.0, 1.0))
    tree.nodes.selected[1] = False
    (credit,) = imitation_credits(
        [tree], [np.array([0.5, 0.2])], weight=1.0, loss_agg_mode="token-mean"
    )
    assert credit.positive.tolist() == pytest.approx([0, 0, 0, 0, 0.2, 0.2, 0.2])
    assert credit.denominator == 3.0


def test_a_constant_factor_on_cached_rows_only():
    tree = stored((2,), (1.0,))
    tree.judge(tree.append(tree.request(ROOT, 1), 0, span(1)), Verdict("scored", 0.0))
    masses = np.ones(5)
    scaled = scaled_cached(tree, TokenCredit(masses, masses, masses, 3.0, 2), 0.25)
    assert scaled.positive.tolist() == [1, 1, 0.25, 0.25, 1]
    assert scaled.negative.tolist() == [1, 1, 0.25, 0.25, 1]
    assert scaled.weight.tolist() == [1] * 5
    assert scaled.denominator == 3.0


def test_good_rows_are_the_leaves_above_the_mean_of_their_fresh_group():
    tree = stored((2,), (1.0,))
    request = tree.request(ROOT, 4)
    for k, reward in enumerate((1.0, 0.0, 0.5, 0.5)):
        tree.judge(tree.append(request, k, span(1)), Verdict("scored", reward))
    rows, mean = good_rows(tree)
    assert mean == 0.5
    assert rows == {2: 0.5}  # draw 1 is the cached one
    assert good_rows(stored((2,), (1.0,))) == ({}, None)


def test_ratios_of_a_row_are_to_its_stored_log_probs():
    tree = stored((2, 1), (1.0, 1.0))
    tree.tokens.logprob[2:] = np.log([0.5, 0.25, 0.1])
    lp = np.concatenate([[np.nan, np.nan], np.log([0.5, 0.5, 0.1])])
    first, second = row_ratios(tree, lp)
    assert first == pytest.approx([1, 2])
    assert second == pytest.approx([1])


@pytest.mark.parametrize(
    ("weights", "effective"), [((1, 1, 1, 1), 4), ((2, 1, 1, 0), 2.6667), ((4, 0, 0, 0), 1)]
)
def test_effective_sample_size(weights, effective):
    assert 4 * effective_share(np.array(weights)) == pytest.approx(effective, abs=1e-4)


def test_a_batch_with_one_runaway_row():
    ratios = [np.ones(1)] * 99 + [np.array([2000.0])]
    assert np.concatenate(ratios).mean() == pytest.approx(20.99)
    assert effective_share(np.concatenate(ratios)) < 0.02


def test_stored_denominators_give_the_policy_gradient_and_ratio_one_does_not():
    """A bandit of three answers: rows drawn by mu, gradient of E_pi[R] by the logits of pi."""
    mu, pi, reward = np.array([0.5, 0.3, 0.2]), np.array([0.8, 0.15, 0.05]), np.array([1.0, 1, 0])
    lp, lp_beh = torch.from_numpy(np.log(pi)), torch.from_numpy(np.log(mu))
    centred = reward - pi @ reward

    def gradient(weights):
        return sum(mu[a] * weights[a] * centred[a] * (np.eye(3)[a] - pi) for a in range(3))

    stored = token_ratio(lp, lp_beh).numpy()
    assert gradient(stored) == pytest.approx([0.04, 0.0075, -0.0475])
    assert gradient(token_ratio(lp, lp).numpy()) == pytest.approx([0.145, 0.0375, -0.1825])
    capped = truncated_weights(lp, lp_beh, 1.0).numpy()
    assert gradient(capped) == pytest.approx([0.037, 0.00975, -0.04675])
    assert mu @ capped == pytest.approx(0.7)
    drawn = np.repeat(stored, (1000 * mu).astype(int))
    assert effective_share(drawn) == pytest.approx(0.7313, abs=1e-4)

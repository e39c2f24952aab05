"""Cached rows in and out of the baseline, by hand; groups repaired with stored rows of the other label."""

import numpy as np
import pytest

from tests.support_credit import span
from treerl.config import AdvantageSettings
from treerl.credit.assign import advantages, assign
from treerl.errors import ConfigError
from treerl.recipe import parse_recipe
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


def group(fresh, cached, *, branches=()):
    """A prompt with fresh and cached rows of one token, and fresh branches below the last cached row."""
    tree = Tree([7, 7], seed=1, max_completion_length=8)
    request = tree.request(ROOT, max(len(fresh), 1))
    for k, reward in enumerate(fresh):
        tree.judge(tree.append(request, k, span(1)), Verdict("scored", reward))
    for source, reward in enumerate(cached, start=1):
        row = tree.graft(ROOT, span(2, leaf=not branches), source=source)
        if not branches:
            tree.judge(row, Verdict("scored", reward))
    if branches:
        below = tree.request(row, len(branches))
        for k, reward in enumerate(branches):
            tree.judge(tree.append(below, k, span(1)), Verdict("scored", reward))
    return tree


def of_leaves(tree, estimator, **settings):
    """The advantage of each leaf, in order of its row."""
    given = AdvantageSettings(estimator=estimator, **settings)
    found = advantages(tree, given)
    return [found[tree.nodes.stop[leaf] - 1] for leaf in tree.leaves().tolist()]


ONE_OF_SIX = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_in_the_baseline_as_deepsearch_has_it():
    tree = group(ONE_OF_SIX, [1.0, 1.0])
    assert of_leaves(tree, "dr_grpo", reward_low=-1.0) == pytest.approx(
        [1.25, *[-0.75] * 5, 1.25, 1.25]
    )
    scaled = of_leaves(tree, "grpo", reward_low=-1.0, std_ddof=0)
    assert scaled == pytest.approx([1.2910, *[-0.7746] * 5, 1.2910, 1.2910], abs=1e-4)


def test_out_of_the_baseline_fresh_rows_are_plain_leave_one_out():
    tree = group(ONE_OF_SIX, [1.0, 1.0])
    found = of_leaves(tree, "rloo", cached_baseline="out")
    assert found == pytest.approx([1.0, *[-0.2] * 5, 0.8333, 0.8333], abs=1e-4)
    assert found[:6] == pytest.approx(of_leaves(group(ONE_OF_SIX, []), "rloo"))
    assert of_leaves(tree, "sibling_rloo", cached_baseline="out") == pytest.approx(found)


def test_all_fresh_wrong_leaves_them_at_zero_when_the_cached_row_is_out():
    tree = group([0.0] * 4, [1.0])
    assert of_leaves(tree, "dr_grpo", cached_baseline="out") == [0, 0, 0, 0, 1]
    assert of_leaves(group([1.0] * 4, [1.0]), "dr_grpo", cached_baseline="out") == [0] * 5


def test_one_fresh_row_has_nothing_to_compare_with():
    assert of_leaves(group([0.0], [1.0]), "rloo", cached_baseline="out") == [0, 1]


def test_fresh_branches_below_a_cached_row_are_out_too_but_compare_with_each_other():
    tree = group([1.0, 0.0], [0.0], branches=[1.0, 0.0])
    found = of_leaves(tree, "tree_value", cached_baseline="out")
    assert found == pytest.approx([0.5, -0.5, 0.5, -0.5])
    prefix = advantages(tree, AdvantageSettings(estimator="tree_value", cached_baseline="out"))
    row = int(tree.nodes.start[tree.nodes.origin == 7][0])
    assert prefix[row] == pytest.approx(0.0)  # .5 below it, .5 among the fresh rows
    siblings = of_leaves(tree, "sibling_rloo", cached_baseline="out")
    assert siblings == pytest.approx([1.0, -1.0, 1.0, -1.0])


def test_spread_of_the_group_is_that_of_the_fresh_rows():
    tree = group([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    found = of_leaves(tree, "grpo", cached_baseline="out", std_ddof=0)
    assert found == pytest.approx([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0])


def test_a_group_repaired_with_a_stored_right_row():
    tree = group([0.0] * 4, [1.0])
    scaled = of_leaves(tree, "grpo", std_ddof=0)
    assert scaled == pytest.approx([-0.5] * 4 + [2.0])
    assert of_leaves(tree, "dr_grpo") == pytest.approx([-0.2] * 4 + [0.8])


def test_without_a_stored_opposite_the_group_stays_at_zero():
    (credit,) = assign([group([0.0] * 4, [])], AdvantageSettings(), loss_agg_mode="token-mean")
    assert not credit.positive.any()
    assert not credit.negative.any()
    assert np.isclose(credit.denominator, 0.0)


def test_released_scores_have_no_form_without_cached_rows():
    data = {"advantage": {"estimator": "deepsearch", "faithful": True, "cached_baseline": "out"}}
    with pytest.raises(ConfigError, match="faithful"):
        parse_recipe(data)

"""DeepSearch's backup and scores against the recursion and numbers worked out by hand."""

from itertools import permutations, product

import pytest

from tests.support_search import span
from treerl.config import DeepSearchSearch
from treerl.search.backup import (
    Tally,
    chunks,
    gamma_paper,
    gamma_released,
    gamma_table,
    store_tallies,
)
from treerl.search.sampler import Finish
from treerl.search.select import own_score, parent_score, ranked, uct_score
from treerl.search.tree import ROOT, Tree

PLUS, MINUS = True, False


def released_backup(q, gamma, right):
    """The recursion of the release, one backup at one node."""
    value = 1.0 if right else -1.0
    if q == 0 or (q > 0) == right:
        return q + gamma * value
    return gamma * value if right else q


def paper(depth, leaf):
    return gamma_paper(depth, leaf, floor=0.1)


def released(depth, leaf):
    return gamma_released(depth, leaf, floor=0.1)


def test_depth_discounts_on_a_path_of_four_nodes():
    assert [paper(d, 3) for d in range(4)] == pytest.approx([0.1, 1 / 3, 2 / 3, 1])
    assert [released(d, 3) for d in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([PLUS, MINUS, MINUS], [0.3, 0.3, 0.3]),
        ([MINUS, MINUS, PLUS], [-0.3, -0.6, 0.3]),
        ([MINUS, PLUS, MINUS, PLUS], [-0.3, 0.3, 0.3, 0.6]),
    ],
)
def test_released_node_run(outcomes, expected):
    # d = 5, L = 19: gamma .3
    tally, after = Tally(), []
    for outcome in outcomes:
        tally.add(released(5, 19), outcome)
        after.append(tally.q)
    assert after == pytest.approx(expected)


def test_closed_form_equals_the_recursion_for_every_outcome_and_order():
    gammas = [0.1, 0.25, 0.3, 0.75, 1.0]
    for outcomes in product([PLUS, MINUS], repeat=5):
        tally = Tally()
        for gamma, outcome in zip(gammas, outcomes, strict=True):
            tally.add(gamma, outcome)
        for order in permutations(range(5)):
            q = 0.0
            for i in order:
                q = released_backup(q, gammas[i], outcomes[i])
            assert q == pytest.approx(tally.q)


def test_mean_counts_the_creation_visit_and_is_0_without_visits():
    assert Tally().mean == 0
    tally = Tally(visits=1)
    tally.add(0.5, PLUS)
    assert tally.mean == 0.25


def frontier_score(settings, *, parent_mean, **own):
    return parent_score(settings, parent_mean) + own_score(settings, **own)


def test_frontier_scores_of_the_specification():
    def score(settings):
        return frontier_score(
            settings, parent_mean=0.5, own_mean=0.9, uncertainty=1.2, depth=16, max_depth=64
        )

    assert score(DeepSearchSearch()) == pytest.approx(0.189847, abs=1e-6)
    assert score(DeepSearchSearch(uncertainty_weight=0.4)) == pytest.approx(0.669847, abs=1e-6)


def test_unknown_uncertainty_adds_nothing():
    score = frontier_score(
        DeepSearchSearch(uncertainty_weight=0.4),
        parent_mean=0,
        own_mean=0,
        uncertainty=float("nan"),
        depth=0,
        max_depth=64,
    )
    assert score == 0


@pytest.mark.parametrize(("kind", "expected"), [("sqrt", 0.5), ("linear", 16), ("log", 2.833213)])
def test_depth_bonus_forms(kind, expected):
    settings = DeepSearchSearch(depth_bonus=kind, depth_weight=1)
    score = frontier_score(
        settings, parent_mean=0, own_mean=0, uncertainty=0, depth=16, max_depth=64
    )
    assert score == pytest.approx(expected)


def test_uct_of_fresh_siblings_has_no_exploration():
    assert uct_score(0.0, 1, 1, 2.0) == 0
    assert uct_score(0.2, 0, 5, 2.0) == 0.2
    assert uct_score(0.2, 4, 8, 2.0) == pytest.approx(0.2 + 2 * (2.0794415 / 4) ** 0.5)


def test_ties_are_broken_by_seed_and_by_more_than_1e_9_not_at_all():
    firsts = set()
    for seed in range(20):
        tree = Tree([1], seed=seed, max_completion_length=9)
        request = tree.request(ROOT, 3)
        rows = [tree.append(request, k, span([5])) for k in range(3)]
        tied = [(k, 0.5 + k * 1e-13, *tree.point(row)) for k, row in enumerate(rows)]
        firsts.add(ranked(tree, tied)[0])
        assert ranked(tree, tied[::-1]) == ranked(tree, tied)
        clear = [(k, 0.1 * k, *tree.point(row)) for k, row in enumerate(rows)]
        assert ranked(tree, clear) == [2, 1, 0]
    assert firsts == {0, 1, 2}


def test_chunks_round_up():
    assert [chunks(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_stored_scores_of_the_hand_tree():
    # credit.md's hand tree: a has leaves 1, 0, 0; b has 1, 1; c is a leaf; one chunk a node, paper gamma.
    tree = Tree([1], seed=0, max_completion_length=9)
    root = tree.request(ROOT, 3)
    a = tree.append(root, 0, span([2], Finish.CUT))
    b = tree.append(root, 1, span([3], Finish.CUT))
    c = tree.append(root, 2, span([4]))
    under_a, under_b = tree.request(a, 3), tree.request(b, 2)
    a1, a2, a3 = (tree.append(under_a, k, span([5 + k])) for k in range(3))
    b1, b2 = (tree.append(under_b, k, span([8 + k])) for k in range(2))
    judged = [(a1, PLUS), (a2, MINUS), (b1, PLUS), (c, PLUS)]
    store_tallies(tree, judged, gamma_table("paper", 0.1), 1)
    assert tree.nodes.value_sum[[ROOT, a, b, c, a1, a2, b1]].tolist() == pytest.approx(
        [0.3, 0.5, 0.5, 1, 1, -1, 1]
    )
    assert tree.nodes.visits[[ROOT, a, b, c]].tolist() == [4, 2, 1, 1]
    store_tallies(tree, [*judged, (a3, MINUS), (b2, PLUS)], gamma_table("paper", 0.1), 1)
    assert tree.nodes.value_sum[[ROOT, a, b]].tolist() == pytest.approx([0.4, 0.5, 1.0])

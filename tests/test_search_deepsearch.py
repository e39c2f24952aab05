"""DeepSearch over the fake sampler: the improved form and the published one."""

import itertools

import numpy as np
import pytest

from tests.support_search import (
    EOS,
    PROBLEM,
    PROMPT,
    FakeSampler,
    InterruptedSampler,
    ScriptedSampler,
    WaveSampler,
    check_invariants,
    decode_text,
    decode_tokens,
    draw_name,
    grow_trees,
    judge_with,
    last_letter_verdict,
    span,
)
from treerl.config import (
    DeepSearchSearch,
)
from treerl.search.sampler import Finish, Origin
from treerl.search.scheduler import Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


def long_answers(**more):
    return FakeSampler(eos_bias=-2.5, **more)


def leaves_by_origin(tree, origin):
    return [row for row in range(len(tree)) if tree.nodes.origin[row] == origin]


def verdicts_by_order(rewards):
    """A judge that hands out the given rewards in turn."""
    turn = itertools.cycle(rewards)
    return judge_with(lambda completion: Verdict("scored", float(next(turn))))


# DeepSearch, improved -------------------------------------------------------------------------------------


def test_improved_form_keeps_every_leaf_and_needs_few_waves():
    settings = DeepSearchSearch(chunk_tokens=3, num_generations=8)
    sampler = WaveSampler(eos_bias=-2.5)
    (tree,) = grow_trees(settings, sampler=sampler, trees=1)
    assert tree.meta["exit"] == "done"
    assert len(tree.leaves()) == 8
    assert tree.nodes.selected.all()
    assert sampler.waves == 2


def test_branch_points_lie_on_the_grid_and_are_used_once():
    settings = DeepSearchSearch(chunk_tokens=3, num_generations=16)
    for tree in grow_trees(settings, sampler=long_answers()):
        points = []
        for row in leaves_by_origin(tree, Origin.FRONTIER):
            parent = int(tree.nodes.parent[row])
            assert tree.completion_length(parent) % 3 == 0
            points.append(parent)
        assert all(points.count(point) <= settings.num_branches for point in points)


def test_no_subtree_gets_more_than_its_share():
    def largest(max_share):
        settings = DeepSearchSearch(chunk_tokens=2, num_generations=16, max_share=max_share)
        shares, exits = [], set()
        for tree in grow_trees(settings, sampler=long_answers()):
            tops = [draw_name(tree, int(tree.nodes.draw[u]))[0][1] for u in tree.leaves().tolist()]
            shares.append(max(tops.count(top) for top in tops))
            exits.add(tree.meta["exit"])
        assert "done" in exits
        return max(shares)

    assert largest(0.25) == 4
    assert largest(1.0) > 4


def test_enough_right_and_wrong_ends_the_search():
    settings = DeepSearchSearch(chunk_tokens=2, num_initial=4, num_generations=100, enough=2)
    (tree,) = grow_trees(settings, trees=1, judge=verdicts_by_order([1, 0]))
    assert tree.meta["exit"] == "enough"
    assert len(tree.leaves()) == 4
    (tree,) = grow_trees(
        settings, sampler=long_answers(), trees=1, judge=verdicts_by_order([1, 0, 0, 0])
    )
    assert tree.meta["exit"] == "enough"
    assert len(tree.leaves()) == 8


def test_short_answers_leave_no_frontier_and_that_is_an_end():
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=100), trees=1)
    assert tree.meta["exit"] == "exhausted"
    assert len(tree.leaves()) == 4


def test_the_stop_token_alone_is_not_drawn_again():
    sampler = ScriptedSampler(lambda work: [7, 8, 9, EOS])
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=3), sampler=sampler, trees=1)
    assert tree.meta["exit"] == "exhausted"
    (tree,) = grow_trees(DeepSearchSearch(chunk_tokens=2), sampler=sampler, trees=1)
    assert tree.meta["exit"] == "done"


def test_search_scores_are_stored_at_the_end():
    settings = DeepSearchSearch(chunk_tokens=3)
    (tree,) = grow_trees(settings, sampler=long_answers(), trees=1)
    rewards = tree.nodes.reward[tree.leaves()]
    assert tree.nodes.visits[ROOT] == len(rewards)
    right = int((rewards > 0.5).sum())
    assert tree.nodes.value_sum[ROOT] == pytest.approx(
        0.1 * right if right else -0.1 * len(rewards)
    )


# DeepSearch, faithful -------------------------------------------------------------------------------------

FAITHFUL = DeepSearchSearch(
    form="faithful", chunk_tokens=2, width=3, max_depth=10, num_generations=5
)


def faithful_trees(settings=FAITHFUL, **more):
    return grow_trees(settings, sampler=long_answers(), trees=12, **more)


def test_faithful_form_records_exactly_num_generations_leaves():
    for tree in faithful_trees():
        assert tree.meta["exit"] == "done"
        leaves = tree.leaves()
        assert tree.nodes.selected[leaves].sum() == 5


def test_faithful_nodes_are_chunks_and_expansions_are_whole():
    for tree in faithful_trees():
        lengths = tree.nodes.stop - tree.nodes.start
        for row in range(1, len(tree)):
            assert lengths[row] <= 2
            if tree.nodes.finish[row] == Finish.CUT:
                assert lengths[row] == 2
            assert len(tree.children(row)) in (0, 3)
        assert max(tree.completion_length(u) for u in range(len(tree))) <= 20


def test_faithful_form_records_the_most_confident_of_the_right_ones_first():
    seen = 0
    for tree in faithful_trees():
        nodes = tree.nodes
        for parent in range(len(tree)):
            ended = [u for u in tree.children(parent) if nodes.finish[u] != Finish.CUT]
            if len(ended) < 2:
                continue
            seen += 1
            (recorded,) = [u for u in ended if nodes.selected[u]]
            best = [u for u in ended if nodes.reward[u] == nodes.reward[ended].max()]
            nll = {
                u: -tree.tokens.logprob[tree.path_index(u)[tree.n_prompt :]].mean() for u in best
            }
            assert nll[recorded] == min(nll.values())
    assert seen > 5


def test_faithful_scores_and_visits_follow_from_the_recorded_leaves():
    (tree, *_) = faithful_trees()
    nodes = tree.nodes
    depth = [len(tree.path(u)) - 1 for u in range(len(tree))]
    recorded = [u for u in tree.leaves().tolist() if nodes.selected[u]]
    for row in range(len(tree)):
        right = wrong = 0.0
        visits = int(nodes.finish[row] == Finish.CUT)
        for leaf in recorded:
            if row in tree.path(leaf):
                visits += 1
                gamma = max(depth[row] / depth[leaf], 0.1)
                right += gamma * (nodes.reward[leaf] == 1)
                wrong += gamma * (nodes.reward[leaf] != 1)
        assert nodes.value_sum[row] == pytest.approx(right if right else -wrong)
        assert nodes.visits[row] == visits


def test_faithful_form_takes_up_a_partly_grown_tree():
    tree = Tree(PROMPT, seed=0, max_completion_length=24)
    strategy = make_strategy(FAITHFUL, decode_tokens)
    with pytest.raises(KeyboardInterrupt):
        list(
            grow(
                [Growth(tree, strategy, PROBLEM)],
                InterruptedSampler(20, eos_bias=-2.5),
                judge_with(),
                decode_text,
            )
        )
    before = len(tree)
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert len(tree) > before
    assert tree.nodes.selected[tree.leaves()].sum() == 5
    check_invariants(tree)


def test_unscored_leaves_are_recorded_last_and_back_up_nothing():
    def verdict(completion):
        return Verdict("timeout") if completion.text[-1:] > "e" else last_letter_verdict(completion)

    trees = faithful_trees(judge=judge_with(verdict))
    assert {tree.meta["exit"] for tree in trees} == {"done"}
    unscored = 0
    for tree in trees:
        for leaf in tree.leaves().tolist():
            if np.isnan(tree.nodes.reward[leaf]):
                unscored += bool(tree.nodes.selected[leaf])
                assert tree.nodes.visits[leaf] == 0
    assert unscored > 0


def test_cached_solutions_count_as_recorded_leaves():
    tree = Tree(PROMPT, seed=0, max_completion_length=24)
    row = tree.graft(ROOT, span([7, 8, EOS]), source=1)
    tree.judge(row, Verdict("scored", 1.0))
    strategy = make_strategy(FAITHFUL, decode_tokens)
    list(grow([Growth(tree, strategy, PROBLEM)], long_answers(), judge_with(), decode_text))
    assert tree.nodes.selected[row]
    assert tree.nodes.selected[tree.leaves()].sum() == 5
    assert len(tree.children(ROOT)) == 4

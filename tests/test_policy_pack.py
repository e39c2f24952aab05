"""Packing: layout, budgets, cuts, masses, write-back."""

import time
from itertools import pairwise

import numpy as np
import pytest

from tests.support_policy import grow, one_row, ragged_tree, random_credit, random_tree
from treerl.credit.masses import TokenCredit
from treerl.errors import ConfigError
from treerl.policy.forward import is_chain
from treerl.policy.pack import (
    cut_leaves,
    gather_from_trees,
    pack_trees,
    scatter_to_trees,
    training_leaves,
)
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree


def hand_tree():
    """Prompt (1, 2); child a (3, 4) with leaves b (5), c (6, 7); leaf d (8) beside a."""
    rng = np.random.default_rng(0)
    tree = Tree([1, 2], seed=0, max_completion_length=9)
    a = grow(tree, ROOT, 2, Finish.CUT, rng)
    d = grow(tree, ROOT, 1, Finish.STOP, rng)
    b = grow(tree, a, 1, Finish.STOP, rng)
    c = grow(tree, a, 2, Finish.LENGTH, rng)
    tree.tokens.token[:] = [1, 2, 3, 4, 8, 5, 6, 7]
    return tree, a, b, c, d


def test_columns_of_a_hand_tree():
    tree, *_ = hand_tree()
    batch = one_row([tree])
    assert batch.token[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.position[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 2]
    assert batch.prev[0].tolist() == [-1, 0, 1, 2, 3, 3, 5, 1]
    assert batch.end[0].tolist() == [8, 8, 7, 7, 5, 7, 7, 8]
    assert batch.own[0].tolist() == [False, False, True, True, True, True, True, True]
    assert batch.source[0].tolist() == [0, 1, 2, 3, 5, 6, 7, 4]
    assert batch.tree[0].tolist() == [0] * 8
    assert batch.lp_beh[0, 4] == tree.tokens.logprob[5]


def test_second_childs_predecessor_is_the_parents_last_token():
    """A label shift by one would pair it with its elder sibling's last token (trap 5)."""
    tree = ragged_tree()
    batch = one_row([tree])
    for node in range(1, len(tree)):
        first = int(np.flatnonzero(batch.source[0] == tree.nodes.start[node])[0])
        parent_last = tree.nodes.stop[tree.nodes.parent[node]] - 1
        assert batch.source[0, batch.prev[0, first]] == parent_last


def test_only_paths_to_selected_ended_leaves():
    tree, _a, _b, c, d = hand_tree()
    tree.nodes.selected[c] = False
    tree.nodes.finish[d] = Finish.CUT
    batch = one_row([tree])
    assert batch.token[0].tolist()[:5] == [1, 2, 3, 4, 5]
    assert (batch.source[0] >= 0).sum() == 5
    tree.nodes.selected[:] = False
    assert pack_trees([tree], max_tokens=50) == []


def test_ancestor_test_equals_paths():
    trees = [random_tree(1), random_tree(2)]
    batch = one_row(trees)
    end, prev = batch.end[0], batch.prev[0]
    for q in range(batch.shape[1]):
        seen = {k for k in range(q + 1) if q < end[k]}
        path = set()
        k = q
        while k >= 0:
            path.add(k)
            k = prev[k]
        assert seen == path


def test_padding_sees_itself_alone():
    batch = pack_trees([ragged_tree(), random_tree(0)], max_tokens=1000, bucket=True)[0]
    pad = batch.source < 0
    assert pad.any()
    slot = np.broadcast_to(np.arange(batch.shape[1]), batch.shape)
    assert (batch.end[pad] == slot[pad] + 1).all()
    assert (batch.prev[pad] == -1).all()
    assert not batch.own[pad].any()
    assert batch.positive[pad].sum() == batch.weight[pad].sum() == 0


@pytest.mark.parametrize("seed", range(8))
def test_every_token_is_owned_once_whatever_the_layout(seed):
    trees = [random_tree(seed), random_tree(seed + 100, spans=20), ragged_tree(seed)]
    credits = [random_credit(tree, i) for i, tree in enumerate(trees)]
    for settings in (
        {"max_tokens": 60},
        {"max_tokens": 90, "row_tokens": 90},
        {"max_tokens": 256, "row_tokens": 100},
        {"max_tokens": 256, "bucket": True},
        {"max_tokens": 90, "mode": "flat"},
    ):
        batches = pack_trees(trees, credits, **settings)
        assert all(batch.token.size <= settings["max_tokens"] for batch in batches)
        owned = [(batch.tree[batch.own], batch.source[batch.own]) for batch in batches]
        pairs = np.concatenate([np.stack(pair, 1) for pair in owned])
        assert len(np.unique(pairs, axis=0)) == len(pairs)
        for name in ("positive", "negative", "weight"):
            total = sum(getattr(batch, name).sum() for batch in batches)
            on_paths = sum(
                getattr(credit, name)[reached(tree)].sum()
                for tree, credit in zip(trees, credits, strict=True)
            )
            assert total == pytest.approx(on_paths)
            assert all(getattr(batch, name)[~batch.own].sum() == 0 for batch in batches)


def reached(tree):
    paths = [tree.path_index(leaf) for leaf in training_leaves(tree)]
    return np.unique(np.concatenate(paths))


def test_masked_tokens_are_not_owned():
    tree, *_ = hand_tree()
    tree.tokens.mask[3] = False
    batch = one_row([tree])
    assert batch.own[0].tolist() == [False, False, True, False, True, True, True, True]


def star(leaves, prompt, length, seed=0):
    rng = np.random.default_rng(seed)
    tree = Tree(rng.integers(3, 60, prompt), seed=seed, max_completion_length=9999)
    for _ in range(leaves):
        grow(tree, ROOT, length, Finish.STOP, rng)
    return tree


def binary(depth, prompt, length):
    rng = np.random.default_rng(0)
    tree = Tree(rng.integers(3, 60, prompt), seed=0, max_completion_length=9999)
    level = [ROOT]
    for d in range(depth):
        finish = Finish.STOP if d == depth - 1 else Finish.CUT
        level = [grow(tree, node, length, finish, rng) for node in level for _ in range(2)]
    return tree


@pytest.mark.parametrize(("budget", "repeated"), [(4096, 3.1), (2048, 7.7), (1024, 23.1)])
def test_cut_of_a_star_repeats_the_prompt(budget, repeated):
    batches = pack_trees([star(16, 128, 512)], max_tokens=budget)
    total = sum((batch.source >= 0).sum() for batch in batches)
    assert round(100 * (total / 8320 - 1), 1) == repeated


def test_cut_is_optimal_where_greedy_is_not():
    """Depth 7, filling greedily to 1536 cuts below deep forks; the program cuts at shallow ones."""
    tree = binary(5, 128, 64)
    batches = pack_trees([tree], max_tokens=1536)
    total = sum(int((batch.source >= 0).sum()) for batch in batches)
    depth = np.full(32, 128 + 5 * 64)
    shared = np.array([0, *[128 + 64 * (4 - trailing_zeros(i)) for i in range(1, 32)]])
    assert total == (depth - shared).sum() + exhaustive_cut(depth, shared, 1536)


def trailing_zeros(i):
    return (i & -i).bit_length() - 1


def exhaustive_cut(depth, shared, budget):
    from functools import cache

    @cache
    def best(start):
        if start == len(depth):
            return 0
        results = []
        size = depth[start]
        for stop in range(start + 1, len(depth) + 1):
            if stop > start + 1:
                size += depth[stop - 1] - shared[stop - 1]
            if size > budget:
                break
            results.append((shared[stop] if stop < len(depth) else 0) + best(stop))
        return min(results)

    return best(0)


def test_cut_leaves_by_hand():
    """Leaves of 10 tokens; the forks before them at 0, 8, 2, 8: cut between the second and third."""
    assert cut_leaves(np.array([10, 10, 10, 10]), np.array([0, 8, 2, 8]), 14) == [0, 2, 4]
    assert cut_leaves(np.array([10, 10, 10, 10]), np.array([0, 8, 2, 8]), 22) == [0, 4]
    assert cut_leaves(np.array([10]), np.array([0]), 10) == [0, 1]


def test_a_path_over_the_budget_is_refused():
    with pytest.raises(ConfigError, match="max_tokens_per_microbatch = 100"):
        pack_trees([star(2, 60, 50)], max_tokens=100)


def test_flat_mode_has_one_leaf_a_row_and_is_a_chain():
    tree = ragged_tree()
    batches = pack_trees([tree], max_tokens=60, mode="flat")
    rows = [row[row >= 0].tolist() for batch in batches for row in batch.source]
    wanted = [tree.path_index(leaf).tolist() for leaf in training_leaves(tree)]
    assert sorted(rows) == sorted(wanted)
    assert all(is_chain(batch) for batch in batches)
    assert not is_chain(one_row([tree]))
    assert not is_chain(one_row([star(1, 3, 4), star(1, 2, 4)]))


def test_rows_of_like_length_share_a_batch():
    trees = [star(1, 4, length) for length in (100, 20, 99, 21)]
    shapes = sorted(batch.shape for batch in pack_trees(trees, max_tokens=1000))
    assert shapes == [(2, 25), (2, 104)]


def test_write_back_and_gather_are_inverse():
    trees = [random_tree(4), ragged_tree(5)]
    for mode in ("tree", "flat"):
        batches = pack_trees(trees, max_tokens=64, mode=mode)
        values = [batch.lp_beh.astype(np.float64) for batch in batches]
        columns = scatter_to_trees(batches, values, trees)
        for tree, column in zip(trees, columns, strict=True):
            here = ~np.isnan(column)
            np.testing.assert_array_equal(column[here], tree.tokens.logprob[here])
            assert np.array_equal(np.flatnonzero(here), reached(tree)[tree.n_prompt :])
        for batch in batches:
            again = gather_from_trees(batch, columns)
            np.testing.assert_array_equal(again[batch.own], batch.lp_beh[batch.own])
            assert np.isnan(again[batch.source < 0]).all()


def test_prev_is_a_flat_index():
    trees = [star(2, 4, 10, seed) for seed in range(3)]
    (batch,) = pack_trees(trees, max_tokens=1000)
    assert batch.shape == (3, 24)
    for b in range(3):
        prev = batch.prev[b][batch.prev[b] >= 0]
        assert (prev // 24 == b).all()


def test_packing_is_fast():
    trees = [random_tree(seed, spans=11, longest=60) for seed in range(32)]
    credits = [random_credit(tree, 0) for tree in trees]
    seconds = []
    for _ in range(5):
        start = time.process_time()
        pack_trees(trees, credits, max_tokens=8192)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02


def test_zero_credit_without_rows_is_kept_apart():
    tree, *_ = hand_tree()
    zeros = np.zeros(len(tree.tokens))
    credit = TokenCredit(zeros, zeros, zeros, denominator=0.0, n_rows=0)
    (batch,) = pack_trees([tree], [credit], max_tokens=50)
    assert batch.own.sum() == 6
    assert batch.weight.sum() == 0


def test_parts_share_nothing_but_the_path_at_the_cut():
    tree = binary(4, 16, 8)
    batches = pack_trees([tree], max_tokens=120)
    rows = [set(row[row >= 0].tolist()) for batch in batches for row in batch.source]
    sizes = sorted(len(row) for row in rows)
    assert all(size <= 120 for size in sizes)
    for a, b in pairwise(rows):
        assert {0, 15} <= a & b

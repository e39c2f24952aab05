"""From advantages to masses: aggregation, two masses per token, and which leaves count."""

import numpy as np
import pytest

from tests.support_credit import (
    PROMPT,
    build,
    hand_tree,
    random_signals,
    random_tree,
    span,
)
from treerl.config import AdvantageSettings
from treerl.credit.assign import assign, entry_advantages, node_weight
from treerl.credit.rows import Forest, training_rows
from treerl.search.sampler import Origin
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

MODES = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
DR_GRPO = AdvantageSettings(estimator="dr_grpo")


def one_of(tree: Tree, settings=DR_GRPO, mode="token-mean", **more):
    return assign([tree], settings, loss_agg_mode=mode, **more)[0]


# The aggregation table: p (2 tokens) with children a (1) and b (3), c (4) beside p; C = 8

AGGREGATION = [
    ("token-mean", "n", [1 / 6, 1 / 12, 1 / 12, 1 / 12], [0.027778, 0.055556, -0.027778, -0.027778]),
    ("seq-mean-token-mean", "n", [0.177778, 0.111111, 0.066667, 0.083333],
     [0.051852, 0.074074, -0.022222, -0.027778]),
    ("seq-mean-token-sum-norm", "n", [1 / 12, 1 / 24, 1 / 24, 1 / 24],
     [0.013889, 0.027778, -0.013889, -0.013889]),
    ("seq-mean-token-sum", "n", [8 / 12, 8 / 24, 8 / 24, 8 / 24],
     [8 * 0.0138889, 8 * 0.0277778, -8 * 0.0138889, -8 * 0.0138889]),
    ("token-mean", "one", [0.1] * 4, [0.016667, 0.066667, -0.033333, -0.033333]),
    ("token-mean", "sqrt_n", [0.130602, 0.092350, 0.092350, 0.092350],
     [0.021767, 0.061566, -0.030783, -0.030783]),
]  # fmt: skip


def aggregation_tree():
    shape = {"p": (2, {"a": (1, 1.0), "b": (3, 0.0)}), "c": (4, 0.0)}
    return build(shape, max_completion_length=8)


@pytest.mark.parametrize(("mode", "weight", "total", "product"), AGGREGATION)
def test_aggregation_table(mode, weight, total, product):
    tree, names = aggregation_tree()
    settings = AdvantageSettings(estimator="dr_grpo", node_weight=weight)
    credit = one_of(tree, settings, mode)
    first = [int(tree.nodes.start[names[u]]) for u in "pabc"]
    assert credit.weight[first] / credit.denominator == pytest.approx(total, abs=6e-7)
    mass = (credit.positive - credit.negative)[first] / credit.denominator
    assert mass == pytest.approx(product, abs=6e-7)
    for u in "pabc":
        column = credit.weight[tree.nodes.start[names[u]] : tree.nodes.stop[names[u]]]
        assert np.ptp(column) == 0


@pytest.mark.parametrize(
    ("mode", "weight", "denominator", "total"),
    [
        ("token-mean", "n", 12, 1),
        ("token-mean", "one", 10, 1),
        ("token-mean", "sqrt_n", 10.828427, 1),
        ("seq-mean-token-mean", "n", 3, 1),
        ("seq-mean-token-mean", "one", 2.466667, 1),
        ("seq-mean-token-sum", "n", 3, 4),
        ("seq-mean-token-sum", "one", 3, 10 / 3),
        ("seq-mean-token-sum-norm", "n", 24, 0.5),
    ],
)
def test_denominators(mode, weight, denominator, total):
    tree, _ = aggregation_tree()
    settings = AdvantageSettings(estimator="dr_grpo", node_weight=weight)
    credit = one_of(tree, settings, mode)
    assert credit.denominator == pytest.approx(denominator, abs=6e-7)
    assert credit.weight.sum() / credit.denominator == pytest.approx(total)
    assert credit.n_rows == 3


def test_mean_advantage_of_a_shared_token_weighs_short_rows_more_in_the_sequence_mean():
    tree, names = aggregation_tree()
    first = int(tree.nodes.start[names["p"]])
    for mode, expected in (("token-mean", 1 / 6), ("seq-mean-token-mean", 0.291667)):
        credit = one_of(tree, mode=mode)
        mean = (credit.positive - credit.negative)[first] / credit.weight[first]
        assert mean == pytest.approx(expected, abs=6e-7)


def test_denominators_of_a_step_add_up_and_trees_do_not_see_each_other():
    trees = [random_tree(1), random_tree(2), random_tree(3)]
    for mode in MODES:
        together = assign(trees, DR_GRPO, loss_agg_mode=mode)
        for tree, credit in zip(trees, together, strict=True):
            alone = one_of(tree, mode=mode)
            assert credit.denominator == pytest.approx(alone.denominator)
            assert credit.positive.tolist() == alone.positive.tolist()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="loss_agg_mode 'mean'"):
        one_of(random_tree(1), mode="mean")


# Two masses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("estimator", ["grpo", "tree_value", "frpo", "implicit_prm"])
def test_masses_equal_sums_over_rows(estimator, mode):
    for seed in range(25):
        tree = random_tree(seed)
        settings = AdvantageSettings(
            estimator=estimator, node_weight="n", beta=0.5, zero_variance="keep"
        )
        signals = [random_signals(tree, seed)]
        credit = one_of(tree, settings, mode, signals=signals)
        forest = Forest.of([tree])
        rows = training_rows(forest)
        values = entry_advantages(forest, rows, settings, signals=signals)
        expected = np.zeros((3, len(tree.tokens)))
        for leaf in tree.leaves().tolist():
            path = tree.path_index(leaf)[tree.n_prompt :]
            weight = 1 / len(path) if mode == "seq-mean-token-mean" else 1.0
            own = values[rows.row == rows.leaf.tolist().index(leaf)]
            expected[0, path] += weight * np.maximum(own, 0)
            expected[1, path] += weight * np.maximum(-own, 0)
            expected[2, path] += weight
        found = np.stack([credit.positive, credit.negative, credit.weight])
        assert found == pytest.approx(expected, abs=1e-12)
        assert credit.n_rows == len(tree.leaves())


def test_a_shared_token_of_rows_that_disagree_keeps_both_masses():
    tree, names = hand_tree()
    first = int(tree.nodes.start[names["a"]])
    credit = one_of(tree)
    assert credit.positive[first] == pytest.approx(1 / 3)
    assert credit.negative[first] == pytest.approx(4 / 3)
    assert credit.weight[first] == 3


def test_clipped_surrogate_on_masses_equals_leaf_rows_at_every_ratio():
    rng = np.random.default_rng(0)

    def surrogate(a, ratio):
        plus = np.minimum(ratio, 1.28)
        minus = np.minimum(np.maximum(ratio, 0.8), 3.0)
        return np.maximum(-a, 0) * minus - np.maximum(a, 0) * plus

    for seed in range(20):
        tree = random_tree(seed)
        credit = one_of(tree, AdvantageSettings(estimator="rloo"))
        forest = Forest.of([tree])
        rows = training_rows(forest)
        values = entry_advantages(forest, rows, AdvantageSettings(estimator="rloo"))
        ratio = rng.uniform(0.2, 5.0, size=len(tree.tokens))
        by_row = surrogate(values, ratio[rows.token]).sum()
        by_token = surrogate(-credit.negative, ratio) + surrogate(credit.positive, ratio)
        assert by_token.sum() == pytest.approx(by_row, abs=1e-11)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", "n"),
        ("frpo", "n"),
        ("implicit_prm", "n"),
        ("tree_value", "one"),
        ("sibling_rloo", "one"),
        ("deepsearch", "one"),
        ("implicit_value", "one"),
    ],
)
def test_default_node_weight(estimator, expected):
    assert node_weight(AdvantageSettings(estimator=estimator)) == expected
    assert node_weight(AdvantageSettings(estimator=estimator, node_weight="sqrt_n")) == "sqrt_n"


def test_faithful_deepsearch_trains_leaf_rows():
    assert node_weight(AdvantageSettings(estimator="deepsearch", faithful=True)) == "n"


def test_node_estimator_trains_each_token_once():
    tree, names = hand_tree()
    credit = one_of(tree, AdvantageSettings(estimator="tree_value"))
    assert credit.weight.tolist() == [0.0] * len(PROMPT) + [1.0] * 16
    assert credit.denominator == 16
    first = int(tree.nodes.start[names["a"]])
    assert credit.negative[first] == pytest.approx(1 / 3)
    assert credit.positive[first] == 0


# Which leaves and tokens count


def test_unjudged_leaves_leave_the_group_and_the_rows():
    tree, names = build({"x": (1, 1.0), "y": (2, 0.0), "skipped": (3, None)})
    credit = one_of(tree)
    assert credit.n_rows == 2
    assert credit.denominator == 3
    skipped = slice(tree.nodes.start[names["skipped"]], tree.nodes.stop[names["skipped"]])
    assert not credit.weight[skipped].any()
    assert credit.positive[tree.nodes.start[names["x"]]] == 0.5


def test_unselected_leaves_stay_in_the_group_but_train_nothing():
    tree, names = hand_tree()
    tree.nodes.selected[[names["a3"], names["b2"]]] = False
    credit = one_of(tree)
    assert credit.n_rows == 4
    a1 = int(tree.nodes.start[names["a1"]])
    assert credit.positive[a1] == pytest.approx(1 / 3)
    assert credit.weight[tree.nodes.start[names["a3"]]] == 0
    assert credit.weight[tree.nodes.start[names["a"]]] == 2


def test_cached_leaves_are_rows_like_others():
    tree, _ = build({"x": (1, 0.0), "y": (2, 0.0)})
    cached = tree.graft(ROOT, span(3), source=5)
    tree.judge(cached, Verdict("scored", 1.0))
    assert tree.nodes.origin[cached] == Origin.CACHE
    credit = one_of(tree)
    assert credit.n_rows == 3
    assert credit.positive[tree.nodes.start[cached]] == pytest.approx(2 / 3)


def test_masked_tokens_get_no_credit_and_shorten_the_row():
    tree, names = build({"x": (3, 1.0), "y": (2, 0.0)})
    start = int(tree.nodes.start[names["x"]])
    tree.tokens.mask[start + 1] = False
    credit = one_of(tree, mode="seq-mean-token-mean")
    assert credit.weight[start : start + 3].tolist() == [0.5, 0.0, 0.5]
    assert one_of(tree).denominator == 4


def test_a_row_without_a_trained_token_is_no_row():
    tree, names = build({"x": (1, 1.0), "y": (2, 0.0)})
    tree.tokens.mask[tree.nodes.start[names["x"]]] = False
    assert one_of(tree, mode="seq-mean-token-sum").denominator == 1

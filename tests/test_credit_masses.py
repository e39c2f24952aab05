"""From advantages to masses: aggregation, two masses per token, and which leaves and trees count."""

import dataclasses

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
from treerl.credit.assign import assign, assign_with_summary, entry_advantages, node_weight
from treerl.credit.dense import Signals
from treerl.credit.rows import Forest, training_rows
from treerl.errors import UpdateError
from treerl.search.sampler import Origin
from treerl.search.tree import ROOT, Tree

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
    from treerl.verifiers.verdict import Verdict

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


# Which trees count


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.7])
def test_uniform_tree_is_dropped(reward):
    tree, _ = build({"x": (1, reward), "y": (2, reward)})
    credit = one_of(tree, AdvantageSettings(estimator="grpo"))
    assert (credit.denominator, credit.n_rows) == (0.0, 0)
    assert not credit.weight.any()


def test_uniform_tree_that_is_kept_weighs_but_pushes_nothing():
    tree, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    credit = one_of(tree, AdvantageSettings(estimator="grpo", zero_variance="keep"))
    assert credit.denominator == 3
    assert not (credit.positive + credit.negative).any()


def test_dropped_trees_leave_batch_statistics():
    mixed, _ = build({"x": (1, 1.0), "y": (1, 0.0)})
    uniform, _ = build({"x": (1, 1.0), "y": (1, 1.0)})
    settings = AdvantageSettings(estimator="dr_grpo", scale_rewards="batch", std_ddof=0)
    found = assign([uniform, mixed], settings, loss_agg_mode="token-mean")
    assert found[1].positive.max() == pytest.approx(1.0)
    kept = assign(
        [uniform, mixed],
        settings.model_copy(update={"zero_variance": "keep"}),
        loss_agg_mode="token-mean",
    )
    # The std of raw rewards over the batch (1, 1, 1, 0), not of the centred ones.
    assert kept[1].positive.max() == pytest.approx(1.154701, abs=6e-7)


def test_task_std_over_two_groups():
    one, _ = build({f"l{i}": (1, r) for i, r in enumerate((1.0, 0.0, 0.0, 0.0))})
    two, _ = build({f"l{i}": (1, r) for i, r in enumerate((1.0, 1.0, 0.0, 0.0))})
    settings = AdvantageSettings(estimator="grpo", scale_rewards="batch", std_ddof=0)
    found = assign([one, two], settings, loss_agg_mode="token-mean")
    assert found[0].positive.max() == pytest.approx(1.549193, abs=6e-7)
    assert found[0].negative.max() == pytest.approx(0.516398, abs=6e-7)
    assert found[1].positive.max() == pytest.approx(1.032796, abs=6e-7)


def test_group_scale_divides_value_differences_by_the_std_of_the_prompt():
    tree, names = hand_tree()
    settings = AdvantageSettings(estimator="tree_value", scale_rewards="group", std_ddof=0)
    credit = one_of(tree, settings)
    a1 = int(tree.nodes.start[names["a1"]])
    assert credit.positive[a1] == pytest.approx(2 / 3 / 0.471405, abs=1e-5)


def test_no_scale_turns_grpo_into_dr_grpo():
    tree, _ = hand_tree()
    found = one_of(tree, AdvantageSettings(estimator="grpo", scale_rewards="none"))
    assert found.positive.tolist() == one_of(tree).positive.tolist()


def test_rms_scale_makes_the_mean_square_one_and_keeps_zero():
    trees = [random_tree(seed) for seed in range(6)]
    settings = AdvantageSettings(estimator="tree_value", rms_scale=True)
    found = assign(trees, settings, loss_agg_mode="token-mean")
    plain = assign(trees, AdvantageSettings(), loss_agg_mode="token-mean")
    mean = np.concatenate([c.positive - c.negative for c in found])
    weight = np.concatenate([c.weight for c in found])
    assert (mean**2).sum() / (weight > 0).sum() == pytest.approx(1.0)
    before = np.concatenate([c.positive - c.negative for c in plain])
    assert np.sign(mean).tolist() == np.sign(before).tolist()


def test_rms_scale_replaces_the_std_of_the_group():
    trees = [random_tree(1), random_tree(2)]
    grpo, plain = (
        assign(trees, AdvantageSettings(estimator=name, rms_scale=True), loss_agg_mode="token-mean")
        for name in ("grpo", "dr_grpo")
    )
    assert grpo[0].positive.tolist() == plain[0].positive.tolist()


def test_reward_low_maps_zero_to_minus_one():
    tree, _ = hand_tree()
    doubled = one_of(tree, AdvantageSettings(estimator="dr_grpo", reward_low=-1.0))
    assert doubled.negative == pytest.approx(2 * one_of(tree).negative)


def test_no_trees_and_trees_without_rows():
    assert assign([], DR_GRPO, loss_agg_mode="token-mean") == []
    bare = Tree(PROMPT, seed=0, max_completion_length=4)
    for zero_variance in ("drop", "keep"):
        settings = AdvantageSettings(zero_variance=zero_variance)
        credit = one_of(bare, settings)
        assert (credit.denominator, credit.n_rows, len(credit.weight)) == (0.0, 0, len(PROMPT))


def test_a_mixed_tree_without_a_selected_leaf_trains_nothing():
    tree, _ = hand_tree()
    tree.nodes.selected[:] = False
    for estimator in ("grpo", "tree_value", "implicit_prm"):
        signals = [random_signals(tree, 0)]
        credit = one_of(tree, AdvantageSettings(estimator=estimator), signals=signals)
        assert credit.denominator == 0


# Signals


def test_dense_estimators_ask_for_signals():
    with pytest.raises(ValueError, match="lp_old and lp_ref"):
        one_of(hand_tree()[0], AdvantageSettings(estimator="frpo"))


def test_signals_of_the_wrong_tree_are_refused():
    tree, _ = hand_tree()
    short = Signals(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="4"):
        one_of(tree, AdvantageSettings(estimator="frpo"), signals=[short])


def test_a_nan_log_prob_is_named():
    tree, _ = hand_tree()
    signals = random_signals(tree, 0)
    signals.lp_ref[5] = np.nan
    with pytest.raises(UpdateError, match="token 5 of tree 0"):
        one_of(tree, AdvantageSettings(estimator="frpo"), signals=[signals])


def test_signals_follow_their_trees_past_a_dropped_one():
    uniform, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    mixed, _ = hand_tree()
    signals = [random_signals(uniform, 0), random_signals(mixed, 1)]
    settings = AdvantageSettings(estimator="frpo", beta=0.5)
    both = assign([uniform, mixed], settings, loss_agg_mode="token-mean", signals=signals)
    alone = one_of(mixed, settings, signals=signals[1:])
    assert both[1].positive == pytest.approx(alone.positive)


# Summary


def test_summary():
    uniform, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    mixed, _ = hand_tree()
    settings = AdvantageSettings(estimator="tree_value")
    _, summary = assign_with_summary([uniform, mixed], settings, loss_agg_mode="token-mean")
    expected = {
        # 16 unique tokens: a -1/3 (2), b 1/3 (1), c 1/3 (4), a1 2/3 (2), a2, a3 -1/3 (4), b1, b2 0 (3)
        "advantage_mean": 1 / 16,
        "advantage_abs": (2 + 1 + 4 + 4 + 4) / 3 / 16,
        "positive_on_wrong": 0.0,
        # a1's row passes the two tokens of a: 2 of the 13 tokens on right rows
        "negative_on_right": 2 / 13,
        "uniform": 0.5,
        "dropped": 1,
        "rows": 6,
        "tokens": 16,
    }
    assert dataclasses.asdict(summary) == pytest.approx(expected)

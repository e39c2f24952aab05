"""The two invariants, the identities of the master formula, and the documented breakers on random trees.

E: equal rewards give exactly zero. S: the sign of a node's advantage agrees with a value difference,
D_root = V(u) - V(root) or D_par = V(u) - V(parent).
"""

import functools
import operator

import numpy as np
import pytest

from tests.support_credit import (
    Case,
    build,
    case,
    future_kl_of_nodes,
    hand_case,
    random_shape,
    random_signals,
    random_tree,
)
from treerl.config import AdvantageSettings
from treerl.credit.assign import entry_advantages
from treerl.credit.deepsearch import Discount, faithful, search_scores
from treerl.credit.dense import future_kl, implicit_return, log_ratio
from treerl.credit.rows import suffix_sum
from treerl.credit.table import TABLE, evaluate
from treerl.search.backup import gamma_table, store_tallies

OUTCOME_ROWS = [name for name, row in TABLE.items() if row.x != "soft"]
SEEDS = range(150)


def table(name: str, found: Case, *, ddof: int = 1) -> np.ndarray:
    return evaluate(
        TABLE[name], found.forest, found.rows, found.outcome, found.statistics, ddof=ddof
    )


def random_case(seed: int, **how) -> Case:
    return case(*build(random_shape(np.random.default_rng(seed), **how)))


def per_node(found: Case, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Node rows that are trained, and their node-once advantage."""
    size = len(found.forest)
    count = np.bincount(found.rows.node, minlength=size)
    total = np.bincount(found.rows.node, entries, minlength=size)
    nodes = np.flatnonzero(count)
    mean = total[nodes] / count[nodes]
    return nodes, np.where(np.abs(mean) < 1e-12, 0.0, mean)


def differences(found: Case, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v = found.statistics.value
    pair = v[nodes] - v[found.forest.root[nodes]], v[nodes] - v[found.forest.parent[nodes]]
    return tuple(np.where(np.abs(d) < 1e-12, 0.0, d) for d in pair)


# E


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.7, -0.1])
@pytest.mark.parametrize("name", OUTCOME_ROWS)
def test_equal_rewards_give_exactly_zero(name, reward):
    for seed in range(20):
        found = random_case(seed, rewards=(reward,))
        assert not table(name, found).any()


@pytest.mark.parametrize("scale", ["group", "batch", "none", None])
@pytest.mark.parametrize(
    "estimator", ["grpo", "dr_grpo", "rloo", "tree_value", "sibling_rloo", "deepsearch"]
)
def test_equal_rewards_give_exactly_zero_under_every_scale(estimator, scale):
    settings = AdvantageSettings(estimator=estimator, scale_rewards=scale, reward_low=-1.0)
    found = random_case(3, rewards=(0.7,))
    assert not entry_advantages(found.forest, found.rows, settings).any()


def test_seven_rewards_of_seven_tenths_round_to_nothing():
    found = case(*build({f"l{i}": (1, 0.7) for i in range(7)}))
    assert functools.reduce(operator.add, [0.7] * 7) / 7 != 0.7
    assert found.statistics.value[0] == 0.7
    assert not table("grpo", found).any()


def test_deepsearch_faithful_breaks_e_and_s():
    wrong = hand_case(all_wrong=True, reward_low=-1.0)
    assert (per_node(wrong, faithful_of(wrong))[1] > 0).any()
    mixed = hand_case(reward_low=-1.0)
    a = mixed.names["a"]
    nodes, values = per_node(mixed, faithful_of(mixed))
    assert values[nodes == a] > 0
    assert mixed.statistics.value[a] < mixed.statistics.value[0]


def faithful_of(found: Case) -> np.ndarray:
    return faithful(found.forest, found.rows, found.outcome, Discount())


def test_dense_parts_break_e_but_leave_the_outcome_part():
    found = random_case(5, rewards=(1.0,))
    signals = [random_signals(found.tree, 5)]
    for estimator in ("prl", "frpo", "implicit_prm", "implicit_value"):
        settings = AdvantageSettings(estimator=estimator, beta=0.5)
        dense = entry_advantages(found.forest, found.rows, settings, signals=signals)
        assert dense.any()
        if estimator != "implicit_value":
            silent = settings.model_copy(update={"beta": 0.0})
            quiet = entry_advantages(found.forest, found.rows, silent, signals=signals)
            assert not quiet.any()


# S


def sign_counts(name: str) -> tuple[int, int, int]:
    """Nodes that disagree with D_root, with D_par, and with both where these agree and are not zero."""
    against_root = against_parent = against_both = 0
    for seed in SEEDS:
        found = random_case(seed)
        nodes, values = per_node(found, table(name, found))
        root, parent = differences(found, nodes)
        sign = np.sign(values)
        against_root += int((sign != np.sign(root)).sum())
        against_parent += int((sign != np.sign(parent)).sum())
        both = (np.sign(root) == np.sign(parent)) & (root != 0)
        against_both += int((both & (sign != np.sign(root))).sum())
    return against_root, against_parent, against_both


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_root_estimators_agree_with_the_root_difference(name):
    against_root, against_parent, against_both = sign_counts(name)
    assert (against_root, against_both) == (0, 0)
    assert against_parent > 0


@pytest.mark.parametrize("name", ["tree_value", "sibling_rloo"])
def test_parent_estimators_agree_with_the_parent_difference(name):
    against_root, against_parent, against_both = sign_counts(name)
    assert (against_parent, against_both) == (0, 0)
    assert against_root > 0


def test_treerl_agrees_with_the_sum_of_both_differences():
    for seed in SEEDS:
        found = random_case(seed)
        nodes, values = per_node(found, table("treerl", found))
        total = np.sum(differences(found, nodes), axis=0)
        total = np.where(np.abs(total) < 1e-12, 0.0, total)
        assert (np.sign(values) == np.sign(total)).all()
    assert sign_counts("treerl")[2] == 0


def test_treepo_and_spo_contradict_both_differences():
    assert sign_counts("treepo")[2] > 0
    assert sign_counts("spo_tree")[2] > 0


def test_treepo_counterexample_leaves_at_unequal_depth():
    found = case(
        *build({"l": (1, 1.0), "u": (1, {"x": (1, 1.0), "w": (1, {"p": (1, 1.0), "q": (1, 0.0)})})})
    )
    u = found.names["u"]
    nodes, values = per_node(found, table("treepo", found))
    assert values[nodes == u] == pytest.approx(0.004630, abs=6e-7)
    assert found.statistics.value[u] == pytest.approx(2 / 3)
    assert found.statistics.value[0] == pytest.approx(3 / 4)


def test_value_and_recursive_value_can_differ_in_sign():
    found = case(
        *build(
            {
                "a": (1, {"p": (1, 1.0), "q": (1, 0.0)}),
                "b": (1, {f"b{i}": (1, 0.0) for i in range(4)}),
                "c": (1, 1.0),
                "d": (1, 1.0),
            }
        )
    )
    a, statistics = found.names["a"], found.statistics
    assert statistics.value[a] - statistics.value[0] == pytest.approx(0.125)
    assert statistics.recursive[a] - statistics.recursive[0] == pytest.approx(-0.125)


# Identities


def test_i1_leave_one_out_is_a_multiple_of_the_centred_outcome():
    for seed in SEEDS:
        found = random_case(seed)
        outcomes = found.outcome[found.rows.leaf]
        others = (outcomes.sum() - outcomes) / (len(outcomes) - 1)
        expected = (outcomes - others)[found.rows.row]
        assert table("rloo", found) == pytest.approx(expected, abs=1e-14)


def test_i2_left_out_outcomes_have_mean_zero_at_the_root():
    for seed in SEEDS:
        assert random_case(seed).statistics.left_out[0] == 0.0


def test_i3_broadcast_over_rows_is_n_times_the_node_difference():
    for seed in SEEDS:
        found = random_case(seed)
        total = np.bincount(found.rows.token, table("dr_grpo", found))[found.rows.token]
        node = found.rows.node
        difference = found.statistics.value[node] - found.statistics.value[0]
        assert total == pytest.approx(found.statistics.n[node] * difference, abs=1e-13)


@pytest.mark.parametrize(("name", "weighted"), [("tree_value", True), ("spo_tree", False)])
def test_i4_advantages_of_siblings_sum_to_zero(name, weighted):
    for seed in SEEDS:
        found = random_case(seed)
        nodes, values = per_node(found, table(name, found))
        weight = found.statistics.n[nodes] if weighted else np.ones(len(nodes))
        total = np.bincount(found.forest.parent[nodes], weight * values)
        assert total == pytest.approx(np.zeros(len(total)), abs=1e-12)


def test_i5_value_differences_telescope_along_a_path():
    for seed in SEEDS:
        found = random_case(seed)
        nodes, values = per_node(found, table("tree_value", found))
        advantage = dict(zip(nodes.tolist(), values.tolist(), strict=True))
        for leaf in found.rows.leaf.tolist():
            total = sum(advantage[u] for u in found.tree.path(leaf)[1:])
            expected = found.outcome[leaf] - found.statistics.value[0]
            assert total == pytest.approx(expected, abs=1e-12)


def test_i6_both_baselines_of_the_implicit_return_have_one_sum_per_row():
    moved = 0.0
    for seed in range(30):
        found = random_case(seed)
        delta = log_ratio(found.forest, found.rows, [random_signals(found.tree, seed)])
        starts = np.concatenate(([0], np.cumsum(found.rows.length)[:-1]))
        code, paper = (
            implicit_return(found.rows, delta, beta=1.0, baseline=b) for b in ("code", "paper")
        )
        assert code[starts] == pytest.approx(paper[starts], abs=1e-12)
        moved = max(moved, float(np.abs(code - paper).max()))
    assert moved > 0.1


def test_i7_suffix_sums_complement_prefix_sums():
    found = random_case(1)
    values = np.random.default_rng(0).normal(size=len(found.rows.token))
    suffix = suffix_sum(found.rows, values)
    for row in range(len(found.rows)):
        own = values[found.rows.row == row]
        expected = own.sum() - np.cumsum(own) + own
        assert suffix[found.rows.row == row] == pytest.approx(expected, abs=1e-12)


def test_future_kl_by_nodes_equals_the_mean_over_rows():
    for seed in range(50):
        found = random_case(seed)
        found.tree.nodes.selected[found.rows.leaf[:1]] = False
        found = case(found.tree, found.names)
        delta = log_ratio(found.forest, found.rows, [random_signals(found.tree, seed)])
        by_row = future_kl(found.forest, found.rows, delta, beta=0.3)
        by_node = future_kl_of_nodes(found.forest, found.rows, delta, beta=0.3)
        token = found.rows.token
        mean = (np.bincount(token, by_row) / np.maximum(np.bincount(token), 1))[token]
        assert by_node == pytest.approx(mean, abs=1e-12)


# Depth one, singletons, exact zeros


def flat_case(rewards) -> Case:
    return case(*build({f"l{i}": (i + 1, r) for i, r in enumerate(rewards)}))


def test_depth_one_reductions():
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    found = flat_case(rewards)
    centred = rewards - rewards.mean()
    expected = {
        "dr_grpo": centred,
        "tree_value": centred,
        "treepo": centred,
        "spo_tree": centred,
        "rloo": 1.2 * centred,
        "sibling_rloo": 1.2 * centred,
        "treerl": 2.4 * centred,
        "treerl_code": 2.4 * centred,
        "grpo": centred / rewards.std(ddof=1),
        "tree_grpo": centred / rewards.std(ddof=1),
        "spo_tree_grpo": centred / rewards.std(ddof=0),
    }
    for name, values in expected.items():
        assert table(name, found) == pytest.approx(values[found.rows.row], abs=1e-14), name


def test_depth_one_deepsearch_is_twice_the_centred_outcome():
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    found = flat_case(rewards)
    for faithful_form in (True, False):
        settings = AdvantageSettings(
            estimator="deepsearch", faithful=faithful_form, reward_low=-1.0
        )
        values = entry_advantages(found.forest, found.rows, settings)
        expected = 2 * (rewards - rewards.mean())
        assert values == pytest.approx(expected[found.rows.row], abs=1e-14)


def test_deepsearch_on_two_of_eight():
    found = flat_case([1.0, 1.0] + [0.0] * 6)
    settings = AdvantageSettings(estimator="deepsearch", faithful=True)
    leaf = found.leaf_rows(entry_advantages(found.forest, found.rows, settings))
    assert leaf["l0"][0] == pytest.approx(1.5)
    assert np.tanh(0.75) + 0.5 == pytest.approx(1.135149, abs=6e-7)


def test_grpo_on_one_right_of_eight():
    found = flat_case([1.0] + [0.0] * 7)
    rows = found.leaf_rows(table("grpo", found, ddof=0))
    assert rows["l0"] == pytest.approx([2.645751], abs=6e-7)
    assert rows["l3"] == pytest.approx([-0.377964] * 4, abs=6e-7)


@pytest.mark.parametrize("name", OUTCOME_ROWS)
def test_a_group_of_one_has_no_advantage(name):
    assert not table(name, flat_case([1.0])).any()
    chain = case(*build({"u": (2, {"w": (1, {"x": (3, 1.0)})})}))
    assert not table(name, chain).any()


def test_an_exact_zero_stays_zero():
    found = hand_case()
    nodes, values = per_node(found, table("tree_value", found))
    assert values[nodes == found.names["b1"]] == 0.0
    assert found.leaf_rows(table("tree_value", found))["b1"][1:] == [0.0, 0.0]


def test_splitting_a_span_changes_no_advantage_of_a_root_estimator():
    found = random_case(11)
    long = next(
        n
        for n in found.rows.leaf.tolist()
        if found.tree.nodes.stop[n] - found.tree.nodes.start[n] > 1
    )
    before = {n: table(n, found) for n in ("grpo", "rloo", "tree_grpo", "treepo")}
    found.tree.split(long, 1)
    after = case(found.tree, found.names)
    for name, values in before.items():
        assert table(name, after).tolist() == values.tolist()


@pytest.mark.parametrize("form", ["paper", "released"])
def test_search_scores_equal_those_that_the_search_stores(form):
    for seed in range(30):
        found = case(random_tree(seed), {}, reward_low=-1.0)
        discount = Discount(form, 0.2, chunk_tokens=3)
        q = search_scores(found.forest, found.rows, found.outcome, discount)
        leaves = [(u, found.outcome[u] > 0) for u in found.rows.leaf.tolist()]
        store_tallies(found.tree, leaves, gamma_table(form, 0.2), 3)
        assert q == pytest.approx(found.tree.nodes.value_sum, abs=1e-12)

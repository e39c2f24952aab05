"""Every estimator against every cell of one hand-worked tree (16 unique tokens, 21 row tokens).

rho                    z of its tokens       R
+- a                   .2  -.1
|  +- a1               .4   .1               1
|  +- a2              -.3                    0
|  +- a3               .1   .1   .2          0
+- b                   .3
|  +- b1               .2  -.2               1
|  +- b2               .5                    1
+- c                   .1   0   -.2   .1     1
"""

import numpy as np
import pytest

from tests.support_credit import HAND_Z, Case, future_kl_of_nodes, hand_case, signals_of
from treerl.config import AdvantageSettings
from treerl.credit.assign import advantages, entry_advantages
from treerl.credit.deepsearch import Discount, faithful, search_scores
from treerl.credit.dense import (
    future_kl,
    implicit_return,
    log_ratio,
    soft_values,
)
from treerl.credit.table import TABLE, evaluate

LEAVES = ("a1", "a2", "a3", "b1", "b2", "c")
NODES = ("a", "b", "c", "a1", "a2", "a3", "b1", "b2")


def close(values):
    return pytest.approx(values, abs=6e-7)


def table(name: str, found: Case, *, ddof: int = 1) -> np.ndarray:
    return evaluate(
        TABLE[name], found.forest, found.rows, found.outcome, found.statistics, ddof=ddof
    )


def configured(found: Case, **settings) -> np.ndarray:
    signals = [signals_of(found.tree, found.names, HAND_Z)]
    return entry_advantages(
        found.forest, found.rows, AdvantageSettings(**settings), signals=signals
    )


def delta_of(found: Case) -> np.ndarray:
    return log_ratio(found.forest, found.rows, [signals_of(found.tree, found.names, HAND_Z)])


def one_per_node(found: Case, entries: np.ndarray) -> dict[str, float]:
    nodes = found.nodes(entries)
    assert all(np.ptp(tokens) < 1e-12 for tokens in nodes.values())
    return {name: tokens[0] for name, tokens in nodes.items()}


# Node statistics


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("n", [6, 3, 2, 1, 1, 1, 1, 1, 1]),
        ("value", [2 / 3, 1 / 3, 1, 1, 1, 0, 0, 1, 1]),
        ("recursive", [7 / 9, 1 / 3, 1, 1, 1, 0, 0, 1, 1]),
        ("left_out", [0, -0.4, 0.4, 0.4, 0.4, -0.8, -0.8, 0.4, 0.4]),
    ],
)
def test_node_statistics(column, expected):
    found = hand_case()
    values = getattr(found.statistics, column)
    assert [values[found.names[name]] for name in ("rho", *NODES)] == close(expected)


def test_selected_leaves_count_apart_from_judged_ones():
    found = hand_case(selected=True)
    names = ("rho", *NODES)
    assert [found.statistics.s[found.names[u]] for u in names] == [4, 2, 1, 1, 1, 1, 0, 1, 0]
    assert [found.statistics.n[found.names[u]] for u in names] == [6, 3, 2, 1, 1, 1, 1, 1, 1]
    assert len(found.rows) == 4


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("released", [1.5, 2 / 3, 4 / 3, 1, 1, -1, -1, 1, 1]),
        ("paper", [0.4, 0.5, 1, 1, 1, -1, -1, 1, 1]),
    ],
)
def test_search_scores(form, expected):
    found = hand_case(reward_low=-1.0)
    q = search_scores(found.forest, found.rows, found.outcome, Discount(form))
    assert [q[found.names[name]] for name in ("rho", *NODES)] == close(expected)


# Leaf-valued estimators: the six leaf rows, then A_bar of a and of b

LEAF_VALUED = [
    ("grpo", 0, [0.707107, -1.414214, -1.414214, 0.707107, 0.707107, 0.707107], -0.707107, 0.707107),
    ("grpo", 1, [0.645497, -1.290994, -1.290994, 0.645497, 0.645497, 0.645497], -0.645497, 0.645497),
    ("dr_grpo", 1, [1 / 3, -2 / 3, -2 / 3, 1 / 3, 1 / 3, 1 / 3], -1 / 3, 1 / 3),
    ("rloo", 1, [0.4, -0.8, -0.8, 0.4, 0.4, 0.4], -0.4, 0.4),
    ("tree_grpo", 1, [1.800198, -1.868345, -1.868345, 0.645497, 0.645497, 0.645497], -0.645497, 0.645497),
    ("treepo", 1, [0.5, -0.5, -0.5, 1 / 6, 1 / 6, 1 / 3], -1 / 6, 1 / 6),
    ("treepo_size", 1, [4 / 9, -5 / 9, -5 / 9, 0.25, 0.25, 1 / 3], -2 / 9, 0.25),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ddof", "leaves", "a", "b"), LEAF_VALUED)
def test_leaf_valued(name, ddof, leaves, a, b):
    found = hand_case()
    entries = table(name, found, ddof=ddof)
    rows = found.leaf_rows(entries)
    for leaf, value in zip(LEAVES, leaves, strict=True):
        assert rows[leaf] == close([value] * len(rows[leaf]))
    nodes = one_per_node(found, entries)
    assert (nodes["a"], nodes["b"]) == close((a, b))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_settings_reach_the_leaf_rows(name):
    found = hand_case()
    assert configured(found, estimator=name).tolist() == table(name, found).tolist()


def test_population_std_by_setting():
    found = hand_case()
    values = configured(found, estimator="grpo", std_ddof=0)
    assert found.leaf_rows(values)["a2"] == close([-1.414214] * 3)


# Node-valued estimators, in the order of NODES

NODE_VALUED = [
    ("tree_value", [-1 / 3, 1 / 3, 1 / 3, 2 / 3, -1 / 3, -1 / 3, 0, 0]),
    ("sibling_rloo", [-2 / 3, 0.5, 0.4, 1, -0.5, -0.5, 0, 0]),
    ("treerl", [-0.461880, 0.565685, 0.8, 1.2, -1.2, -1.2, 0.4, 0.4]),
    ("treerl_code", [-0.461880, 0.565685, 0.8, 1.030940, -1.369060, -1.369060, 0.517157, 0.517157]),
    ("all_ancestors", [-0.4, 0.4, 0.4, 0.6, -0.6, -0.6, 0.2, 0.2]),
    ("spo_tree", [-4 / 9, 2 / 9, 2 / 9, 2 / 3, -1 / 3, -1 / 3, 0, 0]),
    ("spo_tree_grpo", [-1.414214, 0.707107, 0.707107, 1.414214, -0.707107, -0.707107, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), NODE_VALUED)
def test_node_valued(name, expected):
    found = hand_case()
    nodes = one_per_node(found, table(name, found))
    assert [nodes[u] for u in NODES] == close(expected)


def test_treerl_code_with_half_of_the_leaves_selected():
    found = hand_case(selected=True)
    nodes = one_per_node(found, table("treerl_code", found))
    expected = {"a": -0.565685, "b": 0.8, "c": 0.8, "a1": 1.082843, "a2": -1.317157, "b1": 0.4}
    assert nodes == close(expected)


@pytest.mark.parametrize("estimator", ["tree_value", "deepsearch"])
def test_value_difference_by_setting(estimator):
    found = hand_case()
    nodes = one_per_node(found, configured(found, estimator=estimator))
    assert [nodes[u] for u in NODES] == close(NODE_VALUED[0][1])


def test_deepsearch_corrected_doubles_on_plus_minus_one():
    found = hand_case()
    nodes = one_per_node(found, configured(found, estimator="deepsearch", reward_low=-1.0))
    assert [nodes[u] for u in NODES] == close([2 * value for value in NODE_VALUED[0][1]])


@pytest.mark.parametrize(
    ("form", "a", "b"), [("released", 0.249450, 0.536728), ("paper", 0.128784, 0.428261)]
)
def test_deepsearch_faithful(form, a, b):
    found = hand_case()
    settings = AdvantageSettings(estimator="deepsearch", faithful=True)
    values = entry_advantages(found.forest, found.rows, settings, discount=Discount(form))
    nodes = one_per_node(found, values)
    expected = [a, b, 2 / 3, 2 / 3, -4 / 3, -4 / 3, 2 / 3, 2 / 3]
    assert [nodes[u] for u in NODES] == close(expected)


# Token-valued estimators

FRPO = {
    "a1": [0.345497, 0.445497, 0.395497, 0.595497],
    "a2": [-1.190994, -1.090994, -1.140994],
    "a3": [-1.540994, -1.440994, -1.490994, -1.440994, -1.390994],
    "b1": [0.495497, 0.645497, 0.745497],
    "b2": [0.245497, 0.395497],
    "c": [0.645497, 0.695497, 0.695497, 0.595497],
}
PRL = {
    "a1": [0.445497, 0.445497, 0.595497, 0.595497],
    "a2": [-1.090994, -1.090994, -1.140994],
    "a3": [-1.440994, -1.440994, -1.440994, -1.440994, -1.390994],
    "b1": [0.645497, 0.645497, 0.745497],
    "b2": [0.395497, 0.395497],
    "c": [0.695497, 0.695497, 0.595497, 0.595497],
}
PRIME_CODE = {
    "a1": [0.573333, 0.47, 0.726667, 0.383333],
    "a2": [-1.45, -1.553333, -1.296667],
    "a3": [-0.883333, -0.986667, -0.73, -0.713333, -0.696667],
    "b1": [0.35, 0.126667, 0.023333],
    "b2": [1.086667, 0.863333],
    "c": [-0.146667, -0.13, 0.006667, 0.383333],
}
PRIME_PAPER = {
    "a1": [0.573333, 0.48, 0.686667, 0.393333],
    "a2": [-1.45, -1.5, -1.25],
    "a3": [-0.883333, -0.966667, -0.75, -0.733333, -0.716667],
    "b1": [0.35, 0.166667, 0.083333],
    "b2": [1.086667, 0.843333],
    "c": [-0.146667, -0.11, 0.026667, 0.363333],
}


def assert_rows(found: Case, entries: np.ndarray, expected: dict[str, list[float]]) -> None:
    rows = found.leaf_rows(entries)
    assert list(rows) == list(expected)
    for name, values in expected.items():
        assert rows[name] == close(values)


def test_frpo():
    found = hand_case()
    values = configured(found, estimator="frpo", beta=0.5)
    assert_rows(found, values, FRPO)
    nodes = found.nodes(values)
    assert nodes["a"] == close([-0.795497, -0.695497])
    assert nodes["b"] == close([0.370497])


def test_frpo_by_nodes_equals_the_mean_of_its_rows():
    found = hand_case()
    by_node = future_kl_of_nodes(found.forest, found.rows, delta_of(found), beta=0.5)
    by_row = future_kl(found.forest, found.rows, delta_of(found), beta=0.5)
    for name, tokens in found.nodes(by_row).items():
        assert found.nodes(by_node)[name] == pytest.approx(tokens, abs=1e-14)


def test_prl_with_steps_that_straddle_forks_as_released():
    found = hand_case()
    dense = future_kl(
        found.forest, found.rows, delta_of(found), beta=0.5, step=2, at_node_end=False
    )
    values = table("grpo", found) + dense
    assert_rows(found, values, PRL)
    nodes = found.nodes(values)
    assert nodes["a"] == close([-0.695497, -0.695497])
    assert nodes["b"] == close([0.520497])


def test_prl_ends_a_step_at_every_node_end():
    found = hand_case()
    values = configured(found, estimator="prl", beta=0.5, step_tokens=2)
    own = {"b1": [0.495497, 0.645497, 0.745497], "b2": [0.245497, 0.395497]}
    assert_rows(found, values, PRL | own)


def test_prl_with_step_one_is_frpo():
    found = hand_case()
    prl = configured(found, estimator="prl", beta=0.5)
    assert prl.tolist() == configured(found, estimator="frpo", beta=0.5).tolist()


def test_prl_without_beta_is_grpo():
    found = hand_case()
    prl = configured(found, estimator="prl", beta=0.0, step_tokens=2)
    assert prl.tolist() == table("grpo", found).tolist()


def test_implicit_prm_is_primes_return_before_whitening():
    found = hand_case()
    values = configured(found, estimator="implicit_prm", beta=1.0)
    assert_rows(found, values, PRIME_CODE)
    nodes = found.nodes(values)
    assert nodes["a"] == close([-0.586667, -0.69])
    assert nodes["b"] == close([0.718333])


def test_implicit_return_with_the_papers_baseline():
    found = hand_case()
    dense = implicit_return(found.rows, delta_of(found), beta=1.0, baseline="paper")
    assert_rows(found, table("rloo", found) + dense, PRIME_PAPER)


def test_implicit_value_gives_edge_rewards():
    found = hand_case()
    nodes = one_per_node(found, configured(found, estimator="implicit_value", beta=0.05))
    assert [nodes[u] for u in NODES] == close([0.005, 0.015, 0, 0.025, -0.015, 0.02, 0, 0.025])


def test_soft_values_of_leaves_are_response_rewards():
    found = hand_case()
    soft = soft_values(found.forest, delta_of(found), beta=0.05)
    expected = [0.03, -0.01, 0.025, 0.015, 0.04, 0]
    assert [soft[found.names[name]] for name in LEAVES] == close(expected)


# Batch statistics of the whitening table


@pytest.mark.parametrize(
    ("name", "over_rows", "over_tokens"),
    [
        ("treepo", (0.007937, 0.423203), (0.041667, 0.372678)),
        ("dr_grpo", (-0.047619, 0.497613), (0.0, 0.455420)),
        ("spo_tree", None, (0.013889, 0.362604)),
    ],
)
def test_moments_over_rows_and_over_unique_tokens(name, over_rows, over_tokens):
    found = hand_case()
    entries = table(name, found)
    unique = np.concatenate([np.array(tokens) for tokens in found.nodes(entries).values()])
    assert len(entries) == 21
    assert len(unique) == 16
    assert (unique.mean(), unique.std(ddof=1)) == close(over_tokens)
    if over_rows is not None:
        assert (entries.mean(), entries.std(ddof=1)) == close(over_rows)


def test_rms_scale_divides_by_the_root_mean_square_over_unique_tokens():
    found = hand_case()
    plain = table("dr_grpo", found)
    unique = np.concatenate([np.array(tokens) for tokens in found.nodes(plain).values()])
    scaled = configured(found, estimator="dr_grpo", rms_scale=True)
    assert scaled == pytest.approx(plain / np.sqrt(np.mean(unique**2)))


# All leaves wrong, everything else kept


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.x != "soft"])
def test_all_wrong_gives_exact_zero(name):
    assert not table(name, hand_case(all_wrong=True)).any()


@pytest.mark.parametrize(
    ("form", "a", "b"), [("released", 0.035972, 0.129938), ("paper", 0.094852, 0.238406)]
)
def test_all_wrong_deepsearch_faithful_pushes_inner_nodes_up(form, a, b):
    found = hand_case(all_wrong=True, reward_low=-1.0)
    nodes = one_per_node(found, faithful(found.forest, found.rows, found.outcome, Discount(form)))
    assert [nodes[u] for u in NODES] == close([a, b, 0, 0, 0, 0, 0, 0])


def test_all_wrong_frpo_keeps_its_dense_part():
    values = configured(hand_case(all_wrong=True), estimator="frpo", beta=0.5)
    assert hand_case(all_wrong=True).leaf_rows(values)["a1"] == close([-0.3, -0.2, -0.25, -0.05])


def test_all_wrong_implicit_value_is_unchanged():
    found, right = hand_case(all_wrong=True), hand_case()
    wrong = configured(found, estimator="implicit_value", beta=0.05)
    assert wrong.tolist() == configured(right, estimator="implicit_value", beta=0.05).tolist()


def test_advantages_of_one_tree_are_nan_off_the_rows():
    found = hand_case(selected=True)
    values = advantages(found.tree, AdvantageSettings(estimator="dr_grpo"))
    assert np.isnan(values[: found.tree.n_prompt]).all()
    a3 = found.names["a3"]
    assert np.isnan(values[found.tree.nodes.start[a3] : found.tree.nodes.stop[a3]]).all()
    a = found.names["a"]
    # a1 (+1/3) and a2 (-2/3) are trained; the baseline is over all six leaves.
    assert values[found.tree.nodes.start[a]] == close(-1 / 6)

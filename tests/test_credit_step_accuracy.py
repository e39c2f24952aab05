"""The most negative span against the place of the first error, on hand-made trees."""

import pytest

from tests.support_credit import build, hand_tree
from treerl.config import AdvantageSettings
from treerl.credit.step_accuracy import StepAccuracy, step_accuracy

VALUE = AdvantageSettings(estimator="tree_value")
RLOO = AdvantageSettings(estimator="rloo")


def late_slip():
    """A good prefix (4 tokens) with one right and one wrong end (2 tokens), beside a right answer."""
    tree, names = build({"p": (4, {"good": (2, 1.0), "bad": (2, 0.0)}), "other": (3, 1.0)})
    return tree, names["bad"]


def test_the_wrong_end_of_a_good_prefix_is_found():
    tree, bad = late_slip()
    found = step_accuracy([tree], VALUE, [{bad: (4, 6)}])
    assert found.leaves == 1
    assert (found.hit, found.silent) == (1.0, 0.0)
    assert found.chance_span == 0.5
    assert found.chance_length == pytest.approx(2 / 6)


def test_an_error_in_the_prefix_is_missed_there():
    tree, bad = late_slip()
    found = step_accuracy([tree], VALUE, [{bad: (1, 3)}])
    assert found.hit == 0.0
    assert found.chance_length == pytest.approx(4 / 6)


def test_an_error_over_a_fork_counts_for_both_spans():
    tree, bad = late_slip()
    found = step_accuracy([tree], VALUE, [{bad: (3, 5)}])
    assert (found.hit, found.chance_span, found.chance_length) == (1.0, 1.0, 1.0)


def test_equal_spans_share_the_hit():
    tree, names = build({"p": (2, {"x": (2, 0.0), "y": (2, 0.0)}), "z": (1, 1.0)})
    found = step_accuracy([tree], RLOO, [{names["x"]: (0, 1)}])
    assert found.hit == 0.5


def test_a_path_without_a_negative_span_is_silent():
    tree, bad = late_slip()
    tree.nodes.reward[:] = -1.0
    tree.nodes.reward[[n for n in range(len(tree)) if n not in tree.leaves()]] = float("nan")
    found = step_accuracy([tree], VALUE, [{bad: (4, 6)}])
    assert (found.hit, found.silent) == (0.0, 1.0)


def test_leaves_without_an_error_and_paths_of_one_span_are_left_out():
    tree, bad = late_slip()
    assert step_accuracy([tree], VALUE, [{}]) == StepAccuracy()
    assert step_accuracy([tree], VALUE, [{bad: (9, 10)}]) == StepAccuracy()
    flat, names = build({"x": (2, 0.0), "y": (2, 1.0)})
    assert step_accuracy([flat], VALUE, [{names["x"]: (0, 1)}]) == StepAccuracy()
    assert step_accuracy([], VALUE, []) == StepAccuracy()


def test_leaves_are_found_in_every_tree_of_a_batch():
    first, bad = late_slip()
    second, names = hand_tree()
    # On a2's path a (-1/3) and a2 (-1/3) are equal; the error lies in a.
    found = step_accuracy([first, second], VALUE, [{bad: (4, 6)}, {names["a2"]: (0, 2)}])
    assert found.leaves == 2
    assert found.hit == pytest.approx((1.0 + 0.5) / 2)

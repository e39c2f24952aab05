"""Evaluation figures against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from treerl.evaluate import Evaluation, paired_gain, pass_at_k


def evaluation(right, answers=None):
    right = np.array(right, dtype=bool)
    if answers is None:
        answers = [["a" if r else "b" for r in row] for row in right]
    return Evaluation(right, answers, {"scored": right.size}, 0, 0)


@pytest.mark.parametrize("correct", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_equals_counting_all_subsets(correct, k):
    outcomes = [1] * correct + [0] * (5 - correct)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(5, correct, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_refuses_more_than_n():
    with pytest.raises(ValueError, match="k = 9"):
        pass_at_k(8, 1, 9)


def test_majority_counts_answers_and_ignores_missing_ones():
    e = evaluation([[0, 1, 1, 0]], [[None, "3", "3", "4"]])
    assert e.maj_at(4) == 1.0
    assert e.maj_at(1) == 0.0


def test_majority_tie_goes_to_the_first():
    assert evaluation([[0, 1]], [["4", "3"]]).maj_at(2) == 0.0
    assert evaluation([[1, 0]], [["3", "4"]]).maj_at(2) == 1.0


def test_standard_error_is_over_problems():
    e = evaluation([[1, 1], [0, 0], [1, 0], [1, 0]])
    assert e.standard_error() == pytest.approx(np.std([1, 0, 0.5, 0.5], ddof=1) / 2)


def test_paired_gain_uses_the_differences():
    gain, error = paired_gain(evaluation([[0], [1], [0]]), evaluation([[1], [1], [0]]))
    assert gain == pytest.approx(1 / 3)
    assert error == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))

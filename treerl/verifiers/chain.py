"""The embedded chain task: the last segment is the value, written as a plain integer.

Strict digits: no plus sign, no leading zeros, no `-0`, so that each value has one spelling. Whether the
steps before the last are right is checked by the task itself, not here.
"""

import re

from treerl.errors import DataError

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def reward(truth: str, answer: str) -> float:
    """1.0 where the answer is the truth's digits, else 0.0. Raises DataError for a truth that is none."""
    if _INTEGER.fullmatch(truth) is None:
        raise DataError(f"truth {truth!r} is no plain integer: correct the data set")
    return float(answer == truth)

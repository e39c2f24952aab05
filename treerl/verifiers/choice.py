"""Multiple choice: one capital letter A to J, bare, in parentheses, or with a full stop or parenthesis."""

import re

from treerl.errors import DataError

_LETTER = re.compile(r"(?:([A-J])[.)]?|\(([A-J])\)\.?|\\text(?:bf)?\{\(?([A-J])\)?\})")


def letter(text: str) -> str | None:
    """The letter, or None where the text is anything besides one letter."""
    match = _LETTER.fullmatch(text.strip())
    return None if match is None else next(group for group in match.groups() if group)


def reward(truth: str, answer: str) -> float:
    """1.0 for the letter of the truth, else 0.0. Raises DataError where the truth is no letter."""
    right = letter(truth)
    if right is None:
        raise DataError(f"truth {truth!r} is no choice letter A to J: correct the data set")
    return float(letter(answer) == right)

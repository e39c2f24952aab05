"""Plain numbers compared exactly: 1,234.50 = 1234.5 = 2469/2. No floats, no tolerance, no units.

Exponents are not read: `1e999999999` would be a number with a thousand million digits.
"""

import re
from fractions import Fraction

from treerl.errors import DataError

MAX_CHARACTERS = 200
"""Longer numerals are no answers; the bound keeps every comparison far below a millisecond."""

_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_DECIMAL = re.compile(rf"([+-]?)\s*(?:\\?\$\s*)?({_UNSIGNED})")
_RATIO = re.compile(rf"([+-]?)\s*({_UNSIGNED})\s*/\s*([+-]?)({_UNSIGNED})")


def _unsigned(text: str) -> Fraction:
    return Fraction(text.replace(",", "").removesuffix("."))


def parse(text: str) -> Fraction | None:
    """The exact value of a decimal or of a ratio of two decimals; None for any other text.

    Accepts a sign (also U+2212), thousands separators in groups of three and a leading dollar sign.
    """
    text = text.strip().replace("\u2212", "-")
    if len(text) > MAX_CHARACTERS:
        return None
    if match := _DECIMAL.fullmatch(text):
        value = _unsigned(match[2])
        return -value if match[1] == "-" else value
    if match := _RATIO.fullmatch(text):
        divisor = _unsigned(match[4])
        if divisor == 0:
            return None
        value = _unsigned(match[2]) / divisor
        return -value if (match[1] == "-") != (match[3] == "-") else value
    return None


def reward(truth: str, answer: str) -> float:
    """1.0 for the same value, else 0.0. Raises DataError where the truth is no number."""
    right = parse(truth)
    if right is None:
        raise DataError(f"truth {truth[:80]!r} is no number: correct the data or set verifier.kind")
    return float(parse(answer) == right)

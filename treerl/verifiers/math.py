r"""Mathematical equivalence of one extracted answer with the truth: numbers, fractions, LaTeX.

Order of the comparison: equal spelling, exact numbers, wording, assignments, lists item by item, and
only then algebra by math-verify's parser and comparison, on single expressions. What math-verify
forgives by itself and a policy could use is taken out before it: several relations of which the last
counts (`4=3`), `50%` for both 50 and 1/2, letters as units (`5m`), words as products of symbols, floats
equal to six digits, a point or a set for an open interval. Units need `\text{}` and must agree where both
sides have one.

Algebra on hostile input does not return (`9^{9^{9}}`), and math-verify's own limit is an alarm signal,
which works in a main thread only and is switched off here: call `reward` in a worker process that can
be killed (`workers.py`).
"""

import logging
from functools import lru_cache
from typing import Any

from treerl.errors import DataError
from treerl.verifiers import latex

_DIGITS = 30
_MAX_ITEMS = 64
_MAX_CHARACTERS = 2000


def reward(truth: str, answer: str) -> float:
    """1.0 where answer and truth are the same mathematical object, else 0.0.

    An answer that cannot be parsed is wrong. Raises DataError where the truth cannot be.
    """
    if len(answer) > _MAX_CHARACTERS:
        return 0.0
    return float(_equal(latex.clean(truth), latex.clean(answer)))


def warm() -> None:
    """Loads sympy and the LaTeX grammar, and fills their caches (about a second, once a process)."""
    reward(r"\frac{1}{2}+x", r"x+\frac{2}{4}")
    reward(r"2\sqrt{2}", r"\sqrt{8}")


def _equal(truth: str, answer: str) -> bool:
    if not answer:
        return False
    if truth == answer:
        return True
    (truth, truth_unit), (answer, answer_unit) = latex.split_unit(truth), latex.split_unit(answer)
    if truth_unit and answer_unit and truth_unit != answer_unit:
        return False
    right, given = latex.plain_number(truth), latex.plain_number(answer)
    if right is not None and given is not None:
        return right == given
    words = latex.wording(truth), latex.wording(answer)
    if words != (None, None):
        return (words[0] or truth) == (words[1] or answer)
    if not latex.is_nested_well(answer):
        return False
    return _equal_formulas(truth, answer)


def _equal_formulas(truth: str, answer: str) -> bool:
    left, right = latex.assignment(truth), latex.assignment(answer)
    if left and right:
        return left[0] == right[0] and _equal(left[1], right[1])
    if right and not latex.has_relation(truth):
        return _equal(truth, right[1])
    if left and not latex.has_relation(answer):
        return _equal(left[1], answer)
    expected, given = latex.as_items(truth), latex.as_items(answer)
    if expected or given:
        return expected is not None and given is not None and _equal_items(expected, given)
    if latex.has_relation(truth) != latex.has_relation(answer):
        return False
    return _equivalent(truth, answer)


def _equal_items(expected: latex.Items, given: latex.Items) -> bool:
    """Tuples and intervals in order with the same delimiters; sets and bare lists in any order."""
    if expected.delimiters != given.delimiters or len(expected.items) != len(given.items):
        return False
    if len(given.items) > _MAX_ITEMS:
        return False
    if expected.delimiters:
        return all(_equal(*pair) for pair in zip(expected.items, given.items, strict=True))
    unmatched = list(given.items)
    for item in expected.items:
        match = next((other for other in unmatched if _equal(item, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return True


def _equivalent(truth: str, answer: str) -> bool:
    import math_verify

    expected = _parse(truth)
    if expected is None:
        raise DataError(f"truth {truth[:80]!r} cannot be parsed: correct it or set verifier.kind")
    given = _parse(answer)
    if given is None or _family(expected) != _family(given):
        return False
    return bool(
        math_verify.verify(
            expected,
            given,
            float_rounding=_DIGITS,
            numeric_precision=_DIGITS,
            timeout_seconds=None,
        )
    )


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """A sympy object, or None where the text is no LaTeX expression."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
    )
    try:
        return latex2sympy(
            normalize_latex(latex.exact_decimals(text), config),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  any failure of the grammar or of sympy means: no expression
        return None


def _family(value: Any) -> str:
    """Kinds of objects that are never compared with each other."""
    from latex2sympy2_extended.logic import And
    from sympy import MatrixBase, Set, Tuple
    from sympy.core.relational import Relational

    if isinstance(value, Relational | And):
        return "relation"
    if isinstance(value, Set | Tuple):
        return "set"
    return "matrix" if isinstance(value, MatrixBase) else "expression"

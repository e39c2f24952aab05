r"""LaTeX answers brought to one spelling, and taken apart, before any algebra: text only, no sympy.

Holds what decides how an answer may be compared at all (wording, a number with a unit, an assignment,
a list with its delimiters). `math.py` holds the comparison.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from treerl.verifiers import number

_WRAPPER = r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mathit|mbox)"
_PLAIN = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\left": "",
    r"\right": "",
    r"\!": "",
    r"\,": "",
    r"\;": " ",
    r"\:": " ",
    r"\displaystyle": "",
    r"\%": "%",
    r"\$": "",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    "{,}": ",",
    "\u2212": "-",
    "±": r"\pm ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "°": "",
    r"^{\circ}": "",
    r"^\circ": "",
    r"\degree": "",
    "~": " ",
}
_SPELLING = re.compile(
    "|".join(
        re.escape(key) + ("(?![a-zA-Z])" if key[-1].isalpha() and key[0] == "\\" else "")
        for key in sorted(_PLAIN, key=len, reverse=True)
    )
)
_MATH_MODE = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_UNIT = re.compile(rf"(.*?[0-9}}.])\s*{_WRAPPER}\s*\{{([^{{}}]*)\}}(\^\{{?[0-9]\}}?)?")
_MULTIPLIERS = re.compile(
    r"hundred|thousand|million|billion|trillion|dozen|percent|\b(?:and|or)\b|[0-9]"
)
_WORDING = re.compile(rf"{_WRAPPER}\s*\{{([^{{}}]*)\}}")
_COMMAND = re.compile(r"\\(?:begin|end|operatorname)\s*\{[a-zA-Z]+\*?\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "sinh", "cosh", "tanh"]
)
_RELATION = re.compile(
    r"(?<![\\<>!:])=|\\(?:leq?|geq?|neq?|in|lt|gt|approx|equiv)(?![a-zA-Z])|[<>≤≥≠]"
)
_ASSIGNMENT = re.compile(r"([a-zA-Z](?:_\{?\w+\}?|\([a-zA-Z]\))?)\s*(?:=|\\in(?![a-zA-Z]))\s*(.+)")
_CONJUNCTION = re.compile(
    rf",?\s*(?:{_WRAPPER}\s*\{{\s*(?:and|or)\s*\}}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z]))\s*"
)
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")


@dataclass(frozen=True, slots=True)
class Items:
    """A list at the top level of an answer. `delimiters` is "" for a bare list and for a set."""

    delimiters: str
    items: tuple[str, ...]


def clean(text: str) -> str:
    """One spelling for spacing, sizes, fractions and signs; math mode, degrees and a full stop dropped."""
    text = " ".join(text.split())
    for opening, closing in _MATH_MODE:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)]
            break
    text = _SPELLING.sub(lambda match: _PLAIN[match[0]], text)
    return " ".join(text.split()).removesuffix(".").strip()


def split_unit(text: str) -> tuple[str, str | None]:
    r"""`5\text{ km}` -> ("5", "km"), `50%` -> ("50", None): only behind a plain number or fraction.

    Bare letters are never a unit (`5m` is algebra), and words that change the value are none either. A
    percent sign is dropped: one answer stands for one number, and 50% stands for 50, not also for 1/2.
    """
    if text.endswith("%") and plain_number(text[:-1]) is not None:
        return text[:-1].strip(), None
    match = _UNIT.fullmatch(text)
    if match is None or plain_number(match[1]) is None or _MULTIPLIERS.search(match[2].lower()):
        return text, None
    unit = re.sub(r"[^a-z]", "", match[2].lower()).removesuffix("s") + (match[3] or "")
    return match[1], unit or None


def plain_number(text: str) -> Fraction | None:
    r"""Exact value of a decimal, `a/b` or `\frac{a}{b}` with a sign; None for anything else."""
    match = re.fullmatch(
        r"([+-]?)\s*\\frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))", text.strip()
    )
    if match is None:
        return number.parse(text)
    top, bottom = number.parse(match[2] or match[3]), number.parse(match[4] or match[5])
    if top is None or not bottom:
        return None
    return -top / bottom if match[1] == "-" else top / bottom


def wording(text: str) -> str | None:
    r"""The words of an answer that is text (`\text{east}`, `Evelyn`), in lower case; None for formulas.

    Text must not reach the algebra, where `east` is a product of four symbols and equals `seat`.
    """
    unwrapped = _WORDING.sub(lambda match: match[1], text)
    formula = _COMMAND.sub(" ", _WORDING.sub(" ", text))
    if _WORDING.fullmatch(text) is None and not (
        {word.removeprefix("arc") for word in _WORD.findall(formula)} - _FUNCTIONS
    ):
        return None
    words = " ".join(unwrapped.split()).removesuffix(".")
    if words.startswith("(") and words.endswith(")"):
        words = words[1:-1]
    return words if len(words) == 1 else words.lower()


def assignment(text: str) -> tuple[str, str] | None:
    """`x = 3` -> ("x", "3"): one symbol (or f(x)) on the left and no further relation on the right."""
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or has_relation(match[2]):
        return None
    return match[1].replace("{", "").replace("}", ""), match[2]


def has_relation(text: str) -> bool:
    """Whether an equation, an inequality or a membership stands in the text."""
    return _RELATION.search(text) is not None


def as_items(text: str) -> Items | None:
    r"""`(1, 2]`, `\{1,2\}`, `1 or 2`, `a \pm b` taken apart; None for a single expression."""
    text = _CONJUNCTION.sub(",", text)
    delimiters, inner = _outer(text)
    parts = _split(inner)
    if parts is None or (len(parts) == 1 and delimiters != r"\{\}"):
        if parts is not None and text.count(r"\pm") == 1:
            return Items("", (text.replace(r"\pm", "+"), text.replace(r"\pm", "-")))
        return None
    return Items("" if delimiters == r"\{\}" else delimiters, tuple(part.strip() for part in parts))


def exact_decimals(text: str) -> str:
    r"""Decimals as fractions (`0.5` -> `\frac{5}{10}`), so that no float enters the comparison."""

    def fraction(match: re.Match[str]) -> str:
        ratio = f"\\frac{{{int(match[1] + match[2])}}}{{1{'0' * len(match[2])}}}"
        # Braces only where an exponent needs them: around a whole answer they would make a set.
        return f"{{{ratio}}}" if match.string[: match.start()].endswith(("^", "_")) else ratio

    return _DECIMAL.sub(fraction, text)


def is_nested_well(text: str) -> bool:
    """Whether brackets balance and nest at most 50 deep: the grammar takes seconds on anything else."""
    if _split(text) is None:
        return False
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest <= 50


def _outer(text: str) -> tuple[str, str]:
    for opening in ("(", "[", r"\{"):
        for closing in (")", "]", r"\}"):
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
                inner = text[len(opening) : -len(closing)]
                if _split(inner) is not None:
                    return opening + closing, inner
    return "", text


def _split(text: str) -> list[str] | None:
    """Parts between top-level commas or semicolons; None where the brackets do not balance."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif char in ",;" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return None if depth else [*parts, text[start:]]

"""The built-in task: chains of equalities, `7+5*3-8=` -> `7+15-8=22-8=14`, every step of which can be checked.

A problem has 5 to 7 operators out of `+ - *`, one-digit operands 2 to 9, and at least one `*` after a
`+` or `-`, so that working from left to right goes wrong. Problems are unlimited and drawn from seeds;
training and held-out problems are kept apart by content (`is_heldout`), for every seed. The step checker
finds and classes the first wrong step of an answer; demonstrations, right or flawed on purpose, are the
data of the supervised start. Knows no tokenizer and no model; imports neither torch nor transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from treerl.canon import digest, generator
from treerl.errors import ConfigError
from treerl.problem import Problem

Split = Literal["train", "heldout"]
ErrorClass = Literal["arithmetic", "precedence", "copy", "skip", "syntax"]

KIND = "chain"
MAX_VALUE = 99
"""Every value on the canonical route lies in 0..MAX_VALUE."""
OPERATORS = (5, 7)
"""Fewest and most operators of a problem, of which the embedded policy was shown demonstrations."""
_HELDOUT_EVERY = 16
_FEWEST, _MOST = 3, 16


@dataclass(frozen=True, slots=True)
class Expression:
    """`numbers[0] operators[0] numbers[1] ...`; one operator fewer than numbers."""

    numbers: tuple[int, ...]
    operators: str

    def __str__(self) -> str:
        tail = "".join(o + str(n) for o, n in zip(self.operators, self.numbers[1:], strict=True))
        return str(self.numbers[0]) + tail

    def value(self) -> int:
        """Its value, `*` before `+` and `-`, these from left to right."""
        total, term, sign = 0, self.numbers[0], 1
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            if operator == "*":
                term *= number
                continue
            total += sign * term
            term, sign = number, 1 if operator == "+" else -1
        return total + sign * term

    def result(self, index: int) -> int:
        """What operator `index` gives on its two neighbours."""
        return _apply(self.operators[index], self.numbers[index], self.numbers[index + 1])

    def contract(self, index: int, result: int) -> "Expression":
        """The expression with operator `index` and its two neighbours replaced by `result`."""
        numbers = (*self.numbers[:index], result, *self.numbers[index + 2 :])
        return Expression(numbers, self.operators[:index] + self.operators[index + 1 :])

    def may_contract(self, index: int) -> bool:
        """True iff doing operator `index` now keeps the value of every expression of this shape."""
        before = self.operators[index - 1] if index else "+"
        after = self.operators[index + 1] if index + 1 < len(self.operators) else "+"
        return self.operators[index] == "*" or (before == "+" and after != "*")


def _apply(operator: str, left: int, right: int) -> int:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case _:
            return left * right


def canonical_operator(expression: Expression) -> int:
    """The operator done next on the canonical route: the first `*`, else the first operator."""
    return max(expression.operators.find("*"), 0)


def parse_expression(text: str) -> Expression | None:
    """Numbers without sign or leading zero, joined by single `+ - *`; None if `text` is anything else."""
    numbers: list[int] = []
    operators: list[str] = []
    digits = ""
    for character in text + "\n":
        if character in "0123456789":
            digits += character
            continue
        if not digits or (digits[0] == "0" and len(digits) > 1):
            return None
        numbers.append(int(digits))
        operators.append(character)
        digits = ""
    if not set(operators[:-1]) <= set("+-*"):
        return None
    return Expression(tuple(numbers), "".join(operators[:-1]))


# Problems


def is_heldout(question: str) -> bool:
    """True for one question in sixteen, by its content: these are never trained on, whatever the seed."""
    return digest("chain-split", question)[0] % _HELDOUT_EVERY == 0


def _within_bounds(expression: Expression) -> bool:
    while expression.operators:
        index = canonical_operator(expression)
        result = expression.result(index)
        if not 0 <= result <= MAX_VALUE:
            return False
        expression = expression.contract(index, result)
    return True


def _invites_slip(operators: str) -> bool:
    return "*" in operators.lstrip("*")


def require_operators(operators: tuple[int, int]) -> None:
    """Raises ConfigError unless problems with so many operators exist, and enough of them."""
    low, high = operators
    if not _FEWEST <= low <= high <= _MOST:
        raise ConfigError(
            f"task.min_operators = {low}, task.max_operators = {high}: the chain task needs "
            f"{_FEWEST} <= min_operators <= max_operators <= {_MOST}"
        )


def draw_expression(rng: np.random.Generator, operators: tuple[int, int] = OPERATORS) -> Expression:
    """An expression with `operators[0]` to `operators[1]` operators whose canonical route is bounded."""
    count = int(rng.integers(operators[0], operators[1] + 1))
    while True:
        symbols = "".join("+-*"[i] for i in rng.integers(0, 3, size=count).tolist())
        if not _invites_slip(symbols):
            continue
        expression = Expression(tuple(rng.integers(2, 10, size=count + 1).tolist()), symbols)
        if _within_bounds(expression):
            return expression


def generate(
    rng: np.random.Generator, split: Split = "train", operators: tuple[int, int] = OPERATORS
) -> Problem:
    """One fresh problem of the split: `question` is the prompt's text, `truth` the value."""
    while True:
        expression = draw_expression(rng, operators)
        question = f"{expression}="
        if is_heldout(question) == (split == "heldout"):
            return Problem(question, str(expression.value()), KIND)


def problem_stream(split: Split, operators: tuple[int, int], *seed: str | int) -> Iterator[Problem]:
    """An endless stream of distinct problems, a pure function of its arguments."""
    rng = generator("chain", split, *operators, *seed)
    seen: set[str] = set()
    while True:
        problem = generate(rng, split, operators)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


# Steps


@dataclass(frozen=True, slots=True)
class StepReport:
    """The first wrong step of a completion.

    `start, stop` are character offsets into the completion text, the step with its leading `=` if it has
    one; an answer that ends before it reaches a value has them at `len(text), len(text) + 1`, where the
    end token stands. All three are None where every step is right.
    """

    start: int | None = None
    stop: int | None = None
    error: ErrorClass | None = None
    right_steps: int = 0


def check_steps(question: str, completion_text: str) -> StepReport:
    """Check a completion segment by segment; raises ValueError if `question` is no problem of this task.

    A segment is right iff it has one operator less than the one before and is worth the same; any order
    of operations that keeps the value is therefore right.
    """
    expression = parse_expression(question.removesuffix("="))
    if expression is None or not question.endswith("="):
        raise ValueError(f"not a question of the chain task: {question!r}")
    position = 0
    for done, segment in enumerate(completion_text.split("=")):
        start, position = max(position - 1, 0), position + len(segment) + 1
        step = parse_expression(segment)
        error: ErrorClass | None = "syntax" if step is None else _step_error(expression, step)
        if step is None or error is not None:
            end = len(completion_text)
            return StepReport(start, max(min(position - 1, end), start + 1), error, done)
        expression = step
    done = completion_text.count("=") + 1
    if expression.operators:
        end = len(completion_text)
        return StepReport(end, end + 1, "skip", done)
    return StepReport(right_steps=done)


def _step_error(before: Expression, after: Expression) -> ErrorClass | None:
    """The class of the mistake from one segment to the next, None if there is none.

    skip: more than one operation at once. copy: no operation, or numbers or operators changed that
    the step does not touch. precedence: an operation done out of turn. arithmetic: a wrong result.
    """
    missing = len(before.operators) - len(after.operators)
    if missing > 1:
        return "skip"
    if missing < 1:
        return "copy"
    if before.value() == after.value():
        return None
    places = [
        i for i in range(len(before.operators)) if before.contract(i, after.numbers[i]) == after
    ]
    if not places:
        return "copy"
    if any(before.result(i) == after.numbers[i] for i in places):
        return "precedence"
    return "arithmetic" if any(before.may_contract(i) for i in places) else "precedence"


# Demonstrations


@dataclass(frozen=True, slots=True)
class Flaws:
    """How demonstrations go wrong, as probabilities.

    `left_to_right`: where the leftmost operator is a `+` or `-` before a `*`, do it nevertheless.
    `arithmetic`: at any step, write a result that is off by 1, 2 or 10.
    """

    left_to_right: float = 0.0
    arithmetic: float = 0.0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A training problem with a worked completion, which has no end token."""

    problem: Problem
    completion: str


def draw_demonstration(
    rng: np.random.Generator, flaws: Flaws, operators: tuple[int, int] = OPERATORS
) -> Demonstration:
    """A demonstration of a fresh training problem, never of a held-out one."""
    problem = generate(rng, "train", operators)
    expression = parse_expression(problem.question.removesuffix("="))
    assert expression is not None
    return Demonstration(problem, demonstrate(rng, expression, flaws))


def demonstrate(rng: np.random.Generator, expression: Expression, flaws: Flaws) -> str:
    """A completion for the prompt `expression=`, flaws and order drawn from `rng`; no end token.

    Every operation that may be done now is as likely as any other: many orders are right.
    """
    while True:
        segments = _segments(rng, expression, flaws)
        if segments is not None:
            return "=".join(segments)


def _segments(rng: np.random.Generator, expression: Expression, flaws: Flaws) -> list[str] | None:
    """One attempt; None where slips led below zero, for which the task has no notation."""
    segments: list[str] = []
    while expression.operators:
        index = _next_operator(rng, expression, flaws)
        result = expression.result(index)
        if result < 0:
            return None
        if rng.random() < flaws.arithmetic:
            result = _slip(rng, result)
        expression = expression.contract(index, result)
        segments.append(str(expression))
    return segments


def _next_operator(rng: np.random.Generator, expression: Expression, flaws: Flaws) -> int:
    operators = expression.operators
    tempting = operators[0] != "*" and operators[1:2] == "*" and expression.result(0) >= 0
    if tempting and rng.random() < flaws.left_to_right:
        return 0
    places = range(len(operators))
    allowed = [i for i in places if expression.may_contract(i) and expression.result(i) >= 0]
    if not allowed:
        return canonical_operator(expression)
    return allowed[int(rng.integers(len(allowed)))]


def _slip(rng: np.random.Generator, result: int) -> int:
    offset = (-10, -2, -1, 1, 2, 10)[int(rng.integers(6))]
    return result + offset if result + offset >= 0 else result - offset

"""Any reasoning-gym task, scored strictly.

A task's own `score_answer` is often lenient: a part of the text, numbers within a tolerance, trailing
rows ignored, `eval` of the answer. Here 1.0 is paid where the task's own score is exactly 1.0 *and*

- for a task with one right answer: the answer equals the stored one in canonical form (white space,
  the spelling of numerals, and the layout of JSON are forgiven, nothing else);
- for a task with many right answers, whose own checker decides: the whole answer has the shape the task
  asks for, so that nothing stands beside the moves that the checker picks out, and, where the checker
  has holes, an exact check of our own passes too.

The strict comparison comes first, so that no text of a policy reaches an `eval` of the library. Nothing
is paid in between. `propositional_logic` accepts every valid conclusion but a premise repeated word for
word: its data hold no answer to compare with.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any

from treerl.canon import canonical_json
from treerl.errors import DataError

_NUMERAL = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?(?![\w.])")
_MAX_CHARACTERS = 20_000

# The whole answer must match, for tasks whose own checker accepts any of several right answers.
_SHAPES: dict[str, str] = {
    "boxnet": r"\[.*\]",
    "cryptarithm": r"[A-Z]=[0-9](\s*,\s*[A-Z]=[0-9])*",
    "graph_color": r"\{.*\}",
    "group_anagrams": r"\[.*\]",
    "intermediate_integration": r"[^_\[\]{}'\"@:;=]+",
    "jugs": r"\[.*\]",
    "kakurasu": r"[01]([ \n][01])*",
    "knight_swap": r"No|\[.*\]",
    "n_queens": r"[_Q]([ \n][_Q])*",
    "palindrome_generation": r"[a-z]+",
    "palindrome_partitioning": r"\[.*\]",
    "polynomial_multiplication": r"[^_\[\]{}'\"@:;=]+",
    "propositional_logic": r"[A-Z\s()¬∧∨→↔]+",
    "quantum_lock": r"[ABC](\s*→\s*[ABC])*",
    "rubiks_cube": r"[A-Za-z][\w']{0,3}(\s+[A-Za-z][\w']{0,3})*",
    "rush_hour": r"[A-Z][+-][0-9]{1,2}(\s+[A-Z][+-][0-9]{1,2})*",
    "shortest_path": r"infeasible|(up|down|left|right)(\s+(up|down|left|right))*",
    "simple_integration": r"[^_\[\]{}'\"@:;=]+",
    "sokoban": r"[LRUD]+",
    "tower_of_hanoi": r"Move disk \d+ from Peg \d+ to Peg \d+(\s*\n\s*Move disk \d+ from Peg \d+ to Peg \d+)*",
    "word_ladder": r"[A-Za-z]+(\s*,\s*[A-Za-z]+)*",
}


def encode(entry: Mapping[str, Any]) -> str:
    """A data set's entry as the truth of a Problem: canonical JSON of `answer` and `metadata`.

    Tuples, sets, complex numbers, dates and dictionaries whose keys are no strings are tagged, so that
    `decode` gives the scorer what it was made for. Raises DataError for other types.
    """
    return canonical_json({"answer": _tag(entry["answer"]), "metadata": _tag(entry["metadata"])})


def decode(truth: str) -> dict[str, Any]:
    """The entry behind a truth; plain JSON without tags is read as it is. Raises DataError."""
    try:
        entry = _untag(json.loads(truth))
    except ValueError as error:
        raise DataError(f"truth is no JSON of a reasoning-gym entry: {error}") from error
    if not isinstance(entry, dict) or not {"answer", "metadata"} <= entry.keys():
        raise DataError('truth of a reasoning-gym problem needs the keys "answer" and "metadata"')
    return entry


def reward(truth: str, answer: str, *, task: str) -> float:
    """1.0 for an answer that is right by the strict rule above, else 0.0.

    Raises DataError for an unknown task or a truth that is no entry.
    """
    entry = decode(truth)
    if task == "composite":
        task = str(entry["metadata"].get("source_dataset", task))
    if not answer or len(answer) > _MAX_CHARACTERS or not _passes_strictly(task, answer, entry):
        return 0.0
    if task in _OWN_CHECKS:
        return 1.0
    return float(_scorer(task)(answer, entry) == 1.0)


def canonical(text: str) -> Any:
    """A form in which equal answers are equal: parsed JSON, else text with numerals and spaces settled."""
    for candidate in (text, text.replace("'", '"')):
        try:
            return _canonical_json_value(json.loads(candidate, parse_float=Fraction))
        except (ValueError, RecursionError):
            continue
    text = text.replace("$", "")
    lines = (" ".join(line.split()) for line in text.strip().split("\n"))
    joined = re.sub(r" ?([^\w\s.]) ?", r"\1", "\n".join(lines))
    return _NUMERAL.sub(lambda match: str(Fraction(match[0])), joined)


def _canonical_json_value(value: Any) -> Any:
    """Numbers and numerals as fractions; True stays apart from 1."""
    match value:
        case bool() | None:
            return ("constant", value)
        case int() | Fraction():
            return Fraction(value)
        case str():
            stripped = value.strip()
            return (
                Fraction(stripped)
                if re.fullmatch(r"-?[0-9]{1,99}(\.[0-9]{1,99})?", stripped)
                else value
            )
        case list():
            return [_canonical_json_value(item) for item in value]
        case dict():
            return {key: _canonical_json_value(item) for key, item in value.items()}
    raise ValueError(f"no JSON value: {value!r}")


def _passes_strictly(task: str, answer: str, entry: Mapping[str, Any]) -> bool:
    if task in _OWN_CHECKS:
        return _OWN_CHECKS[task](answer, entry)
    if task in _SHAPES:
        if re.fullmatch(_SHAPES[task], answer.strip(), re.DOTALL) is None:
            return False
        check = _EXTRA_CHECKS.get(task)
        return check is None or check(answer, entry)
    return bool(canonical(answer) == canonical(str(entry["answer"])))


def _is_formula(answer: str, _entry: Mapping[str, Any]) -> bool:
    """Names of functions and one-letter variables only: sympy's parser evaluates what it is given."""
    names = re.findall(r"[^\W\d]\w*", answer)
    known = {
        "sin",
        "cos",
        "tan",
        "exp",
        "log",
        "ln",
        "sqrt",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
    }
    return len(answer) <= 1000 and all(len(name) == 1 or name in known for name in names)


def _repeats_no_premise(answer: str, entry: Mapping[str, Any]) -> bool:
    plain = str.maketrans("", "", " ()")
    return answer.translate(plain) not in {
        str(premise).translate(plain) for premise in entry["metadata"]["premises"]
    }


def _is_countdown(answer: str, entry: Mapping[str, Any]) -> bool:
    metadata = entry["metadata"]
    return _uses(answer, metadata["numbers"]) and _arithmetic(answer) == metadata["target"]


def _is_puzzle24(answer: str, entry: Mapping[str, Any]) -> bool:
    return _uses(answer, entry["metadata"]["numbers"]) and _arithmetic(answer) == 24


def _uses(answer: str, numbers: list[int]) -> bool:
    return sorted(int(numeral) for numeral in re.findall(r"[0-9]{1,18}", answer)) == sorted(numbers)


def _arithmetic(text: str) -> Fraction | None:
    """The exact value of whole numbers joined by + - * / and brackets; None for anything else."""
    if len(text) > 200 or re.fullmatch(r"[0-9+\-*/() ]+", text) is None:
        return None
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left) + _evaluate(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _evaluate(left) - _evaluate(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left) * _evaluate(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _evaluate(left) / _evaluate(right)
    raise ValueError(f"not plain arithmetic: {type(node).__name__}")


def _is_power(answer: str, entry: Mapping[str, Any]) -> bool:
    """The question asks for three significant figures: those, or the stored value, and nothing near."""
    if re.fullmatch(r"-?[0-9.]{1,40}(e[+-]?[0-9]{1,4})?", answer.strip().lower()) is None:
        return False
    try:
        given, stored = Decimal(answer.strip()), Decimal(str(entry["answer"]))
    except InvalidOperation:
        return False
    return given in (stored, Decimal(f"{stored:.2e}"))


_OWN_CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    # Their own checkers round (24.9 is 24), ignore the numbers given, or accept what is near.
    "countdown": _is_countdown,
    "puzzle24": _is_puzzle24,
    "power_function": _is_power,
}
_EXTRA_CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "intermediate_integration": _is_formula,
    "simple_integration": _is_formula,
    "polynomial_multiplication": _is_formula,
    "propositional_logic": _repeats_no_premise,
}


@lru_cache(maxsize=128)
def _scorer(task: str) -> Callable[[str, Mapping[str, Any]], float]:
    import reasoning_gym

    try:
        scorer: Callable[[str, Mapping[str, Any]], float] = reasoning_gym.get_score_answer_fn(task)
    except ValueError as error:
        raise DataError(f"reasoning-gym has no task {task!r}") from error
    return scorer


def _tag(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case list():
            return [_tag(item) for item in value]
        case tuple():
            return {"__tuple__": [_tag(item) for item in value]}
        case set() | frozenset():
            return {"__set__": sorted((_tag(item) for item in value), key=canonical_json)}
        case complex():
            return {"__complex__": [value.real, value.imag]}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {str(key): _tag(item) for key, item in value.items()}
        case Mapping():
            return {"__items__": [[_tag(key), _tag(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _tag(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise DataError(f"reasoning-gym metadata holds a {type(value).__name__}, which JSON cannot")


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"__tuple__": list(items)}:
            return tuple(_untag(item) for item in items)
        case {"__set__": list(items)}:
            return {_untag(item) for item in items}
        case {"__complex__": [real, imaginary]}:
            return complex(real, imaginary)
        case {"__items__": list(items)}:
            return {_untag(key): _untag(item) for key, item in items}
    return {key: _untag(item) for key, item in value.items()}

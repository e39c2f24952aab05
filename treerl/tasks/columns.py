"""Which column of a data set is the question and which the answer, and how the truth is read from it.

The layouts of GSM8K, MATH, TRL, verl/SkyRL, verifiers, SVAMP, ASDiv and plain question/answer files are
recognised by their column names; names given in the recipe override. What was chosen is a `Mapping`, whose
one line is shown to the user. Rows come from treerl.tasks.files and treerl.tasks.hub; no file is read here.
"""

import re
from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from treerl.canon import canonical_json
from treerl.problem import Problem
from treerl.verifiers.extract import boxed, hash_line

Row = MappingABC[str, Any]
TruthForm = Literal["whole", "after ####", "last \\boxed{}", "before (unit)"]

MESSAGES_COLUMN = "messages"
"""Column of a problem whose question was a conversation: the list of its messages."""

_INTEGRAL = re.compile(r"(-?)0*(\d+?)(?:\.0+)?", re.ASCII)
_UNIT = re.compile(r"(.+?)\s+\([^()]*\)\s*", re.DOTALL)
_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)


class MalformedRow(Exception):
    """One row does not fit the mapping; the reader adds file and line, then counts it or raises."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """How rows become problems. `question` columns are joined by a space; dots go into nested objects."""

    layout: str
    question: tuple[str, ...]
    answer: str
    form: TruthForm

    def __str__(self) -> str:
        question = " + ".join(self.question)
        form = "" if self.form == "whole" else f" ({self.form})"
        return f"{self.layout}: question = {question}, answer = {self.answer}{form}"


def detect_mapping(
    row: Row, question: str | None = None, answer: str | None = None
) -> Mapping | None:
    """The mapping for rows like this first one; None if a column is neither given nor recognised."""
    known = _known_layout(row)
    if question is None and answer is None:
        return known
    questions = (question,) if question else known.question if known else None
    answers = answer or (known.answer if known else None)
    if questions is None or answers is None:
        return None
    form = _observed_form(row, answers)
    if known and answer is None:
        form = known.form
    return Mapping("as given", questions, answers, form)


def _known_layout(row: Row) -> Mapping | None:
    names = {name for name, value in row.items() if value is not None}
    for nested in ("reward_model", "reward_spec"):
        if {"prompt", nested} <= names:
            path = f"{nested}.ground_truth"
            layout = "verl" if nested == "reward_model" else "SkyRL"
            return Mapping(layout, ("prompt",), path, _observed_form(row, path))
    if {"Body", "Question", "Answer"} <= names:
        return Mapping("SVAMP", ("Body", "Question"), "Answer", "whole")
    if {"body", "question", "answer"} <= names:
        return Mapping("ASDiv", ("body", "question"), "answer", "before (unit)")
    if "problem" in names and names & {"answer", "solution"}:
        name = "answer" if "answer" in names else "solution"
        return Mapping("MATH", ("problem",), name, _observed_form(row, name))
    asked = next((name for name in ("question", "prompt") if name in names), None)
    if asked and "answer" in names and names & {"info", "task"}:
        return Mapping("verifiers", (asked,), "answer", _observed_form(row, "answer"))
    if "question" in names and "answer" in names:
        form = _observed_form(row, "answer")
        layout = "GSM8K" if form == "after ####" else "question/answer"
        return Mapping(layout, ("question",), "answer", form)
    if "prompt" in names:
        for name in ("answer", "solution", "ground_truth"):
            if name in names:
                return Mapping("TRL", ("prompt",), name, _observed_form(row, name))
    return None


def _observed_form(row: Row, path: str) -> TruthForm:
    try:
        value = _value(row, path)
    except MalformedRow:
        return "whole"
    if isinstance(value, str) and hash_line(value) is not None:
        return "after ####"
    if isinstance(value, str) and boxed(value) is not None:
        return "last \\boxed{}"
    return "whole"


def to_problem(row: Row, mapping: Mapping, judge: str) -> Problem:
    """One problem; raises MalformedRow naming column and finding. All columns of the row stay with it."""
    parts = [_question_text(_value(row, path), path) for path in mapping.question]
    question = " ".join(part.strip() for part in parts) if len(parts) > 1 else parts[0]
    truth = _truth(_value(row, mapping.answer), mapping, judge)
    columns = dict(row)
    messages = _value(row, mapping.question[0])
    if not isinstance(messages, str):
        columns[MESSAGES_COLUMN] = [dict(message) for message in messages]
    return Problem(question, truth, judge, columns)


def _value(row: Row, path: str) -> Any:
    """The value at a column name or, where there is no such column, a dotted path."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, MappingABC) or name not in value:
            raise MalformedRow(f"column {path!r} is missing; found {_names(row)}")
        value = value[name]
    return value


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "no column"


def _question_text(value: Any, path: str) -> str:
    """The text of a question or, for a conversation, of its messages, which then name the problem."""
    if isinstance(value, str):
        if not value.strip():
            raise MalformedRow(f"column {path!r} is empty")
        return value
    if not (isinstance(value, Sequence) and value and all(map(_is_message, value))):
        raise MalformedRow(
            f"column {path!r} should be text or a list of messages, found {_shown(value)}"
        )
    if len(value) == 1:
        return str(value[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, MappingABC)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _truth(value: Any, mapping: Mapping, judge: str) -> str:
    found = _plain(value, mapping.answer)
    truth: str | None
    match mapping.form:
        case "whole":
            truth = found
        case "after ####":
            truth = hash_line(found)
        case "last \\boxed{}":
            truth = boxed(found)
        case "before (unit)":
            unit = _UNIT.fullmatch(found)
            truth = unit[1] if unit else found
        case _:
            assert_never(mapping.form)
    if truth is None:
        raise MalformedRow(
            f"column {mapping.answer!r} has no answer {mapping.form}, found {_shown(found)}"
        )
    truth = truth.strip()
    if judge in ("math", "number"):
        truth = _plain_number(truth)
    return truth


def _plain_number(truth: str) -> str:
    """27.0, 1,080 and 073 as 27, 1080 and 73; anything else as it is."""
    if _THOUSANDS.fullmatch(truth):
        truth = truth.replace(",", "")
    integral = _INTEGRAL.fullmatch(truth)
    return integral[1] + integral[2] if integral else truth


def _plain(value: Any, path: str) -> str:
    match value:
        case str() if value.strip():
            return value
        case bool() | int():
            return str(value)
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case None | "" | str():
            raise MalformedRow(f"column {path!r} is empty")
        case _:
            try:
                return canonical_json(value)
            except (TypeError, ValueError):
                raise MalformedRow(
                    f"column {path!r} should be text or a number, found {_shown(value)}"
                ) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

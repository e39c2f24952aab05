"""Where the answer stands in a completion: one strict format a task, its last occurrence, nothing else.

A second format is never tried when the first finds nothing, and a last occurrence that is cut off does
not fall back to an earlier one: both would let a policy place several answers and have the best taken.
Extractors are pure, linear in the text and never raise; "not found" and "empty" are None.
"""

from collections.abc import Callable
from typing import Literal

AnswerFormat = Literal["boxed", "hash", "answer_tag", "last_segment", "whole"]

_BOX = "\\boxed{"
_HASH = "#### "
_OPEN, _CLOSE = "<answer>", "</answer>"


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced (escaped braces do not count)."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth, position = 1, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start:position].strip() or None
        position += 1
    return None


def hash_line(text: str) -> str | None:
    """What follows the last `#### ` up to the end of its line (GSM8K)."""
    start = text.rfind(_HASH)
    if start < 0:
        return None
    return text[start + len(_HASH) :].split("\n", 1)[0].strip() or None


def answer_tag(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`."""
    start = text.rfind(_OPEN)
    if start < 0:
        return None
    content, closed, _ = text[start + len(_OPEN) :].partition(_CLOSE)
    return (content.strip() or None) if closed else None


def last_segment(text: str) -> str | None:
    """Text after the last `=`. A prompt of the chain task ends in `=`, so without one it is the whole."""
    return text.rpartition("=")[2].strip() or None


def whole(text: str) -> str | None:
    """The completion itself, without the white space around it."""
    return text.strip() or None


EXTRACTORS: dict[AnswerFormat, Callable[[str], str | None]] = {
    "boxed": boxed,
    "hash": hash_line,
    "answer_tag": answer_tag,
    "last_segment": last_segment,
    "whole": whole,
}


def count_occurrences(text: str, answer_format: AnswerFormat) -> int:
    """How often the format's opening mark stands in the text (`whole`, `last_segment`: always once)."""
    marks = {"boxed": _BOX, "hash": _HASH, "answer_tag": _OPEN}
    mark = marks.get(answer_format)
    return 1 if mark is None else text.count(mark)

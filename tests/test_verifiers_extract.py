"""Extraction: one format, the last occurrence, None instead of a second try, and never an exception."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treerl.verifiers.extract import EXTRACTORS


@pytest.mark.parametrize(
    ("answer_format", "text", "answer"),
    [
        ("boxed", r"\boxed{1} then \boxed{2}", "2"),
        ("boxed", r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        ("boxed", r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("boxed", r"\boxed{\{1}", r"\{1"),
        ("boxed", r"\boxed{1} then \boxed{2", None),
        ("boxed", r"\boxed{}", None),
        ("boxed", "the answer is 2", None),
        ("boxed", "#### 2", None),
        ("hash", "#### 1\n#### 1,234 \nbye", "1,234"),
        ("hash", "####2", None),
        ("hash", "#### \n5", None),
        ("hash", r"\boxed{2}", None),
        ("answer_tag", "<answer>1</answer><answer> 2\n3 </answer>", "2\n3"),
        ("answer_tag", "<answer>1</answer> <answer>2", None),
        ("answer_tag", "<answer></answer>", None),
        ("answer_tag", "1</answer>", None),
        ("last_segment", "7+15-8=22-8=14", "14"),
        ("last_segment", "14", "14"),
        ("last_segment", "7+15=", None),
        ("whole", "  yes\n", "yes"),
        ("whole", " \n", None),
    ],
)
def test_extracts_the_last_occurrence_or_nothing(answer_format, text, answer):
    assert EXTRACTORS[answer_format](text) == answer


PIECES = st.sampled_from(
    ["\\boxed{", "}", "{", "\\", "\\{", "#### ", "\n", "<answer>", "</answer>", "=", " ", "7"]
)


@pytest.mark.parametrize("answer_format", list(EXTRACTORS))
@given(text=st.text() | st.lists(PIECES, max_size=40).map("".join))
def test_never_raises_and_gives_a_stripped_part_of_the_text(answer_format, text):
    answer = EXTRACTORS[answer_format](text)
    assert answer is None or (answer and answer == answer.strip() and answer in text)


@given(inner=st.text(alphabet="ab1+ ", min_size=1).filter(str.strip), before=st.text())
def test_a_boxed_answer_is_found_whatever_stands_before_it(inner, before):
    assert EXTRACTORS["boxed"](before + " \\boxed{" + inner + "}") == inner.strip()

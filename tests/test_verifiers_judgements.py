"""The judgements: what each pays, and above all what it does not pay."""

import math as stdlib_math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support_verifiers import settings
from treerl.errors import ConfigError, DataError
from treerl.problem import Problem
from treerl.verifiers import chain, choice, exact, math, number
from treerl.verifiers.judge import PlainPart, judge
from treerl.verifiers.verdict import Completion


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"-\frac{3}{4}", "-0.75"),
        ("1,234", "1234"),
        (r"10{,}000", r"10\,000"),
        ("3", "x = 3"),
        ("x=3", "3"),
        ("50", r"50\%"),
        ("5", r"5 \text{ cm}"),
        (r"5\text{ cm}^2", "5"),
        ("90", r"90^\circ"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("0.5x", r"\frac{x}{2}"),
        ("10^{-3}", "0.001"),
        (r"\{1,2\}", "2, 1"),
        ("1,2", r"1 \text{ and } 2"),
        (r"3 \pm \sqrt{2}", r"3-\sqrt2, 3+\sqrt2"),
        ("[1,2)", r"\left[1, 2\right)"),
        (r"(-\infty,3]", r"(-\infty, 3]"),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"),
        (r"x \in (1,2)", "(1,2)"),
        ("y=2x+1", "y = 1+2x"),
        ("x<3", "3>x"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\text{east}", "East"),
        (r"\text{(A)}", "A"),
        ("3+4i", "4i+3"),
        ("ab", "ba"),
    ],
)
def test_math_pays_equal_objects(truth, answer):
    assert math.reward(truth, answer) == 1.0


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("3", "3 or 4"),
        ("3", r"3\text{ or }4"),
        ("3", "3,4"),
        ("3", "3;4"),
        ("3", r"\{3, 3\}"),
        ("3", "x=3,x=4"),
        ("3", "x=4=3"),
        ("3", "4=3"),
        ("2", "1+1=2"),
        ("3", r"\pm 3"),
        ("3", "(3,4)"),
        ("3", "x<3"),
        ("3", r"3\neq 4"),
        ("3", "3 4"),
        ("12", "1 2"),
        ("3", "The answer is 3"),
        ("3", "3 (maybe)"),
        ("3", ""),
        ("3", "?"),
        ("3", r"\emptyset"),
        ("3", "x"),
        ("3", "(" * 3000),
        ("3", "(" * 900 + "3" + ")" * 900),
        ("1,2", "1,2,3"),
        ("(1,2)", "1,2"),
        ("(1,2)", r"\{1,2\}"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("[1,2)", "(1,2)"),
        ("x=3", "y=3"),
        ("x<3", r"x \leq 3"),
        ("0.5", r"50\%"),
        ("5", "5m"),
        ("5m", "5"),
        ("5", r"5\text{ thousand}"),
        (r"5\text{ km}", r"5 \text{ m}"),
        ("1/3", "0.333333"),
        ("0", "0.0000001"),
        (r"\pi", "3.141592653589793"),
        (r"\sqrt{2}", "1.4142135623730951"),
        (r"\text{east}", "seat"),
        (r"\text{(A)}", "B"),
    ],
)
def test_math_does_not_pay_hedges_nearness_or_wrong_shapes(truth, answer):
    assert math.reward(truth, answer) == 0.0


def test_math_says_so_where_the_truth_cannot_be_parsed():
    with pytest.raises(DataError, match="truth"):
        math.reward(r"\frac{1", "2+x")


@given(text=st.text(alphabet="0123456789.,+-/$% eE\u0663", max_size=12))
def test_a_number_has_one_value_and_text_none(text):
    value = number.parse(text)
    assert value is None or isinstance(value, Fraction)
    if value is not None and "/" not in text:
        plain = text.strip().replace(",", "").replace("$", "").replace(" ", "")
        assert stdlib_math.isclose(float(plain), float(value))


@pytest.mark.parametrize(
    ("truth", "answer", "reward"),
    [
        ("1234.5", "1,234.50", 1.0),
        ("-2", "\u22122", 1.0),
        ("0.1", "1/10", 1.0),
        ("72", "$72", 1.0),
        ("72", "+72.", 1.0),
        ("0.3", "0.30000000000000004", 0.0),
        ("1234", "12,34", 0.0),
        ("1000", "1e3", 0.0),
        ("72", "72 apples", 0.0),
        ("72", "72 73", 0.0),
        ("72", "\u0667\u0662", 0.0),
        ("72", "1/0", 0.0),
        ("72", "nan", 0.0),
        ("72", "1e999999999", 0.0),
        ("72", "7" * 100_000, 0.0),
    ],
)
def test_number_is_exact(truth, answer, reward):
    assert number.reward(truth, answer) == reward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("B", 1.0),
        ("(B)", 1.0),
        ("B.", 1.0),
        (r"\text{B}", 1.0),
        ("b", 0.0),
        ("A or B", 0.0),
        ("BA", 0.0),
        ("K", 0.0),
        ("", 0.0),
        ("B) 7", 0.0),
    ],
)
def test_choice_is_one_letter(answer, reward):
    assert choice.reward("(B)", answer) == reward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("14", 1.0),
        ("014", 0.0),
        ("+14", 0.0),
        ("14.0", 0.0),
        ("1 4", 0.0),
        ("", 0.0),
        ("\u0661", 0.0),
    ],
)
def test_chain_is_strict_digits(answer, reward):
    assert chain.reward("14", answer) == reward


def test_exact_forgives_outer_white_space_only():
    assert exact.reward("Yes", " Yes\n") == 1.0
    assert exact.reward("Yes", "yes") == 0.0


@pytest.mark.parametrize("judgement", [number, choice, chain])
def test_a_truth_of_the_wrong_kind_is_an_error_not_a_zero(judgement):
    with pytest.raises(DataError):
        judgement.reward("not a truth", "14")


def test_nothing_extracted_is_scored_zero_without_an_answer():
    verdict = judge(Problem("q", "72", "number"), Completion("it is 72"), settings())
    assert (verdict.outcome, verdict.reward, verdict.answer) == ("scored", 0.0, None)


def test_auto_uses_the_problems_kind_and_its_usual_format():
    verdict = judge(Problem("7+7=", "14", "chain"), Completion("14", finish="length"), settings())
    assert (verdict.reward, verdict.answer, verdict.detail["kind"]) == (1.0, "14", "chain")


def test_another_format_is_not_tried():
    verdict = judge(Problem("q", "72", "number"), Completion(r"#### 71 \boxed{72}"), settings())
    assert verdict.reward == 0.0


def test_a_bad_truth_is_the_outcome_error():
    verdict = judge(Problem("q", "many", "number"), Completion("#### 72"), settings())
    assert (verdict.outcome, verdict.reward) == ("error", None)
    assert "many" in verdict.detail["reason"]


def test_an_unknown_kind_names_the_remedy():
    with pytest.raises(ConfigError, match=r"verifier\.kind"):
        judge(Problem("q", "72", "poetry"), Completion("72"), settings())


def composite_settings():
    parts = (PlainPart("number", 0.9), PlainPart("format", 0.1))
    return settings(kind="composite", parts=parts, answer_format="hash")


@pytest.mark.parametrize(
    ("text", "reward"),
    [("#### 72", 1.0), ("#### 71", 0.1), ("72", 0.0), ("#### 71\n#### 72", 0.9), ("#### ", 0.0)],
)
def test_composite_adds_weighted_parts(text, reward):
    verdict = judge(Problem("q", "72", "math"), Completion(text), composite_settings())
    assert verdict.reward == pytest.approx(reward)


def test_composite_keeps_its_parts_for_people():
    verdict = judge(Problem("q", "72", "math"), Completion("#### 71"), composite_settings())
    assert verdict.detail["parts"] == {"number": 0.0, "format": 1.0}

import subprocess
import sys
from itertools import islice

import pytest

from treerl.canon import generator
from treerl.errors import ConfigError
from treerl.tasks.chain import (
    OPERATORS,
    Expression,
    Flaws,
    check_steps,
    demonstrate,
    draw_demonstration,
    generate,
    is_heldout,
    parse_expression,
    problem_stream,
    require_operators,
)

QUESTION = "7+5*3-8="


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("7+5*3-8", 14), ("2*3*4-5*2", 14), ("9-2-3", 4), ("9-2*3+1", 4), ("3-8", -5)],
)
def test_value_follows_precedence(text, value):
    expression = parse_expression(text)
    assert expression is not None
    assert expression.value() == value
    assert str(expression) == text


@pytest.mark.parametrize("text", ["", "7+", "+7", "7++5", "07", "7=5", "-7", "7 +5", "7+5\n", "٣"])
def test_what_is_no_expression_is_refused(text):
    assert parse_expression(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "7+15-8=22-8=14",
        "7+15-8=7+7=14",  # 15-8 first: another order that keeps the value
    ],
)
def test_right_steps(text):
    report = check_steps(QUESTION, text)
    assert report.error is None
    assert (report.start, report.stop, report.right_steps) == (None, None, 3)


@pytest.mark.parametrize(
    ("text", "error", "start", "stop", "right"),
    [
        ("7+16-8=23-8=15", "arithmetic", 0, 6, 0),
        ("7+15-8=21-8=13", "arithmetic", 6, 11, 1),
        ("7+15-8=22-8=15", "arithmetic", 11, 14, 2),
        ("12*3-8=36-8=28", "precedence", 0, 6, 0),
        ("13*3-8=39-8=31", "precedence", 0, 6, 0),  # out of turn, and the sum is wrong too
        ("7+15-9=22-9=13", "copy", 0, 6, 0),
        ("7+5*3-8=7+15-8=22-8=14", "copy", 0, 7, 0),  # a step that does nothing
        ("7+15-8=14", "skip", 6, 9, 1),
        ("22-8=14", "skip", 0, 4, 0),
        ("7+15-8=22-=14", "syntax", 6, 10, 1),
        ("7+15-8==14", "syntax", 6, 7, 1),
        ("7+15-8=22-8=", "syntax", 11, 12, 2),
        ("", "syntax", 0, 1, 0),
        ("7+15-8=22-8", "skip", 11, 12, 2),  # it ended too early: where the end token stands
        ("7+15-8=22-8=14=14", "copy", 14, 17, 3),
    ],
)
def test_first_wrong_step_and_its_class(text, error, start, stop, right):
    report = check_steps(QUESTION, text)
    assert (report.error, report.start, report.stop, report.right_steps) == (
        error,
        start,
        stop,
        right,
    )


def test_difference_taken_from_the_right_is_precedence():
    assert check_steps("9-2-3=", "9-1=8").error == "precedence"
    assert check_steps("9-2+3=", "9-5=4").error == "precedence"
    assert check_steps("9-2+3=", "9+1=10").error is None  # -2+3 is +1


def test_check_steps_refuses_another_tasks_question():
    with pytest.raises(ValueError, match="not a question"):
        check_steps("How many apples?", "7")


def test_problems_have_the_shape_the_task_promises():
    for problem in islice(problem_stream("train", OPERATORS, 0), 300):
        expression = parse_expression(problem.question.removesuffix("="))
        assert expression is not None
        assert 5 <= len(expression.operators) <= 7
        assert set(expression.numbers) <= set(range(2, 10))
        assert "*" in expression.operators.lstrip("*")
        assert problem.truth == str(expression.value())
        assert problem.kind == "chain"
        assert 0 <= expression.value() <= 99


def test_streams_are_functions_of_their_seed():
    first = list(islice(problem_stream("train", OPERATORS, 3, 5), 20))
    assert first == list(islice(problem_stream("train", OPERATORS, 3, 5), 20))
    assert first != list(islice(problem_stream("train", OPERATORS, 3, 6), 20))
    assert len({problem.question for problem in first}) == 20


def test_no_seed_can_mix_training_and_heldout_problems():
    train = {p.question for s in range(20) for p in islice(problem_stream("train", (3, 7), s), 50)}
    heldout = {p.question for p in islice(problem_stream("heldout", (3, 7), 0), 100)}
    assert not train & heldout
    assert not any(map(is_heldout, train))
    assert all(map(is_heldout, heldout))


def test_split_of_a_question_never_changes():
    # A change here would let old caches and the embedded policy have seen held-out problems.
    rng = generator("split", 0)
    shares = [is_heldout(f"{i}+{int(rng.integers(99))}*2=") for i in range(4096)]
    assert sum(shares) / len(shares) == pytest.approx(1 / 16, abs=0.015)
    assert [i for i in range(64) if is_heldout(f"{i}+2*3=")] == HELDOUT_SMALL


HELDOUT_SMALL = [2, 13, 27, 43, 57, 58]


def test_flawless_demonstrations_are_right_in_every_step():
    rng = generator("demonstrations", 0)
    for problem in islice(problem_stream("train", OPERATORS, 1), 200):
        expression = parse_expression(problem.question.removesuffix("="))
        assert expression is not None
        text = demonstrate(rng, expression, Flaws())
        assert check_steps(problem.question, text).error is None
        assert text.rpartition("=")[2] == problem.truth


def test_flawed_demonstrations_go_wrong_as_often_as_the_model_card_says():
    rng = generator("demonstrations", 1)
    drawn = [
        draw_demonstration(rng, Flaws(left_to_right=0.5, arithmetic=0.06)) for _ in range(1500)
    ]
    errors = [check_steps(d.problem.question, d.completion).error for d in drawn]
    assert set(errors) == {None, "precedence", "arithmetic"}
    assert errors.count(None) / 1500 == pytest.approx(0.48, abs=0.04)
    assert not any(is_heldout(d.problem.question) for d in drawn)


def test_left_to_right_slip_is_what_it_says():
    text = demonstrate(generator(0), Expression((7, 5, 3), "+*"), Flaws(left_to_right=1.0))
    assert text == "12*3=36"


def test_arithmetic_slips_never_go_below_zero():
    rng = generator("slips", 0)
    texts = [demonstrate(rng, Expression((2, 2), "-"), Flaws(arithmetic=1.0)) for _ in range(50)]
    assert set(texts) == {"1", "2", "10"}


@pytest.mark.parametrize("operators", [(1, 7), (7, 5), (5, 40)])
def test_impossible_numbers_of_operators_are_refused(operators):
    with pytest.raises(ConfigError, match="min_operators"):
        require_operators(operators)


@pytest.mark.parametrize("operators", [(3, 3), (16, 16)])
def test_extreme_numbers_of_operators_can_be_drawn(operators):
    problem = generate(generator("extreme", *operators), "train", operators)
    assert sum(problem.question.count(o) for o in "+-*") == operators[0]


def test_chain_needs_no_torch():
    code = "import sys, treerl.tasks.chain, treerl.tasks.prompts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

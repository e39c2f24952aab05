"""Where the benchmark of credit says that an answer goes wrong."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_credit.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_credit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "step", "token"),
    [
        ("12*3-8=36-8=28", "12*3-8", "1"),
        ("7+15-8=23-8=15", "=23-8", "3"),
        ("7+16-8=15", "7+16-8", "6"),
        ("7+15-8=14", "=14", "1"),
        ("7+15-8==22", "=", "="),
    ],
)
def test_first_wrong_step_and_token(bench, text, step, token):
    error = bench.first_error("7+5*3-8=", text)
    assert text[slice(*error.step)] == step
    assert text[slice(*error.token)] == token
    assert error.step[0] <= error.token[0]


def test_an_answer_that_stops_early_errs_at_its_end_token(bench):
    error = bench.first_error("7+5*3-8=", "7+15-8=22-8")
    assert error.step == error.token == (11, 12)


def test_a_right_answer_has_no_error(bench):
    assert bench.first_error("7+5*3-8=", "7+15-8=22-8=14") is None

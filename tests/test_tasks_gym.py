import re

import pytest

from treerl.config import GymTask
from treerl.errors import ConfigError, DataError
from treerl.tasks import gym, load_task
from treerl.verifiers.reasoning_gym import decode, reward


def test_problems_carry_what_the_strict_judge_needs():
    data = load_task(GymTask(name="gcd", heldout=8))
    for problem in (*data.heldout, *data.problems_for_step(0, 8)):
        answer = decode(problem.truth)["answer"]
        assert problem.kind == "reasoning_gym/gcd"
        assert reward(problem.truth, answer, task="gcd") == 1.0
        assert reward(problem.truth, answer + "1", task="gcd") == 0.0


def test_problems_are_a_function_of_seed_and_step():
    task = GymTask(name="basic_arithmetic", seed=5, heldout=4)
    data = load_task(task)
    data.problems_for_step(0, 3)
    assert data.problems_for_step(4, 6) == load_task(task).problems_for_step(4, 6)
    assert data.problems_for_step(4, 6) != data.problems_for_step(5, 6)
    assert data.heldout == load_task(GymTask(name="basic_arithmetic", seed=6, heldout=4)).heldout


def test_training_problems_are_never_held_out_even_where_there_are_few():
    # gcd of two numbers up to 8: about 64 questions in all.
    settings = {"min_value": 1, "max_value": 8, "min_numbers": 2, "max_numbers": 2}
    data = load_task(GymTask(name="gcd", settings=settings, heldout=30))
    heldout = {p.question for p in data.heldout}
    trained = {p.question for step in range(10) for p in data.problems_for_step(step, 16)}
    assert len(heldout) == 30
    assert trained
    assert not trained & heldout


def test_settings_reach_the_task():
    settings = {"min_value": 41, "max_value": 43, "min_numbers": 2, "max_numbers": 2}
    for problem in gym.draw("gcd", 10, settings=settings):
        assert set(re.findall(r"\d+", problem.question.partition(":")[2])) <= {"41", "42", "43"}


def test_a_task_with_too_few_problems_says_so():
    settings = {"min_value": 1, "max_value": 2, "min_numbers": 2, "max_numbers": 2}
    with pytest.raises(DataError, match=r"only \d of 50 problems"):
        load_task(GymTask(name="gcd", settings=settings, heldout=50))


def test_unknown_task_and_wrong_settings():
    with pytest.raises(ConfigError, match="no such task"):
        load_task(GymTask(name="nope"))
    with pytest.raises(ConfigError, match=r"task\.settings of reasoning-gym task gcd"):
        load_task(GymTask(name="gcd", settings={"colour": 3}))
    with pytest.raises(ConfigError, match=r"task\.seed"):
        load_task(GymTask(name="gcd", settings={"seed": 3}))


def test_tasks_that_differ_from_process_to_process_are_refused(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        load_task(GymTask(name="ransom_note", heldout=2))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load_task(GymTask(name="ransom_note", heldout=2)).heldout) == 2

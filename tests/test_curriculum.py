"""Choosing problems by pass rates, and the plan of phases."""

import math

import pytest

from treerl.config import DriveCurriculum, RoundsCurriculum, TaskOrder, VarianceCurriculum
from treerl.engine.curriculum import candidates, plan
from treerl.errors import ConfigError
from treerl.recipe import load_recipe, parse_recipe
from treerl.replay.phases import Phase, phases, problems_of, put_phase
from treerl.replay.rates import Rate
from treerl.replay.store import Store
from treerl.tasks import load_task
from treerl.tasks.curriculum import hard, hardest, most_varied, variance_score

HISTORIES = {
    "a": (0, 0, 0, 0),
    "b": (0, 0, 0, 0.125),
    "c": (0, 0.25, 0, 0.25),
    "d": (0.5, 0.5, 0.5, 0.5),
    "e": (0, 1, 0, 0.75),
    "f": (0.875, 0.875, 1, 1),
}
CURRENT = {key: Rate(int(8 * rates[-1]), 8) for key, rates in HISTORIES.items()}


def history(*shares, n=8):
    return [Rate(round(share * n), n) for share in shares]


def test_the_hard_set_of_deepsearch():
    assert hard(CURRENT, max_rate=0.25) == ["a", "b", "c"]
    assert hard(CURRENT, max_rate=0.2) == ["a", "b"]
    screened = {str(right): Rate(right, 4) for right in range(5)}
    assert hard(screened, max_rate=0.25) == ["0", "1"]
    assert hard(screened, max_rate=0.0) == ["0"]


def test_a_hard_set_that_is_too_small_is_filled_up_with_the_next_harder():
    assert hard(CURRENT, max_rate=0.0, at_least=3) == ["a", "b", "c"]
    assert hard({"x": Rate(4, 4)}, max_rate=0.25, at_least=2) == ["x"]


def test_drive_keeps_the_lowest_rates_and_its_sets_are_nested():
    assert hardest(CURRENT, 3) == ["a", "b", "c"]
    rates = {f"{i:03}": Rate(i // 5, 64) for i in range(175)}
    first = hardest(rates, 72)
    second = hardest({key: rates[key] for key in first}, 50)
    third = hardest({key: rates[key] for key in second}, 25)
    assert (len(first), len(second), len(third)) == (72, 50, 25)
    assert set(third) < set(second) < set(first)
    assert first[-1] == "071"  # of five equal ones the earlier come first


def test_variance_of_the_history():
    plain = {"subtract_noise": False}
    assert variance_score(history(0, 1, 0, 1), **plain) == pytest.approx(0.25)
    assert variance_score(history(0.4, 0.6, n=10), **plain) == pytest.approx(0.01)
    assert variance_score(history(1, 1), **plain) == 0
    noisy = variance_score(history(0, 0.25, 0.5, 1), subtract_noise=True)
    assert noisy == pytest.approx(0.1823 - 0.0156, abs=1e-4)


def test_the_most_varied_problems():
    found = {key: history(*shares) for key, shares in HISTORIES.items()}
    how = {"min_epochs": 2, "subtract_noise": False}
    assert most_varied(found, 3, **how) == ["e", "c", "f"]
    assert most_varied(found | {"g": history(1)}, 9, **how)[-1] != "g"


def test_screening_is_noisy_as_the_documents_say():
    def chance(p, most):
        return sum(math.comb(4, k) * p**k * (1 - p) ** (4 - k) for k in range(most + 1))

    assert [chance(p, 1) for p in (0.1, 0.25, 0.5)] == pytest.approx(
        [0.9477, 0.7383, 0.3125], abs=1e-4
    )


def test_plans():
    assert plan(TaskOrder()) == []
    assert plan(RoundsCurriculum(rounds=3, steps_per_round=100)) == [0, 100, 200]
    assert plan(DriveCurriculum(problems=175)) == [0, 32, 96, 128]
    assert plan(DriveCurriculum(problems=175, warm_steps=0)) == [0, 64, 96]
    assert sum(DriveCurriculum(problems=175).steps) == 128
    assert plan(VarianceCurriculum(history_run="pilot")) == [0]


def test_candidates_of_an_endless_task_are_different_and_never_held_out():
    task = load_task(load_recipe("quickstart").task)
    found = candidates(task, 50)
    assert len({problem.key for problem in found}) == 50
    assert not {problem.key for problem in found} & {problem.key for problem in task.heldout}
    assert candidates(task, 50) == found


def test_drive_and_dropped_uniform_groups_are_refused_together():
    data = {"curriculum": {"kind": "drive"}}
    with pytest.raises(ConfigError, match='zero_variance = "keep"'):
        parse_recipe(data)
    parse_recipe(data | {"advantage": {"zero_variance": "keep"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": [5, 6], "steps": [1, 1]}, "must not grow"),
        ({"keep": [5], "steps": [1, 1]}, "give one of each a phase"),
        ({"keep": [50], "steps": [1], "problems": 20}, "above problems = 20"),
        ({"keeps": [5]}, "curriculum.keeps = .*unknown key"),
    ],
)
def test_impossible_phases_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"curriculum": {"kind": "drive", **settings}})


def test_phases_come_back_from_the_store_and_the_first_one_stays(any_url):
    with Store.open(any_url) as store:
        run = store.start_run("a", {})
        first = Phase(0, 0, "rounds", ("aa", "bb"), {"aa": (0, 4), "cc": (3, 4)}, 77)
        put_phase(store, run, first)
        put_phase(store, run, Phase(0, 0, "rounds", ("zz",), {}))
        put_phase(store, run, Phase(1, 9, "rounds", ("bb",), {}))
        assert phases(store, run) == {0: first, 1: Phase(1, 9, "rounds", ("bb",), {})}
        assert phases(store, "other") == {}
        assert problems_of(store, ["00" * 16]) == {}

"""Curricula that read a run's history or narrow down by its policy, through the command line."""

import json

import pytest

from tests.support_engine import sets, treerl, treerl_child
from treerl.replay.phases import phases
from treerl.replay.store import Store

SIX = [f"{a}+{b}*2-3=" for a, b in ((7, 5), (2, 3), (9, 1), (4, 4), (8, 6), (5, 2))]


@pytest.fixture
def finite(tmp_path):
    """Overrides for a task of six problems with two held out."""
    path = tmp_path / "six.jsonl"
    rows = [{"question": q, "answer": str(eval(q[:-1]))} for q in SIX]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (
        f"task={{kind='file', path='{path}', judge='number', heldout=2}}",
        "search.trees_per_step=4",
    )


def run_of(folder, name):
    with Store.open(f"sqlite:///{folder}/runs/replay.db", create=False) as store:
        run = next(run for run in store.runs() if run.name == name)
        return phases(store, run.id), [info.problem.key for info in store.trees(run_id=run.id)]


def test_the_most_varied_problems_of_a_pilot_run_are_trained_on_alone(finite, tmp_path):
    pilot = treerl_child(tmp_path, "train", "quickstart", *sets(*finite, "run.name=pilot"))
    assert pilot.exit_code == 0, pilot.stderr
    chosen = (
        "run.name=chosen",
        "curriculum.kind=variance",
        "curriculum.history_run=pilot",
        "curriculum.problems=2",
        "max_steps=1",
    )
    done = treerl_child(tmp_path, "train", "quickstart", *sets(*finite, *chosen))
    assert done.exit_code == 0, done.stderr
    kept, trained = run_of(tmp_path, "chosen")
    assert len(kept[0].problems) == 2
    assert sorted(trained) == sorted(2 * kept[0].problems)
    assert {count for _, count in kept[0].rates.values()} == {
        3 * 2
    }  # steps, rollouts from the prompt


def test_a_history_that_is_not_there(finite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("curriculum.kind=variance", "curriculum.history_run=pilot")
    done = treerl("train", "quickstart", *sets(*finite, *given))
    assert done.exit_code == 2
    assert "the cache has no such run" in done.stderr


def test_drive_narrows_down_phase_by_phase(finite, tmp_path):
    given = (
        "curriculum.kind=drive",
        "curriculum.problems=4",
        "curriculum.warm_steps=1",
        "curriculum.keep=[3, 1]",
        "curriculum.steps=[1, 1]",
        "curriculum.screen_samples=2",
        "advantage.zero_variance=keep",
    )
    done = treerl_child(tmp_path, "train", "quickstart", *sets(*finite, *given))
    assert done.exit_code == 0, done.stderr
    kept, trained = run_of(tmp_path, "quickstart-seed0")
    assert [len(phase.problems) for phase in kept.values()] == [4, 3, 1]
    assert set(kept[2].problems) < set(kept[1].problems) < set(kept[0].problems)
    lowest = min(right for right, _ in kept[2].rates.values())
    assert kept[2].rates[kept[2].problems[0]][0] == lowest
    assert set(trained[8:]) == set(kept[2].problems)

"""Rounds of a curriculum, repaired groups and self-imitation: killed anywhere and resumed, to the bit."""

import signal
from pathlib import Path

import pytest

from tests.support_engine import (
    checkpoint_bytes,
    sets,
    signal_at,
    steady_rows,
    treerl_child,
)
from treerl.metrics import read_metrics
from treerl.replay.phases import phases
from treerl.replay.store import Store

RUN = "runs/quickstart-seed0"
STEPS = 5
METHODS = sets(
    "max_steps=5",
    "run.checkpoint_every=1",
    "search.trees_per_step=4",
    "replay.max_cached=0",
    "replay.collapse.rows=1",
    "replay.collapse.scale=0.5",
    "replay.imitate.rows=3",
    "replay.imitate.warmup_steps=2",
    "replay.imitate.sampler=prioritised",
    "replay.imitate.pool_size=6",
    "replay.imitate.max_times_sampled=2",
    "curriculum.kind=rounds",
    "curriculum.problems=6",
    "curriculum.steps_per_round=2",
    "curriculum.rounds=3",
    "curriculum.screen_samples=2",
    "curriculum.min_problems=2",
)
TRAIN = ("train", "quickstart", *METHODS)
RESUME = ("train", "quickstart", "--resume", "latest")
PUT = "treerl.replay.store:Store.put_rows"
POINTS = {
    "in the first screening": ("treerl.engine.curriculum:evaluate", 1, True),
    "after the first phase is kept": ("treerl.engine.curriculum:put_phase", 1, True),
    "in the update of the first step": ("treerl.policy.update:token_logprobs", 1, False),
    "before good rows are kept": ("treerl.replay.pool:Pool.put", 1, False),
    "after good rows are kept": ("treerl.replay.pool:Pool.put", 1, True),
    "when rows have been drawn": ("treerl.replay.pool:Pool.draw", 1, True),
    "before the second phase is kept": ("treerl.engine.curriculum:put_phase", 1, False),
    "when a later phase was kept": ("treerl.engine.curriculum:put_phase", 1, True),
    "in a search of the last phase": ("treerl.search.scheduler:_Run.sample", 2, False),
}
"""Where a process kills itself: function, number of the call in that process, after the call or before."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = treerl_child(folder, *TRAIN, "--json")
    assert done.exit_code == 0, done.stderr
    return folder


def kept(folder: Path):
    """The phases, and what the pool drew at which step: draw ids follow from the order of writing."""
    with Store.open(f"sqlite:///{folder}/runs/replay.db", create=False) as store:
        (run,) = store.runs()
        with store.read() as connection:
            uses = connection.exec_driver_sql(
                "SELECT draw_id, item_use.step, times, probability, size FROM item_use "
                "JOIN item ON item.id = item_id ORDER BY item_use.step, draw_id"
            ).all()
        return phases(store, run.id), [tuple(use) for use in uses]


def test_the_unbroken_run_does_what_the_recipe_asks(unbroken):
    rows = read_metrics(unbroken / RUN / "metrics.jsonl")[1:]
    assert [row["curriculum/phase"] for row in rows] == [0, 0, 1, 1, 2]
    assert sum(row["replay/own_rows"] for row in rows) > 0
    assert sum(row["replay/imitated_rows"] for row in rows) > 0
    assert all(0 < row["replay/ess"] <= 1 for row in rows if "replay/ess" in row)
    screened = sum(row.get("curriculum/screen_tokens", 0) for row in rows)
    searched = sum(row["search/generated_tokens"] for row in rows)
    assert screened > 0
    assert rows[-1]["num_tokens"] == screened + searched


def test_killed_in_every_phase_and_resumed_it_equals_the_unbroken_one(unbroken, tmp_path):
    arguments = TRAIN
    for name, (where, call, after) in POINTS.items():
        prepare = _after if after else signal_at
        done = treerl_child(
            tmp_path, *arguments, prepare=prepare, given=(where, call, signal.SIGKILL)
        )
        assert done.exit_code == -signal.SIGKILL, f"{name}: {done.stderr}"
        if (tmp_path / RUN / "recipe.json").exists():
            arguments = RESUME
    done = treerl_child(tmp_path, *RESUME)
    assert done.exit_code == 0, done.stderr
    assert steady_rows(tmp_path / RUN) == steady_rows(unbroken / RUN)
    assert checkpoint_bytes(tmp_path / RUN, STEPS) == checkpoint_bytes(unbroken / RUN, STEPS)
    assert kept(tmp_path) == kept(unbroken)


def _after(where: str, call: int, number: int) -> None:
    signal_at(where, call, number, after=True)

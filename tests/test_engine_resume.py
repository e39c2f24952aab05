"""A run that was killed anywhere and resumed equals the run that was not, to the bit."""

import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support_engine import (
    checkpoint_bytes,
    kill_after_cpu_seconds,
    sets,
    signal_at,
    steady_rows,
    treerl_child,
)
from treerl.engine.step import _adoptable, tree_names
from treerl.metrics import read_metrics
from treerl.problem import Problem
from treerl.replay.store import Store
from treerl.search.tree import Tree

RUN = "runs/quickstart-seed0"
EVERY_STEP = sets("run.checkpoint_every=1", "replay.max_cached=1", "search.trees_per_step=2")
RESUME = ("train", "quickstart", "--resume", "latest", "--json")
TREES = 2
STEPS = 3

PUT = "treerl.replay.store:Store.put_rows"
POINTS = {
    "before the first tree is stored": (PUT, 1, False),
    "between two trees of a step": (PUT, 2, False),
    "after the last tree of a step": (PUT, TREES, True),
    "in the search": ("treerl.search.scheduler:_Run.sample", 3, False),
    "in the update": ("treerl.policy.update:_optimizer_step", 3, False),
    "between the update and the checkpoint": ("treerl.engine.train:save_checkpoint", 1, False),
    "in the checkpoint": ("treerl.policy.checkpoint:_sync", 4, False),
    "between checkpoint and evaluation": ("treerl.engine.train:save_checkpoint", 1, True),
}
"""Where a process kills itself: function, number of the call in that process, before or after it."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that another run filled with solutions of the same problems."""
    folder = tmp_path_factory.mktemp("cache")
    filled = treerl_child(
        folder, "train", "quickstart", *sets("seed=7", "search.trees_per_step=2"), "--json"
    )
    assert filled.exit_code == 0, filled.stderr
    return folder / "runs" / "replay.db"


def folder_with(cache: Path, folder: Path) -> Path:
    (folder / "runs").mkdir(parents=True)
    shutil.copy(cache, folder / "runs" / "replay.db")
    return folder


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    folder = folder_with(cache, tmp_path_factory.mktemp("unbroken") / "run")
    done = treerl_child(folder, "train", "quickstart", *EVERY_STEP, "--json")
    assert done.exit_code == 0, done.stderr
    return folder


def assert_equal_runs(folder: Path, unbroken: Path) -> None:
    assert steady_rows(folder / RUN) == steady_rows(unbroken / RUN)
    for step in (STEPS - 1, STEPS):
        ours, theirs = (checkpoint_bytes(f / RUN, step) for f in (folder, unbroken))
        assert ours == theirs


def shapes(folder: Path) -> list[tuple[int, int, str, int, bytes]]:
    """What the trees of a run are: step, number, question, and every token with its log-prob."""
    with Store.open(f"sqlite:///{folder}/runs/replay.db", create=False) as store:
        run = next(run.id for run in store.runs() if run.name == "quickstart-seed0")
        found = []
        for info in store.trees(run_id=run):
            tree = store.load_tree(info.id).tree
            content = tree.tokens.token.tobytes() + tree.tokens.logprob.tobytes()
            found.append((info.step, info.number, info.problem.question, len(tree), content))
    return sorted(found)


def test_the_unbroken_run_uses_the_filled_cache(unbroken):
    rows = read_metrics(unbroken / RUN / "metrics.jsonl")
    assert sum(row["replay/cached_leaves"] for row in rows[1:]) > 0
    assert sum(row["train/trees"] for row in rows[1:]) > 0


def test_the_same_recipe_and_seed_give_the_same_run_to_the_bit(unbroken, cache, tmp_path):
    folder = folder_with(cache, tmp_path / "again")
    assert treerl_child(folder, "train", "quickstart", *EVERY_STEP).exit_code == 0
    assert_equal_runs(folder, unbroken)
    assert shapes(folder) == shapes(unbroken)


def test_a_run_killed_in_every_phase_and_resumed_equals_the_unbroken_one(unbroken, cache, tmp_path):
    folder = folder_with(cache, tmp_path / "killed")
    arguments = ("train", "quickstart", *EVERY_STEP)
    for name, (where, call, after) in POINTS.items():
        prepare = (where, call, signal.SIGKILL)
        done = treerl_child(folder, *arguments, prepare=_signal(after), given=prepare)
        assert done.exit_code == -signal.SIGKILL, f"{name}: {done.stderr}"
        if (folder / RUN / "recipe.json").exists():
            arguments = RESUME
    done = treerl_child(folder, *RESUME)
    assert done.exit_code == 0, done.stderr
    assert_equal_runs(folder, unbroken)
    assert shapes(folder) == shapes(unbroken)


def _signal(after: bool):
    return signal_after if after else signal_at


def signal_after(where: str, call: int, number: int) -> None:
    signal_at(where, call, number, after=True)


@pytest.mark.slow
def test_a_run_killed_at_random_and_resumed_equals_the_unbroken_one(unbroken, cache, tmp_path):
    folder = folder_with(cache, tmp_path / "random")
    rng = random.Random(5)
    arguments, kills = ("train", "quickstart", *EVERY_STEP), 0
    for _ in range(10):
        prepare = (rng.uniform(0.2, 1.4),)
        done = treerl_child(folder, *arguments, prepare=kill_after_cpu_seconds, given=prepare)
        if done.exit_code == 0:
            break
        assert done.exit_code == -signal.SIGPROF, done.stderr
        kills += 1
        if (folder / RUN / "recipe.json").exists():
            arguments = RESUME
    else:
        assert treerl_child(folder, *RESUME).exit_code == 0
    assert kills >= 1
    assert_equal_runs(folder, unbroken)


def test_a_run_killed_before_its_first_checkpoint_adopts_its_trees(tmp_path):
    arguments = ("train", "quickstart", *sets("search.trees_per_step=2", "max_steps=1"))
    given = (PUT, TREES, signal.SIGKILL)
    killed = treerl_child(tmp_path, *arguments, prepare=signal_after, given=given)
    assert killed.exit_code == -signal.SIGKILL
    assert not (tmp_path / RUN / "checkpoints").exists()

    resumed = treerl_child(tmp_path, *RESUME)
    assert resumed.exit_code == 0, resumed.stderr
    rows = read_metrics(tmp_path / RUN / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert (rows[1]["search/adopted_trees"], rows[1]["search/trees"]) == (TREES, 0)
    assert rows[1]["search/prefill_tokens"] == 0  # the sampler was never asked
    assert rows[1]["search/tokens_per_second"] == 0
    assert rows[1]["search/generated_tokens"] == rows[1]["num_tokens"] > 0
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db", create=False) as store:
        assert len(store.trees()) == TREES
        assert len(store.runs()) == 1


@pytest.mark.parametrize(
    ("device", "stored", "adopted"),
    [("cpu", [0, 1], [0, 1]), ("cpu", [1], []), ("cuda", [1], [1]), ("cuda", [], [])],
)
def test_a_step_that_is_half_stored_is_adopted_only_where_bits_are_not_promised(
    device, stored, adopted
):
    session = SimpleNamespace(policy=SimpleNamespace(device=torch.device(device)))
    problem = Problem("1+1=", "2", "exact")
    names = tree_names([problem, problem])
    trees = {names[i]: Tree([1], seed=i, max_completion_length=4) for i in stored}
    assert list(_adoptable(session, trees, names)) == [names[i] for i in adopted]


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(unbroken, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(unbroken, folder)
    newest = folder / RUN / "checkpoints" / f"step-{STEPS:08d}"
    (newest / "model.safetensors").write_bytes(b"half")
    done = treerl_child(folder, *RESUME)
    assert done.exit_code == 0, done.stderr
    assert "damaged checkpoint" in done.stderr
    rows = read_metrics(folder / RUN / "metrics.jsonl")
    assert rows[-1]["search/adopted_trees"] == TREES
    assert steady_rows(folder / RUN) == steady_rows(unbroken / RUN)
    again = newest.with_name(newest.name + ".1")
    for name, content in checkpoint_bytes(unbroken / RUN, STEPS).items():
        assert (again / name).read_bytes() == content


def test_a_finished_run_says_so_and_reports(unbroken, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(unbroken, folder)
    before = (folder / RUN / "metrics.jsonl").read_bytes()
    done = treerl_child(folder, "train", "--resume", RUN)
    assert done.exit_code == 0, done.stderr
    assert "this run is finished (3 steps)" in done.stdout
    assert "held-out" in done.stdout
    assert (folder / RUN / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_can_be_taken_further_but_not_changed(unbroken, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(unbroken, folder)
    refused = treerl_child(folder, "train", "--resume", RUN, "--set", "update.lr=1.0")
    assert refused.exit_code == 2
    assert "update.lr would make it another run" in refused.stderr
    done = treerl_child(folder, "train", "--resume", RUN, "--set", "max_steps=4", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["steps"] == 4
    assert [row["step"] for row in read_metrics(folder / RUN / "metrics.jsonl")] == list(range(5))

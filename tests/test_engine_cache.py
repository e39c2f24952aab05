"""A second run on a filled cache: it uses the first one's solutions, and says whose they are."""

from pathlib import Path

import numpy as np
import pytest

from tests.support_engine import sets, treerl
from treerl.metrics import read_metrics
from treerl.replay.store import Store

URL = "sqlite:///runs/replay.db"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Summaries of two runs on one cache, the second with at most one cached solution a tree."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = treerl("train", "quickstart", *sets(), "--json")
        second = treerl("train", "quickstart", *sets("seed=1", "replay.max_cached=1"), "--json")
        assert (first.exit_code, second.exit_code) == (0, 0)
        yield first.json, second.json


def cached_draws(store, name):
    """(draw id it came from, tokens, log-probs) of every cached draw in the trees of a run."""
    run = next(run.id for run in store.runs() if run.name == name)
    for info in store.trees(run_id=run):
        tree = store.load_tree(info.id).tree
        for draw in np.flatnonzero(tree.draws.source):
            start = int(tree.draws.start[draw])
            own = slice(start, start + int(tree.draws.length[draw]))
            yield int(tree.draws.source[draw]), tree.tokens.token[own], tree.tokens.logprob[own]


def test_the_second_run_takes_solutions_of_the_first(two_runs):
    first, second = two_runs
    assert first["cached_leaves"] == 0
    assert second["cached_leaves"] > 0
    rows = read_metrics_of(second)
    assert sum(row["replay/cached_leaves"] for row in rows) == second["cached_leaves"]
    assert all(row["replay/cached_leaves"] == row["replay/trees_with_cache"] for row in rows)


def read_metrics_of(summary):
    return read_metrics(Path(summary["folder"]) / "metrics.jsonl")[1:]


def used(rows):
    return [row for row in rows if row["replay/cached_leaves"]]


def test_the_first_run_does_not_change_what_a_run_without_a_cache_draws(two_runs):
    """Fresh draws keep their seeds and names where a cached one stands beside them."""
    with Store.open(URL, create=False) as store:
        for info in store.trees():
            tree = store.load_tree(info.id).tree
            fresh = tree.draws.source[1:] == 0
            assert len(set(tree.draws.seed[1:][fresh].tolist())) == fresh.sum()


def test_stats_say_who_was_drawn_from(two_runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, second = two_runs
    runs = {run["name"]: run for run in treerl("replay", "stats", "--json").json["runs"]}
    assert runs["quickstart-seed0"]["drawn_from"] == []
    [source] = runs["quickstart-seed1"]["drawn_from"]
    assert source["run"] == "quickstart-seed0"
    assert source["solutions"] == second["cached_leaves"]
    assert "quickstart-seed0: " in treerl("replay", "stats").stdout


def test_cached_tokens_keep_the_log_probs_of_the_policy_that_drew_them(two_runs):
    with Store.open(URL, create=False) as store:
        originals = {}
        run = next(run.id for run in store.runs() if run.name == "quickstart-seed0")
        for info in store.trees(run_id=run):
            tree = store.load_tree(info.id).tree
            for leaf in tree.leaves().tolist():
                path = tree.path_index(leaf)[tree.n_prompt :]
                key = tree.tokens.token[path].tobytes()
                originals.setdefault(key, []).append(tree.tokens.logprob[path])
        found = list(cached_draws(store, "quickstart-seed1"))
    assert found
    for _, tokens, logprobs in found:
        assert any(np.array_equal(logprobs, other) for other in originals[tokens.tobytes()])


def test_cached_tokens_are_trained_with_their_stored_log_probs(two_runs):
    """Their ratio is to the policy of the first run, so it is not 1 where fresh tokens' is."""
    _, second = two_runs
    rows = [row for row in used(read_metrics_of(second)) if "replay/trained_tokens" in row]
    assert rows
    assert all(0 < row["replay/ess"] <= 1 + 1e-9 for row in rows)
    assert any(abs(row["replay/is_mean"] - 1) > 1e-6 for row in rows)

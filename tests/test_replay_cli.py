"""`treerl replay` on a hand-made cache: what it prints, what it writes, its exit codes."""

import json

import pytest

from tests.support_engine import treerl
from tests.support_replay import PROBLEM, fill_two_runs, provenance, span
from treerl.problem import Problem
from treerl.replay.lease import queue_trees
from treerl.replay.store import Store
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

URL = "sqlite:///runs/replay.db"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    with Store.open(URL) as store:
        fill_two_runs(store)
    return tmp_path


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet"])
def test_export_import_export_gives_the_same_bytes(cache, name):
    pytest.importorskip("pyarrow")
    assert treerl("replay", "export", name, "--json").json == {"solutions": 7}
    done = treerl("replay", "import", name, "--url", "sqlite:///other.db", "--json")
    assert done.json == {"solutions": 7, "draws": 9, "new_draws": 9}
    again = name.replace("all", "again")
    treerl("replay", "export", again, "--url", "sqlite:///other.db")
    assert (cache / again).read_bytes() == (cache / name).read_bytes()


def test_failed_export_leaves_no_half_file(cache):
    assert treerl("replay", "export", "absent/all.jsonl").exit_code == 1
    assert treerl("replay", "import", "all.txt").exit_code == 2
    assert sorted(path.name for path in cache.iterdir()) == ["runs"]


def test_check_names_the_row_and_fails(cache):
    good = treerl("replay", "check", "--json")
    assert (good.exit_code, good.json) == (0, {"problems": []})
    with Store.open(URL) as store, store.write() as connection:
        connection.exec_driver_sql("UPDATE visit SET visits = 99 WHERE tree_id = 3")
    bad = treerl("replay", "check")
    assert bad.exit_code == 1
    assert "tree 3: statistics" in bad.stdout
    assert "1 problems found" in bad.stdout


def test_gc_deletes_a_run_only_when_told(cache):
    dry = treerl("replay", "gc", "--run", "b", "--dry-run", "--json").json
    assert (dry["trees"], dry["solutions"]) == (3, 5)
    assert len(treerl("replay", "ls", "runs", "--json").json) == 2
    done = treerl("replay", "gc", "--run", "b")
    assert done.exit_code == 0
    assert "deleted" in done.stdout
    assert [run["run"] for run in treerl("replay", "ls", "runs", "--json").json] == ["a"]
    assert treerl("replay", "gc", "--run", "b").exit_code == 1


def test_queue_is_listed(cache):
    assert treerl("replay", "ls", "queue", "--json").json == []
    with Store.open(URL) as store:
        queue_trees(store, store.runs()[0].id, [Problem("1+1=", "2", "chain")], step=5)
    (line,) = treerl("replay", "ls", "queue", "--json").json
    assert line == {"run": "a", "queued": 1, "running": 0, "expired": 0, "given_up": 0}


def test_upgrade_of_a_current_cache(cache):
    done = treerl("replay", "upgrade", URL, "--json")
    assert "is current" in done.json["done"]


VERIFIER = '''
def length(data_source, solution_str, ground_truth, extra_info=None):
    """Pays for short answers, where the first verifier paid for right ones."""
    return float(len(solution_str) < 8)
'''


def fill_with_sums(store):
    tree = Tree([1, 9, 3], seed=0, max_completion_length=9)
    request = tree.request(ROOT, 3)
    texts = {}
    for k, (text, reward) in enumerate((("=12", 1.0), ("=13", 0.0), ("6+6=14-2=12", 1.0))):
        row = tree.append(request, k, span([4, k, 2], Finish.STOP))
        tree.judge(row, Verdict("scored", reward, text[-2:]))
        texts[row] = text
    store.put_tree(
        store.start_run("sums", {}),
        tree,
        step=0,
        problem=PROBLEM,
        provenance=provenance(),
        texts=texts,
    )


@pytest.fixture
def sums(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    with Store.open(URL) as store:
        fill_with_sums(store)
    (tmp_path / "mine.py").write_text(VERIFIER)
    return tmp_path


def test_rejudging_by_a_users_function_shows_what_changed(sums):
    command = ["replay", "rejudge", "quickstart"]
    command += ["--set", "verifier.kind=import", "--set", "verifier.target=mine.py:length"]
    dry = treerl(*command, "--dry-run", "--json").json
    assert (dry["judged"], dry["left"], dry["changes"]) == (0, 3, [])
    shown = treerl(*command)
    assert shown.exit_code == 0, shown.stderr
    assert "right -> wrong, for example" in shown.stdout
    assert "6+6=14-2=12" in shown.stdout
    found = treerl(*command, "--json").json
    assert (found["judged"], found["left"]) == (0, 0)
    assert {(c["before"], c["after"]): c["solutions"] for c in found["changes"]} == {
        ("right", "right"): 1,
        ("right", "wrong"): 1,
        ("wrong", "right"): 1,
    }
    assert json.dumps(found["changes"][1]["examples"])

"""`treerl search` by several processes on one cache: every tree once, whoever dies."""

import shutil
import signal
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support_engine import TINY, sets, signal_at, treerl, treerl_child
from treerl.engine.run import provenance
from treerl.engine.session import Session
from treerl.engine.tickets import Worker, enter_tickets
from treerl.policy.model import EMBEDDED
from treerl.recipe import load_recipe
from treerl.replay.lease import Queue, claim_tree, queue_of
from treerl.replay.store import Store

URL = "sqlite:///s.db"
SEARCH = ("search", "quickstart", *sets(f"replay.url='{URL}'"), "-n", "12", "--json")
JOIN = ("search", "--join", "search-quickstart-seed0", "--url", URL, "--json")
PUT = "treerl.engine.tickets:Worker._put"


def trees(folder: Path) -> dict[str, list[list[int]]]:
    """Question -> completions of its tree, sorted, of the only run; no question has two."""
    with Store.open(f"sqlite:///{folder}/s.db", create=False) as store:
        assert len(store.runs()) == 1
        infos = store.trees()
        assert max(Counter(info.problem.question for info in infos).values()) == 1
        found = {info.problem.question: store.load_tree(info.id).tree for info in infos}
    return {
        question: sorted(tree.completion_tokens(row).tolist() for row in tree.leaves().tolist())
        for question, tree in found.items()
    }


def queue(folder: Path) -> Queue:
    with Store.open(f"sqlite:///{folder}/s.db", create=False) as store:
        return queue_of(store, store.runs()[0].id)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process alone finds."""
    folder = tmp_path_factory.mktemp("alone")
    done = treerl_child(folder, *SEARCH)
    assert done.exit_code == 0, done.stderr
    assert len(done.json["trees"]) == done.json["search/trees"] == 12
    return trees(folder)


def stop_at_first() -> None:
    """The process interrupts itself before it has stored a tree: its run and queue are there."""
    signal_at(PUT, 1, signal.SIGINT)


@pytest.fixture
def queued(tmp_path):
    """A folder with a search of which nothing is done."""
    done = treerl_child(tmp_path, *SEARCH, prepare=stop_at_first)
    assert done.exit_code == 1
    command = "treerl search --join search-quickstart-seed0 --url sqlite:///s.db"
    assert command in done.stderr
    return tmp_path


def test_an_interrupted_search_gives_its_trees_back_and_is_gone_on_with(queued, alone):
    assert queue(queued) == Queue(queued=12, running=0, expired=0, given_up=0)
    database = sqlite3.connect(queued / "s.db")
    assert database.execute("SELECT max(attempts) FROM tree").fetchone() == (0,)
    database.close()
    done = treerl_child(queued, *JOIN)
    assert done.exit_code == 0, done.stderr
    assert trees(queued) == alone
    again = treerl_child(queued, *JOIN[:-1])
    assert again.exit_code == 0, again.stderr
    assert "nothing was left to search" in again.stdout


def test_two_workers_share_the_trees(queued, alone):
    """They never have more than three under way each, so that none can take all at once."""
    folders = [queued / name for name in ("a", "b")]
    url = f"sqlite:///{queued}/s.db"
    for folder in folders:
        folder.mkdir()
    join = [*JOIN[:3], "--url", url, "--json"]
    with ThreadPoolExecutor() as threads:
        both = list(
            threads.map(lambda folder: treerl_child(folder, *join, prepare=in_flight_3), folders)
        )
    assert [done.exit_code for done in both] == [0, 0], both
    own = [done.json.get("search/trees", 0) for done in both]
    assert sum(own) == 12
    assert trees(queued) == alone


def in_flight_3() -> None:
    """At most three continuations under way."""
    from treerl.engine import step
    from treerl.search.scheduler import Limits

    step._limits = lambda recipe: Limits(in_flight=3, item_s=recipe.verifier.timeout_s)


def test_trees_of_a_killed_worker_are_taken_over(queued, alone):
    given = (PUT, 5, signal.SIGKILL)
    died = treerl_child(queued, *JOIN, "--lease", "2", prepare=signal_at, given=given)
    assert died.exit_code == -signal.SIGKILL
    assert len(trees(queued)) == 4
    left = queue(queued)
    assert left.queued == 0
    assert left.running + left.expired == 8
    done = treerl_child(queued, *JOIN, "--lease", "2")
    assert done.exit_code == 0, done.stderr
    assert done.json["search/trees"] == 8
    assert trees(queued) == alone


@pytest.mark.postgres
def test_trees_of_a_killed_worker_are_taken_over_on_a_server(pg_urls, tmp_path):
    url = pg_urls()
    search = (*SEARCH[:2], *sets(f"replay.url='{url}'"), "-n", "12", "--lease", "2")
    given = (PUT, 5, signal.SIGKILL)
    died = treerl_child(tmp_path, *search, prepare=signal_at, given=given)
    assert died.exit_code == -signal.SIGKILL
    join = (*JOIN[:3], "--url", url, "--lease", "2", "--json")
    done = treerl_child(tmp_path, *join)
    assert done.exit_code == 0, done.stderr
    assert done.json["search/trees"] == 8
    assert len(done.json["trees"]) == 12


def test_a_tree_finished_too_late_is_not_stored_and_counted(tmp_path, monkeypatch):
    """While the only worker grows a tree, its lease ends and another takes the tree, and gives up."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", (*TINY, f"replay.url='{URL}'"))
    with Session(recipe) as session:
        store = session.store
        run = store.start_run("a", {})
        enter_tickets(store, run, session.task.problems_for_step(0, 2))
        worker = Worker(session, run, provenance(session, "00", run), lease_s=0.3)
        stolen = []

        def steal(searched):
            if not stolen:
                time.sleep(0.4)
                stolen.append(claim_tree(store, run, "thief", lease_s=-1.0))

        worker.work(on_tree=lambda *_: None, on_round=steal, on_wait=lambda left: None)
        assert stolen[0] is not None
        assert worker.lost == 1
        assert len(worker.searched.trees) == 3
        assert len(store.trees()) == 2


def test_a_problem_that_comes_twice_has_two_trees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", (*TINY, f"replay.url='{URL}'"))
    with Session(recipe) as session:
        (problem,) = session.task.problems_for_step(0, 1)
        run = session.store.start_run("a", {})
        enter_tickets(session.store, run, [problem, problem])
        enter_tickets(session.store, run, [problem, problem])
        assert queue_of(session.store, run).queued == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search",), "give a recipe"),
        (("search", "quickstart", "--join", "x"), "give a recipe"),
        (("search", "--join", "x", "--set", "seed=1"), "goes on with the recipe"),
        (("search", "--join", "x", "--prompt", "1+1="), "goes on with the recipe"),
    ],
)
def test_what_does_not_go_with_join_is_refused(arguments, said):
    done = treerl(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_an_unknown_search_is_refused_with_those_there_are(queued, monkeypatch):
    monkeypatch.chdir(queued)
    done = treerl("search", "--join", "other", "--url", URL)
    assert done.exit_code == 2
    assert "the newest are: search-quickstart-seed0" in done.stderr


def test_workers_with_other_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED, "model")
    done = treerl_child(tmp_path, *SEARCH, "--set", "policy.model='model'", prepare=stop_at_first)
    assert done.exit_code == 1
    weights = load_file("model/model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    done = treerl(*JOIN)
    assert done.exit_code == 2
    assert "other weights than that of the search" in done.stderr

import numpy as np
import pytest
import sqlalchemy as sa

from tests.support_replay import PROBLEM, VERIFIER, branched_tree, provenance, span, star_tree
from treerl.problem import Problem
from treerl.replay.bound import ReadBound
from treerl.replay.pool import Pool, PoolSettings
from treerl.replay.reuse import cached_solutions, stored_prompts
from treerl.replay.stats import Drawn, check, problems, stats
from treerl.replay.store import Store
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        first, second = store.start_run("a", {}), store.start_run("b", {})
        tree, texts = star_tree(leaves=([4, 5, 2], [6, 2]), rewards=(1.0, 0.0))
        store.put_tree(first, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts)
        asked = stored_prompts(store, tokenizer="chars")
        ((found,),) = cached_solutions(
            store,
            asked,
            tokenizer="chars",
            verifier=VERIFIER,
            bound=ReadBound(second, store.position()),
            max_per_problem=3,
        )
        for step in range(2):
            tree = Tree([1, 9, 3], seed=step, max_completion_length=64)
            tree.judge(tree.graft(ROOT, found.span(), source=found.draw), found.verdict)
            tree.judge(
                tree.append(tree.request(ROOT, 1), 0, span([8, 8, 8, 2])), Verdict("timeout")
            )
            store.put_tree(second, tree, step=step, problem=PROBLEM, provenance=provenance())
        tree, texts = branched_tree()
        store.put_tree(
            second,
            tree,
            step=1,
            problem=Problem("2", "2", "chain"),
            provenance=provenance(),
            texts=texts,
        )
        yield store


def test_totals_and_what_a_run_drew_from_another(store):
    found = stats(store)
    assert (found.problems, found.prompts, found.trees) == (2, 2, 4)
    assert (found.solutions, found.right, found.draws) == (3 + 4, 2, 2 + 4 + 6)
    assert found.tokens == 3 + 2 + 4 + 5 + 3 + 2 + 10 + 3
    assert found.verdicts == {"scored": 5, "skipped": 1, "timeout": 1}
    assert found.bytes > 0
    a, b = found.runs
    assert (a.name, a.steps, a.trees, a.leaves, a.right, a.generated, a.cached) == (
        "a",
        1,
        1,
        2,
        1,
        5,
        0,
    )
    assert a.drawn_from == ()
    assert (b.steps, b.trees, b.leaves, b.right, b.cached) == (2, 3, 2 + 5, 1, 6)
    assert b.drawn_from == (Drawn("a", draws=2, solutions=1, tokens=6),)
    # 36 tokens for 7 fresh leaves: two leaves of another run saved about 10.
    assert (b.generated, b.saved, a.saved) == (36, 10, 0)


def test_rows_drawn_from_the_pools_of_a_run_are_counted(store):
    run = next(info.id for info in store.runs() if info.name == "a")
    pool = Pool(store, run, "good", PoolSettings())
    pool.put({1: 1.0, 2: 1.0}, step=0)
    for step in (1, 2):
        pool.draw(2, step=step, generator=np.random.default_rng(step))
    assert [found.replayed for found in stats(store).runs] == [4, 0]


def test_problems_are_listed_with_their_fresh_leaves(store):
    first, second = problems(store)
    assert first.problem == PROBLEM
    assert (first.trees, first.leaves, first.right, first.solutions) == (3, 4, 1, 3)
    assert (second.trees, second.leaves, second.right, second.solutions) == (1, 5, 1, 4)
    assert len(problems(store, limit=1)) == 1


def test_stats_of_an_empty_cache(any_url):
    with Store.open(any_url) as store:
        found = stats(store)
        assert (found.trees, found.tokens, found.runs) == (0, 0, ())
        assert problems(store) == []
        assert list(check(store)) == []


def test_sound_cache_passes_the_check(store):
    assert list(check(store)) == []


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ("node", "tokens", "tokens of draw"),
        ("prompt", "tokens", "tokens of its prompt"),
        ("draw", "logprobs", "log-probs"),
        ("draw", "entropies", "entropies"),
    ],
)
def test_flipped_bit_is_found(store, table, column, message):
    with store.write() as connection:
        row, data = connection.exec_driver_sql(
            f"SELECT id, {column} FROM {table} ORDER BY id DESC"
        ).first()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        statement = sa.text(f"UPDATE {table} SET {column} = :flipped WHERE id = :row")
        connection.execute(statement, {"flipped": flipped, "row": row})
    assert any(message in line and line.startswith("tree 4") for line in check(store))


def test_changed_question_is_found(store):
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE problem SET question = '7+4=' WHERE id = 1")
    found = list(check(store))
    assert {line.split(":")[0] for line in found} == {"tree 1", "tree 2", "tree 3"}
    assert "problem's key" in found[0]

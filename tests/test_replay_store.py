import dataclasses

import numpy as np
import pytest

from tests.support_replay import (
    PROBLEM,
    assert_same_tree,
    branched_tree,
    provenance,
    span,
    star_tree,
    stored_steps,
)
from treerl.errors import StoreError
from treerl.problem import Problem
from treerl.replay import rows, schema
from treerl.replay.check import check
from treerl.replay.store import Store, new_run_id
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        yield store


def count(store, table):
    with store.read() as connection:
        return connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()


def test_tree_comes_back_exactly(tmp_path):
    tree, texts = branched_tree()
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("a", {"seed": 0})
        tree_id = store.put_tree(
            run, tree, step=4, problem=PROBLEM, provenance=provenance(), texts=texts
        )
    with Store.open(f"{tmp_path}/r.db", create=False) as store:
        stored = store.load_tree(tree_id)
    assert_same_tree(stored.tree, tree)
    assert stored.texts == texts
    assert stored.problem == PROBLEM
    assert stored.problem.columns == PROBLEM.columns
    assert (stored.info.run, stored.info.step, stored.info.number) == ("a", 4, 0)
    assert [stored.tree.children(u) for u in range(len(tree))] == [
        tree.children(u) for u in range(len(tree))
    ]


def test_texts_of_any_characters_come_back(store):
    """PostgreSQL takes no NUL; the escape of it must not be mistaken either."""
    odd = "\x00a\U0010ffff0\U0010ffff\x00\U0010ffff1é\n"
    problem = dataclasses.replace(PROBLEM, question=odd, truth=odd, columns={"x": odd})
    tree, texts = star_tree()
    tree.judge(1, Verdict("scored", 1.0, odd, {"x": odd}))
    tree.meta["x"] = odd
    tree_id = store.put_tree(
        store.start_run("a", {"x": odd}),
        tree,
        step=0,
        problem=problem,
        provenance=provenance(),
        texts=dict.fromkeys(texts, odd),
    )
    stored = store.load_tree(tree_id)
    assert_same_tree(stored.tree, tree)
    assert set(stored.texts.values()) == {odd}
    assert stored.problem == problem
    assert stored.problem.columns == problem.columns
    assert list(check(store)) == []


def test_tree_that_goes_on_after_loading_draws_the_same_seeds(store):
    tree, _ = branched_tree()
    tree_id = store.put_tree(
        store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance()
    )
    again = store.load_tree(tree_id).tree
    assert again.request(ROOT, 2) == tree.request(ROOT, 2)


def test_tree_of_a_prompt_alone(store):
    tree = Tree([7], seed=2, max_completion_length=3)
    tree_id = store.put_tree(
        store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance()
    )
    assert_same_tree(store.load_tree(tree_id).tree, tree)


def test_equal_facts_are_one_row_and_equal_siblings_stay_two(store):
    run = store.start_run("a", {})
    tree, _ = star_tree(leaves=([4, 2], [4, 2], [5, 2]), rewards=(1.0, 1.0, 0.0))
    for step in range(2):
        store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance())
    assert {t: count(store, t) for t in ("problem", "prompt", "node", "solution", "verdict")} == {
        "problem": 1,
        "prompt": 1,
        "node": 2,
        "solution": 2,
        "verdict": 2,
    }
    assert count(store, "draw") == 6
    assert count(store, "visit") == 8


def test_identity_does_not_depend_on_where_a_span_was_cut(store):
    run = store.start_run("a", {})
    whole, _ = star_tree(leaves=([4, 5, 6, 2],), rewards=(1.0,))
    store.put_tree(run, whole, step=0, problem=PROBLEM, provenance=provenance())
    split, _ = star_tree(leaves=([4, 5, 6, 2],), rewards=(1.0,))
    split.split(1, 2)
    store.put_tree(run, split, step=1, problem=PROBLEM, provenance=provenance())
    assert count(store, "solution") == count(store, "node") == 1


def test_scored_verdict_replaces_a_timeout_but_no_scored_one(store):
    run = store.start_run("a", {})
    for step, verdict in enumerate(
        (Verdict("timeout"), Verdict("scored", 1.0), Verdict("scored", 0.0), Verdict("error"))
    ):
        tree, _ = star_tree(leaves=([4, 2],), rewards=(0.0,))
        tree.judge(1, verdict)
        tree_id = store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance())
        assert store.load_tree(tree_id).tree.verdicts[1] == verdict
    with store.read() as connection:
        rows = connection.exec_driver_sql("SELECT outcome, reward, position FROM verdict").all()
    assert rows == [("scored", 1.0, 2)]


def test_run_goes_on_by_id_and_names_stay_apart(store):
    first = store.start_run("a", {"lr": 1})
    second = store.start_run("a", {"lr": 2})
    assert store.start_run("a", {"lr": 1}, run_id=first) == first
    mine = new_run_id()
    assert store.start_run("a", {}, run_id=mine) == mine == store.start_run("a", {}, run_id=mine)
    assert [(run.name, run.config) for run in store.runs()] == [
        ("a", {"lr": 1}),
        ("a-2", {"lr": 2}),
        ("a-3", {}),
    ]
    assert first < second
    assert len(first) == 26


def test_resumed_run_finds_its_trees(store):
    run = store.start_run("a", {})
    tree, _ = star_tree()
    other = Problem("1+1=", "2", "chain")
    ids = [
        store.put_tree(run, tree, step=3, number=n, problem=p, provenance=provenance())
        for n, p in ((0, PROBLEM), (1, PROBLEM), (0, other))
    ]
    assert store.trees(run_id="other") == store.trees(run_id=run, step=2) == []
    assert [info.id for info in store.trees(run_id=run, step=3)] == ids
    assert [info.id for info in store.trees(limit=1)] == ids[-1:]
    assert [info.id for info in store.trees(problem=other)] == ids[2:]
    assert store.trees(step=4) == []


def test_putting_a_tree_twice(store):
    run = store.start_run("a", {})
    tree, _ = star_tree()
    first = store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
    assert store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance()) == first
    other, _ = star_tree(leaves=([4, 4, 2], [6, 2]))
    with pytest.raises(StoreError, match="has stored another tree for step 0"):
        store.put_tree(run, other, step=0, problem=PROBLEM, provenance=provenance())
    assert len(store.trees()) == 1


def test_trees_of_one_batch(store):
    """Shared facts, the same tree twice, one stored before: as if put one by one."""
    run = store.start_run("a", {})
    (a, texts), (b, _) = branched_tree(), star_tree()
    first = store.put_tree(run, b, step=1, problem=PROBLEM, provenance=provenance())
    encoded = [
        rows.encode(
            tree, step=step, number=0, problem=PROBLEM, provenance=provenance(), texts=texts
        )
        for step, tree in ((0, a), (1, b), (2, b), (0, a), (3, a))
    ]
    ids = store.put_rows(run, encoded)
    assert ids[1] == first
    assert ids[0] == ids[3]
    assert ids[0] < ids[2] < ids[4]
    assert stored_steps(store) == [0, 1, 2, 3]
    for tree_id, tree in zip(ids, (a, b, b, a, a), strict=True):
        assert_same_tree(store.load_tree(tree_id).tree, tree)
    with pytest.raises(StoreError, match="in the same batch"):
        store.put_rows(
            run,
            [
                rows.encode(
                    tree, step=9, number=0, problem=PROBLEM, provenance=provenance(), texts={}
                )
                for tree in (a, b)
            ],
        )
    assert count(store, "tree") == 4


def test_counts_of_a_tree(store):
    tree, _ = branched_tree()
    run = store.start_run("a", {})
    store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
    (info,) = store.trees()
    assert (info.nodes, info.leaves, info.right) == (len(tree), 5, 1)
    assert (info.generated, info.cached) == (tree.n_generated, 0)


def _nan_logprob(tree):
    tree.tokens.logprob[4] = np.nan


def _minus_infinite_logprob(tree):
    tree.tokens.logprob[6] = -np.inf


def _infinite_entropy(tree):
    tree.tokens.entropy[4] = np.inf


def _infinite_reward(tree):
    tree.judge(1, Verdict("scored", float("inf")))


def _huge_reward(tree):
    tree.judge(1, Verdict("scored", 1e7))


def _nan_value(tree):
    tree.nodes.value_sum[1] = np.nan


def _nan_in_detail(tree):
    tree.judge(1, Verdict("scored", 1.0, detail={"x": float("nan")}))


def _object_in_meta(tree):
    tree.meta["x"] = object()


def _reward_beside_verdict(tree):
    tree.nodes.reward[1] = 0.25


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan_logprob, "log-prob nan at token 1 of draw 1"),
        (_minus_infinite_logprob, "log-prob -inf at token 0 of draw 2"),
        (_infinite_entropy, "infinite entropy"),
        (_infinite_reward, "infinite reward"),
        (_huge_reward, "reward"),
        (_nan_value, "value_sum"),
        (_nan_in_detail, "detail of a verdict"),
        (_object_in_meta, "meta of the tree"),
        (_reward_beside_verdict, "its verdict says"),
    ],
)
def test_what_cannot_come_back_is_refused_and_leaves_nothing(store, spoil, message):
    run = store.start_run("a", {})
    tree, _ = star_tree()
    spoil(tree)
    with pytest.raises(StoreError, match=message):
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
    assert count(store, "tree") == count(store, "node") == count(store, "problem") == 0


def test_database_itself_refuses_a_verdict_without_reward(store):
    run = store.start_run("a", {})
    store.put_tree(run, star_tree()[0], step=0, problem=PROBLEM, provenance=provenance())
    with pytest.raises(StoreError, match="ck_verdict_scored"), store.write() as connection:
        connection.exec_driver_sql("UPDATE verdict SET reward = NULL")


def test_text_with_half_a_surrogate_pair_is_refused(store):
    run = store.start_run("a", {})
    problem = dataclasses.replace(PROBLEM, question="\ud800")
    with pytest.raises(StoreError, match="surrogate"):
        store.put_tree(run, star_tree()[0], step=0, problem=problem, provenance=provenance())


def test_deleting_a_run_takes_its_trees_and_reuses_no_id(store):
    tree, _ = star_tree()
    run = store.start_run("a", {})
    first = store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
    with store.write() as connection:
        connection.exec_driver_sql("DELETE FROM run")
    assert count(store, "tree") == count(store, "draw") == count(store, "visit") == 0
    again = store.start_run("b", {})
    assert store.put_tree(again, tree, step=0, problem=PROBLEM, provenance=provenance()) > first


def test_missing_tree_and_unknown_run(store):
    with pytest.raises(StoreError, match="no tree 7"):
        store.load_tree(7)
    with pytest.raises(StoreError, match=r"(?i)foreign key"):
        store.put_tree("nobody", star_tree()[0], step=0, problem=PROBLEM, provenance=provenance())


def write_until_interrupted(store):
    with store.write() as connection:
        connection.execute(schema.sampler.insert(), {"key": bytes(16), "params": "{}"})
        raise KeyboardInterrupt


def test_interrupted_transaction_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted(store)
    assert count(store, "sampler") == 0


def random_tree(seed):
    """Appends, splits and grafts at random places, statistics of any value."""
    rng = np.random.default_rng(seed)
    tree = Tree(rng.integers(0, 5, 3), seed=seed, max_completion_length=20)
    for _ in range(int(rng.integers(1, 15))):
        open_ends = [
            row
            for row in range(len(tree))
            if tree.nodes.finish[row] in (Finish.OPEN, Finish.CUT)
            and tree.completion_length(row) < 20
        ]
        node = int(rng.choice(open_ends))
        length = int(rng.integers(1, 21 - tree.completion_length(node)))
        ended = Finish(int(rng.choice([Finish.STOP, Finish.CUT])))
        drawn = span(rng.integers(0, 3, length), ended, version=int(rng.integers(0, 3)), seed=seed)
        if rng.random() < 0.2:
            row = tree.graft(node, drawn, source=int(rng.integers(1, 99)))
        else:
            row = tree.append(tree.request(node, 1), 0, drawn)
        if length > 1 and rng.random() < 0.5:
            tree.split(row, int(rng.integers(1, length)))
        if ended is Finish.STOP and rng.random() < 0.7:
            tree.judge(row, Verdict("scored", float(rng.normal())))
    tree.nodes.value_sum[:] = rng.normal(size=len(tree))
    tree.nodes.visits[:] = rng.integers(0, 9, len(tree))
    tree.nodes.prior[rng.random(len(tree)) < 0.5] = rng.random()
    tree.nodes.selected[:] = rng.random(len(tree)) < 0.5
    return tree


def test_random_trees_come_back_exactly_and_pass_the_check(store):
    run = store.start_run("a", {})
    for seed in range(40):
        tree = random_tree(seed)
        tree_id = store.put_tree(run, tree, step=seed, problem=PROBLEM, provenance=provenance())
        assert_same_tree(store.load_tree(tree_id).tree, tree)
    assert list(check(store)) == []


def test_tree_with_tokens_of_no_draw_is_refused(store):
    tree, _ = star_tree()
    tree.tokens.extend(2, token=7, logprob=-1.0)
    with pytest.raises(StoreError, match="draws' tokens one after the other"):
        store.put_tree(
            store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance()
        )


def test_truncated_leaf_is_a_solution_and_a_cut_one_is_not(store):
    tree = Tree([1], seed=0, max_completion_length=3)
    request = tree.request(ROOT, 2)
    tree.append(request, 0, span([4, 5, 6], Finish.LENGTH))
    tree.append(request, 1, span([4, 5], Finish.CUT))
    store.put_tree(store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance())
    assert count(store, "solution") == 1

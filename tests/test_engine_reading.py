"""What the recipe's [replay] makes a run read: hard problems only, its own steps or not, repaired groups."""

import pytest

from tests.support_replay import PROBLEM, VERIFIER, span, star_tree
from treerl.engine.reading import Reader, opposite
from treerl.recipe import parse_recipe
from treerl.replay.keys import PolicyRef, Provenance, descent
from treerl.replay.store import Store
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

PROMPT = (1, 9, 3)


@pytest.fixture
def store():
    """Run "a" solved the problem once in four tries."""
    with Store.open("sqlite://") as store:
        run = store.start_run("a", {})
        leaves = ([4, 2], [5, 2], [6, 2], [7, 2])
        tree, _ = star_tree(leaves=leaves, rewards=(1.0, 0.0, 0.0, 0.0))
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=drawn_by(run))
        yield store


def drawn_by(run, base="base", temperature=1.0):
    return Provenance(
        "chars",
        PolicyRef("tiny", descent(base, run)),
        {"temperature": temperature, "top_p": 1.0, "top_k": 0},
        VERIFIER,
    )


def reader(store, run="me", *, base="base", temperature=1.0, **replay):
    return Reader.of(
        store,
        parse_recipe({"replay": {"max_cached": 2, **replay}}),
        drawn_by(run, base, temperature),
        run_id=run,
        position=store.position(),
        base_weights=base,
    )


def read(found, step=0):
    solutions = found.for_step([PROBLEM], [PROMPT], step).get(PROBLEM.key, [])
    return sorted(int(solution.tokens[0]) for solution in solutions)


def test_only_problems_that_are_hard_enough(store):
    assert read(reader(store)) == [4]
    assert read(reader(store, read={"max_rate": 0.25})) == [4]
    assert read(reader(store, read={"max_rate": 0.2})) == []


def test_labels_and_switches(store):
    assert read(reader(store, reuse=False)) == []
    assert read(reader(store, max_cached=0)) == []
    assert len(read(reader(store, read={"label": "wrong"}))) == 2
    assert len(read(reader(store, max_cached=5, read={"label": "any"}))) == 4
    assert reader(store).for_step([PROBLEM], [None], 0) == {}


def test_other_weights_and_other_temperatures(store):
    assert read(reader(store, read={"same_policy": True})) == [4]
    assert read(reader(store, base="others", read={"same_policy": True})) == []
    assert read(reader(store, temperature=0.5)) == []
    assert read(reader(store, temperature=0.5, read={"same_sampling": False})) == [4]


def test_a_run_reads_its_own_earlier_steps_unless_told_not_to(store):
    run = store.runs()[0].id
    mine = reader(store, run)
    assert read(mine, step=0) == []
    assert read(mine, step=1) == [4]
    assert mine.reads_own
    alone = reader(store, run, read={"own": False})
    assert read(alone, step=1) == []
    assert not alone.reads_own


def test_age_in_days_counts_back_from_the_start_of_the_run(store):
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE tree SET created_us = created_us - 3 * 86400000000")
    run = store.start_run("me", {})
    assert read(reader(store, run, read={"max_age_days": 4})) == [4]
    assert read(reader(store, run, read={"max_age_days": 2})) == []


def grown(rewards):
    tree = Tree(list(PROMPT), seed=3, max_completion_length=8)
    request = tree.request(ROOT, len(rewards))
    for k, reward in enumerate(rewards):
        tree.judge(tree.append(request, k, span([8, k + 4, 2])), Verdict("scored", reward))
    return tree


@pytest.mark.parametrize(
    ("rewards", "label"),
    [
        ([0.0, 0.0], "right"),
        ([1.0, 1.0], "wrong"),
        ([0.0, 1.0], None),
        ([], None),
        ([0.5], "right"),
    ],
)
def test_the_label_that_a_group_lacks(rewards, label):
    assert opposite(grown(rewards)) == label


def test_collapsed_groups_get_stored_rows_of_the_other_label(store):
    repairing = reader(store, collapse={"rows": 2})
    for rewards, added in (([0.0, 0.0], [1.0]), ([1.0, 1.0], [0.0, 0.0]), ([0.0, 1.0], [])):
        tree = grown(rewards)
        assert repairing.repair(tree, PROBLEM, 0) == len(added)
        assert tree.nodes.reward[1:].tolist() == rewards + added
        assert not tree.is_uniform()
    only_right = reader(store, collapse={"rows": 2, "label": "right"})
    assert only_right.repair(grown([1.0, 1.0]), PROBLEM, 0) == 0
    assert only_right.repair(grown([0.0]), PROBLEM, 0) == 1
    assert reader(store).repair(grown([0.0]), PROBLEM, 0) == 0


def test_a_group_without_a_stored_opposite_stays_as_it_is(store):
    tree = grown([0.0, 0.0])
    bare = Tree([1, 1], seed=3, max_completion_length=8)
    bare.judge(bare.append(bare.request(ROOT, 1), 0, span([8, 2])), Verdict("scored", 0.0))
    assert reader(store, collapse={"rows": 1}).repair(bare, PROBLEM, 0) == 0
    assert reader(store, collapse={"rows": 1}).repair(tree, PROBLEM, 0) == 1


def test_metrics_tell_own_rows_with_their_age_from_those_of_others(store):
    run = store.start_run("me", {})
    tree, _ = star_tree(seed=2, leaves=([8, 8, 2],), rewards=(1.0,), version=3)
    store.put_tree(run, tree, step=3, problem=PROBLEM, provenance=drawn_by(run))
    found = reader(store, run)
    grafted = Tree(list(PROMPT), seed=9, max_completion_length=8)
    for solution in found.for_step([PROBLEM], [PROMPT], 5)[PROBLEM.key]:
        grafted.graft(ROOT, solution.span(), source=solution.draw)
    assert found.metrics([grafted], 5) == {
        "replay/own_rows": 1,
        "replay/other_rows": 1,
        "replay/age_mean": 2.0,
        "replay/age_max": 2,
    }
    assert found.metrics([], 5) == {"replay/own_rows": 0, "replay/other_rows": 0}
    assert reader(store, "you").metrics([grafted], 5)["replay/other_rows"] == 2

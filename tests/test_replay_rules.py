"""What a run may read from others: runs, policies, age, verifiers."""

import dataclasses

import numpy as np
import pytest
import sqlalchemy as sa

from tests.support_replay import PROBLEM, VERIFIER, branched_tree, provenance, span, star_tree
from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.bound import ReadBound, ReadRules
from treerl.replay.keys import VerifierRef, descent
from treerl.replay.rates import Rate, pass_rates, rate_history
from treerl.replay.reuse import Asked, cached_solutions, solutions_of_draws, source_runs
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Origin
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

PROMPT = np.array([1, 9, 3], np.int32)


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        yield store


def put(store, name, tokens, *, step=0, reward=1.0, **where):
    """A run of this name with one solution; its policy descends from "base" unless `digest` says else."""
    run = store.start_run(name, {})
    base = where.pop("base", "base")
    tree, _ = star_tree(leaves=(tokens,), rewards=(reward,))
    given = provenance(digest=descent(base, run), **where)
    store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=given)
    return run


def find(store, run="me", **rules):
    bound = ReadBound(run, store.position(), before_step=9, rules=ReadRules(**rules))
    (found,) = cached_solutions(
        store,
        [Asked(PROBLEM, PROMPT)],
        tokenizer="chars",
        verifier=VERIFIER,
        bound=bound,
        max_per_problem=9,
    )
    return sorted(s.tokens.tolist()[0] for s in found)


def test_runs_are_named_by_globs_and_the_run_itself_is_not_asked(store):
    mine = put(store, "me", [4, 2])
    put(store, "old-1", [5, 2])
    put(store, "old-2", [6, 2])
    put(store, "new-1", [7, 2])
    assert find(store, mine) == [4, 5, 6, 7]
    assert find(store, mine, runs=("old-*",)) == [4, 5, 6]
    assert find(store, mine, runs=("*",), exclude_runs=("old-?",)) == [4, 7]
    assert find(store, mine, runs=()) == [4]


def test_same_policy_means_trained_from_the_same_weights_in_whatever_run(store):
    put(store, "a", [4, 2])
    put(store, "b", [5, 2], base="other weights")
    assert find(store, base_weights="base") == [4]
    assert find(store, base_weights="other weights") == [5]
    assert find(store, policies=("ti*",)) == [4, 5]
    assert find(store, policies=("large",)) == []


def test_draws_at_another_temperature_are_no_denominators(store):
    put(store, "a", [4, 2])
    put(store, "b", [5, 2], temperature=0.7)
    assert find(store, sampling=(("temperature", 1.0), ("top_p", None))) == [4]
    assert find(store, sampling=None) == [4, 5]


def test_only_late_steps_and_recent_trees_of_other_runs(store):
    mine = put(store, "me", [4, 2], step=0)
    put(store, "a", [5, 2], step=0)
    put(store, "b", [6, 2], step=5)
    assert find(store, mine, from_step=5) == [4, 6]
    with store.write() as connection:
        old = sa.update(schema.tree).where(schema.tree.c.step == 0).values(created_us=100)
        connection.execute(old)
    assert find(store, mine, created_after_us=101) == [4, 6]


def test_an_older_verdict_counts_only_where_the_current_verifier_has_none(store):
    old = VerifierRef(VERIFIER.name, "0", VERIFIER.config)
    other = VerifierRef("other", "0", VERIFIER.config)
    put(store, "a", [4, 2], verifier=old)
    put(store, "b", [5, 2], verifier=other)
    assert find(store) == []
    assert find(store, older_verifiers=("0",)) == [4]
    put(store, "c", [4, 2], reward=0.0)
    assert find(store, older_verifiers=("0",)) == []


def test_solutions_of_draws_bring_their_prompt_and_where_they_were_drawn(store):
    run = put(store, "a", [4, 5, 2])
    ((prompt, solution),) = solutions_of_draws(store, [1], verifier=VERIFIER).values()
    np.testing.assert_array_equal(prompt, PROMPT)
    assert solution.tokens.tolist() == [4, 5, 2]
    assert source_runs(store, [1, 77]) == {1: run}


# Pass rates ----------------------------------------------------------------------------------------------


def judged(rewards, finish=Finish.STOP, seed=1):
    """A tree of equal or different root responses; None: never scored."""
    tree = Tree([1, 9, 3], seed=seed, max_completion_length=64)
    request = tree.request(ROOT, len(rewards))
    for k, reward in enumerate(rewards):
        tokens = [4, 2] if reward == 1.0 else [5, k + 6, 2]
        row = tree.append(request, k, span(tokens, finish if reward is None else Finish.STOP))
        tree.judge(row, Verdict("skipped") if reward is None else Verdict("scored", reward))
    return tree


def rate(store, **bound):
    given = ReadBound("me", store.position(), **bound)
    return pass_rates(store, [PROBLEM], verifier=VERIFIER, bound=given).get(PROBLEM.key)


def test_a_pass_rate_counts_draws_not_distinct_texts(store):
    tree = judged([1.0] * 4 + [0.0] * 4)
    store.put_tree(store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance())
    assert rate(store) == Rate(4, 8)
    assert rate(store).share == 0.5


def test_a_truncated_response_is_a_failure(store):
    tree = judged([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None, None], finish=Finish.LENGTH)
    store.put_tree(store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance())
    assert rate(store).share == 0.25


def test_branches_and_cached_rows_are_no_root_draws(store):
    tree, _ = branched_tree()
    tree.judge(tree.graft(ROOT, span([4, 2]), source=7), Verdict("scored", 1.0))
    store.put_tree(store.start_run("a", {}), tree, step=0, problem=PROBLEM, provenance=provenance())
    # Of the three responses from the prompt two ended; they are one path, and it was scored right.
    assert rate(store) == Rate(2, 2)
    assert {Origin(o) for o in tree.nodes.origin} >= {Origin.ENTROPY, Origin.CACHE}


def test_rates_respect_the_bound_and_histories_go_by_step(store):
    run = store.start_run("a", {})
    for step, rewards in ((3, [1.0, 1.0]), (1, [0.0, 1.0])):
        store.put_tree(
            run,
            judged(rewards, seed=step),
            step=step,
            problem=PROBLEM,
            provenance=provenance(),
        )
    other = dataclasses.replace(PROBLEM, question="9+9=")
    history = rate_history(store, run, verifier=VERIFIER, position=store.position())
    assert history == {PROBLEM.key: [Rate(1, 2), Rate(2, 2)]}
    assert rate_history(store, run, verifier=VERIFIER, position=1) == {PROBLEM.key: [Rate(2, 2)]}
    own = ReadBound(run, 0, before_step=3)
    found = pass_rates(store, [PROBLEM, other], verifier=VERIFIER, bound=own)
    assert found == {PROBLEM.key: Rate(1, 2)}
    assert Problem("9+9=", "12", "chain").key not in found

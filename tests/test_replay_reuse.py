import numpy as np
import pytest

from tests.support_plans import table_scans
from tests.support_replay import PROBLEM, VERIFIER, branched_tree, provenance, span, star_tree
from treerl.problem import Problem
from treerl.replay.bound import ReadBound
from treerl.replay.keys import VerifierRef
from treerl.replay.reuse import Asked, cached_solutions
from treerl.replay.store import Store
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

PROMPT = np.array([1, 9, 3], np.int32)


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        yield store


def put(
    store, run, leaves, rewards, *, step=0, number=0, version=0, seed=1, prompt=(1, 9, 3), **where
):
    tree, texts = star_tree(
        seed=seed, leaves=leaves, rewards=rewards, version=version, prompt=prompt
    )
    return store.put_tree(
        run,
        tree,
        step=step,
        number=number,
        problem=where.pop("problem", PROBLEM),
        provenance=provenance(**where),
        texts=texts,
    )


def find(
    store, run, *, problem=PROBLEM, prompt=PROMPT, verifier=VERIFIER, k=9, position=None, **options
):
    bound = ReadBound(
        run,
        store.position() if position is None else position,
        **{
            n: options.pop(n)
            for n in ("before_step", "policy_version", "max_staleness")
            if n in options
        },
    )
    return cached_solutions(
        store,
        [Asked(problem, prompt)],
        tokenizer="chars",
        verifier=verifier,
        bound=bound,
        max_per_problem=k,
        **options,
    )[0]


def test_second_run_finds_the_right_solutions_of_the_first(store):
    first = store.start_run("a", {})
    put(store, first, ([4, 5, 2], [6, 2], [7, 7, 2]), (1.0, 0.0, 1.0))
    found = find(store, store.start_run("b", {}))
    assert sorted(s.tokens.tolist() for s in found) == [[4, 5, 2], [7, 7, 2]]
    assert {s.verdict.reward for s in found} == {1.0}
    assert {s.run_id for s in found} == {first}


def test_solution_over_several_draws_has_the_columns_of_its_path(store):
    tree, texts = branched_tree()
    run = store.start_run("a", {})
    tree_id = store.put_tree(
        run, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts
    )
    found = find(store, "other", label="any")
    # Rows 1 and 2 are equal paths: the newer draw stands for both, with the scored verdict of row 1.
    scored = {2: 1.0, 5: 0.0, 8: 0.5}
    assert len(found) == len(scored)
    for leaf, reward in scored.items():
        index = tree.path_index(leaf)[tree.n_prompt :]
        (solution,) = [
            s for s in found if s.tokens.tolist() == tree.completion_tokens(leaf).tolist()
        ]
        np.testing.assert_array_equal(solution.logprobs, tree.tokens.logprob[index])
        np.testing.assert_array_equal(solution.entropies, tree.tokens.entropy[index])
        np.testing.assert_array_equal(solution.versions, tree.tokens.policy_version[index])
        assert solution.policy_version == tree.tokens.policy_version[index].min()
        assert solution.verdict.reward == reward
        assert solution.tree_id == tree_id


def test_other_prompt_tokens_tokenizer_or_verifier_are_not_the_same(store):
    put(store, store.start_run("a", {}), ([4, 2],), (1.0,))
    assert len(find(store, "b")) == 1
    assert find(store, "b", prompt=np.array([1, 9, 3, 3], np.int32)) == []
    assert find(store, "b", problem=Problem("7+5=", "13", "chain")) == []
    assert find(store, "b", verifier=VerifierRef("chain", "2", {"format": "last"})) == []
    put(store, store.start_run("c", {}), ([5, 2],), (1.0,), tokenizer="words")
    assert [s.tokens.tolist() for s in find(store, "b")] == [[4, 2]]


def test_wrong_and_unscored_solutions(store):
    run = store.start_run("a", {})
    tree, _ = star_tree(leaves=([4, 2], [5, 2], [6, 2]), rewards=(1.0, 0.0, 0.0))
    tree.judge(3, Verdict("timeout"))
    store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
    assert [s.tokens.tolist() for s in find(store, "b", label="wrong")] == [[5, 2]]
    assert len(find(store, "b", label="any")) == 2


def test_choice_is_the_same_whatever_the_order_of_writing(store):
    leaves = [[t, 2] for t in range(4, 14)]
    put(store, store.start_run("a", {}), leaves, [1.0] * 10)
    with Store.open("sqlite://") as other:
        put(other, other.start_run("a", {}), leaves[::-1], [1.0] * 10, seed=5)
        ours = [s.tokens.tolist() for s in find(store, "b", k=3, seed=7)]
        theirs = [s.tokens.tolist() for s in find(other, "b", k=3, seed=7)]
    assert ours == theirs
    assert len(ours) == 3
    assert ours != [s.tokens.tolist() for s in find(store, "b", k=3, seed=8)]


def test_position_hides_what_came_later(store):
    first = store.start_run("a", {})
    put(store, first, ([4, 2],), (1.0,))
    position = store.position()
    put(store, first, ([5, 2],), (1.0,), step=1)
    assert [s.tokens.tolist() for s in find(store, "b", position=position)] == [[4, 2]]
    assert len(find(store, "b")) == 2


def test_verdict_that_came_later_is_hidden_too(store):
    strict = VerifierRef("strict", "1")
    put(store, store.start_run("a", {}), ([4, 2],), (1.0,))
    position = store.position()
    put(store, store.start_run("c", {}), ([4, 2],), (1.0,), verifier=strict)
    assert find(store, "b", verifier=strict, position=position) == []
    assert len(find(store, "b", verifier=strict)) == 1


def test_own_trees_count_only_before_the_step_and_while_young(store):
    run = store.start_run("a", {})
    put(store, run, ([4, 2],), (1.0,), step=0, version=0)
    put(store, run, ([5, 2],), (1.0,), step=3, version=3)
    assert find(store, run) == []
    assert [s.tokens.tolist() for s in find(store, run, before_step=3)] == [[4, 2]]
    young = find(store, run, before_step=5, policy_version=5, max_staleness=2)
    assert [s.tokens.tolist() for s in young] == [[5, 2]]
    assert len(find(store, run, before_step=5, policy_version=5, max_staleness=5)) == 2
    assert len(find(store, "b", policy_version=99, max_staleness=1)) == 2


def test_a_grafted_solution_keeps_its_source_and_is_not_handed_on(store):
    put(store, store.start_run("a", {}), ([4, 2],), (1.0,), digest="first", temperature=0.7)
    (found,) = find(store, "b")
    second = store.start_run("b", {})
    tree = Tree([1, 9, 3], seed=5, max_completion_length=64)
    row = tree.graft(ROOT, found.span(), source=found.draw)
    tree.judge(row, found.verdict)
    fresh = tree.append(tree.request(ROOT, 1), 0, span([8, 2]))
    tree.judge(fresh, Verdict("scored", 0.0))
    tree_id = store.put_tree(
        second, tree, step=0, problem=PROBLEM, provenance=provenance(digest="second")
    )
    back = store.load_tree(tree_id)
    assert back.tree.draws.source.tolist() == [0, found.draw, 0]
    np.testing.assert_array_equal(back.tree.tokens.logprob[3:5], found.logprobs)
    assert (back.info.leaves, back.info.right, back.info.cached) == (1, 0, 2)
    assert [s.draw for s in find(store, "c")] == [found.draw]


def test_no_hot_query_scans_a_table(store):
    """The plan of the look-up by prompt uses indices alone, filled tables or not."""
    for number in range(3):
        put(store, store.start_run(f"a{number}", {}), ([4, 2], [5, number, 2]), (1.0, 1.0))
    position = store.position()
    with table_scans(store) as scans:
        assert len(find(store, "b", max_staleness=3, position=position)) == 4
    assert scans == []

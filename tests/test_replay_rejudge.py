import pytest

from tests.support_replay import PROBLEM, provenance, star_tree
from treerl.replay.check import check
from treerl.replay.keys import VerifierRef
from treerl.replay.rejudge import PAGE, Change, compare, count_unjudged, rejudge
from treerl.replay.store import Store
from treerl.verifiers.verdict import Verdict

NEW = VerifierRef("chain", "2")


@pytest.fixture
def store(any_url):
    """Solutions with texts t0 (right), t1, t2 (wrong) of version 1, and one without text."""
    with Store.open(any_url) as store:
        run = store.start_run("a", {})
        leaves = ([4, 5, 2], [6, 2], [7, 2], [8, 2])
        tree, texts = star_tree(leaves=leaves, rewards=(1.0, 0.0, 0.0, 0.0))
        del texts[4]
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts)
        yield store


def judge(verdicts):
    """A verifier that looks the text up, and notes what it was asked."""
    asked = []

    def verify(problems, completions):
        assert all(problem == PROBLEM for problem in problems)
        asked.extend(completions)
        return [verdicts[completion.text] for completion in completions]

    return verify, asked


RIGHT, WRONG = Verdict("scored", 1.0, "12", {"x": 1}), Verdict("scored", 0.0, "13")


def test_what_changed_is_counted_with_examples_and_old_verdicts_stay(store):
    verify, asked = judge({"t0": WRONG, "t1": RIGHT, "t2": Verdict("timeout", seconds=5.0)})
    assert count_unjudged(store, NEW) == (3, 1)
    assert list(rejudge(store, verify, NEW)) == [3]
    assert sorted((c.text, c.finish, c.prompt, c.token_ids) for c in asked) == [
        (f"t{k}", "stop", PROBLEM.question, ()) for k in range(3)
    ]
    found = compare(store, NEW)
    assert found.counts == {("right", "wrong"): 1, ("wrong", "none"): 1, ("wrong", "right"): 1}
    assert found.examples["right", "wrong"] == [
        Change("7+5=", "12", "t0", before=1.0, after=0.0, answer_before="2", answer_after="13")
    ]
    with store.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT reward FROM verdict WHERE verifier_id = 1 ORDER BY solution_id"
        )
        assert sorted(rows.scalars()) == [0.0, 0.0, 0.0, 1.0]
    assert list(check(store)) == []


def test_a_second_pass_tries_only_what_had_no_verdict(store):
    verify, _ = judge({"t0": RIGHT, "t1": Verdict("skipped"), "t2": Verdict("error")})
    list(rejudge(store, verify, NEW))
    assert count_unjudged(store, NEW) == (1, 1)
    verify, asked = judge({"t2": RIGHT})
    assert list(rejudge(store, verify, NEW)) == [1]
    assert [completion.text for completion in asked] == ["t2"]
    assert count_unjudged(store, NEW) == (0, 1)
    assert compare(store, NEW).counts["wrong", "right"] == 1


def test_interrupted_pass_keeps_what_was_judged_and_goes_on(any_url):
    count = PAGE + 10
    with Store.open(any_url) as store:
        leaves = [[4, k % 50, k // 50, 2] for k in range(count)]
        tree, texts = star_tree(leaves=leaves, rewards=[0.0] * count)
        run = store.start_run("a", {})
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts)
        verify, asked = judge(dict.fromkeys(texts.values(), RIGHT))
        pages = rejudge(store, verify, NEW)
        assert next(pages) == PAGE
        pages.close()
        assert count_unjudged(store, NEW) == (10, 0)
        assert list(rejudge(store, verify, NEW)) == [10]
        assert len(asked) == len({completion.text for completion in asked}) == count


def test_tokens_are_given_where_asked_for(store):
    verify, asked = judge(dict.fromkeys(("t0", "t1", "t2"), RIGHT))
    list(rejudge(store, verify, NEW, with_tokens=True))
    assert {completion.text: completion.token_ids for completion in asked} == {
        "t0": (4, 5, 2),
        "t1": (6, 2),
        "t2": (7, 2),
    }


def test_a_run_that_started_before_does_not_read_the_new_verdicts(store):
    before = store.position()
    verify, _ = judge(dict.fromkeys(("t0", "t1", "t2"), RIGHT))
    list(rejudge(store, verify, NEW))
    with store.read() as connection:
        positions = connection.exec_driver_sql("SELECT position FROM verdict WHERE verifier_id = 2")
        assert min(positions.scalars()) > before
    assert store.position() > before

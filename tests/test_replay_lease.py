import pytest

from tests.support_plans import table_scans
from tests.support_replay import assert_same_tree, provenance, star_tree
from treerl.errors import LeaseLost, StoreError
from treerl.problem import Problem
from treerl.replay.lease import (
    MAX_ATTEMPTS,
    Queue,
    claim_tree,
    queue_of,
    queue_trees,
    release,
    renew,
)
from treerl.replay.store import Store
from treerl.replay.writer import Writer

PROBLEMS = [Problem(f"{n}+1=", str(n + 1), "chain", {"n": n}) for n in range(3)]
ENDED = -1.0
"""A lease that is over when it begins."""


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        yield store


@pytest.fixture
def run(store):
    run = store.start_run("a", {})
    assert queue_trees(store, run, PROBLEMS[:2], step=1) == 2
    assert queue_trees(store, run, PROBLEMS[2:], step=0) == 1
    return run


def put(store, run, claim, seed=1):
    tree, texts = star_tree(seed=seed)
    return store.put_tree(
        run,
        tree,
        step=claim.step,
        number=claim.number,
        problem=claim.problem,
        provenance=provenance(),
        texts=texts,
        claim=claim,
    )


def test_each_tree_is_claimed_once_oldest_step_first(store, run):
    claims = [claim_tree(store, run, f"w{n}", lease_s=60) for n in range(3)]
    assert [claim.step for claim in claims] == [0, 1, 1]
    assert {claim.problem.question for claim in claims} == {p.question for p in PROBLEMS}
    assert claims[0].problem.columns == {"n": 2}
    assert claim_tree(store, run, "w9", lease_s=60) is None
    assert queue_of(store, run) == Queue(queued=0, running=3, expired=0, given_up=0)


def test_finished_tree_replaces_its_ticket_under_a_new_id(store, run):
    claim = claim_tree(store, run, "w", lease_s=60)
    before = store.position()
    assert store.trees() == []
    tree_id = put(store, run, claim)
    assert tree_id > before
    assert_same_tree(store.load_tree(tree_id).tree, star_tree()[0])
    assert queue_of(store, run) == Queue(queued=2, running=0, expired=0, given_up=0)
    # An answer that was lost on the way is asked for again.
    assert put(store, run, claim) == tree_id


def test_tree_of_a_dead_worker_is_taken_over_and_the_dead_one_writes_nothing(store, run):
    dead = claim_tree(store, run, "dead", lease_s=ENDED)
    assert queue_of(store, run).expired == 1
    heir = claim_tree(store, run, "heir", lease_s=60)
    assert (heir.ticket, heir.attempts) == (dead.ticket, 2)
    for late in (lambda: renew(store, dead, lease_s=60), lambda: put(store, run, dead, seed=2)):
        with pytest.raises(LeaseLost, match="another worker"):
            late()
    release(store, dead)
    assert store.trees() == []
    put(store, run, heir)
    with pytest.raises(LeaseLost, match="another worker has finished"):
        put(store, run, dead, seed=2)
    with pytest.raises(LeaseLost, match="another worker has finished"):
        put(store, run, dead)  # the same content: its lease was lost all the same
    assert len(store.trees()) == 1


def test_worker_that_did_not_hear_of_its_commit_may_put_its_tree_again(store, run):
    claim = claim_tree(store, run, "w", lease_s=60)
    assert put(store, run, claim) == put(store, run, claim)
    assert len(store.trees()) == 1


def test_renewed_lease_is_not_taken_over(store, run):
    claim = claim_tree(store, run, "w", lease_s=ENDED)
    renew(store, claim, lease_s=60)
    others = [claim_tree(store, run, "x", lease_s=60) for _ in range(3)]
    assert others[2] is None
    assert claim.ticket not in (others[0].ticket, others[1].ticket)


def test_lease_that_ended_and_was_not_taken_over_still_counts(store, run):
    put(store, run, claim_tree(store, run, "slow", lease_s=ENDED))
    assert len(store.trees()) == 1


def test_released_tree_waits_again(store, run):
    claim = claim_tree(store, run, "w", lease_s=60)
    release(store, claim)
    assert queue_of(store, run).queued == 3
    assert claim_tree(store, run, "v", lease_s=60).ticket == claim.ticket


def test_tree_that_kills_its_workers_is_given_up(store):
    run = store.start_run("a", {})
    queue_trees(store, run, PROBLEMS[:1], step=0)
    for _ in range(MAX_ATTEMPTS):
        assert claim_tree(store, run, "w", lease_s=ENDED) is not None
    assert claim_tree(store, run, "w", lease_s=60) is None
    assert queue_of(store, run) == Queue(queued=0, running=0, expired=0, given_up=1)


def test_queueing_twice_adds_nothing_and_done_trees_stay(store, run):
    put(store, run, claim_tree(store, run, "w", lease_s=60))
    assert queue_trees(store, run, PROBLEMS[2:], step=0) == 0
    assert queue_trees(store, run, PROBLEMS, step=1) == 1
    assert len(store.trees()) == 1


def test_queued_tree_is_not_written_without_its_claim(store, run):
    tree, _ = star_tree()
    with pytest.raises(StoreError, match="queued in run"):
        store.put_tree(run, tree, step=1, problem=PROBLEMS[0], provenance=provenance())


def test_writer_thread_takes_claims(store, run):
    claim = claim_tree(store, run, "w", lease_s=60)
    with Writer(store, run) as writer:
        tree, _ = star_tree()
        writer.put(
            tree, step=claim.step, problem=claim.problem, provenance=provenance(), claim=claim
        )
        writer.flush()
    assert len(store.trees()) == 1


def test_claims_scan_no_table(store, run):
    with table_scans(store) as scans:
        claim = claim_tree(store, run, "w", lease_s=60)
        renew(store, claim, lease_s=60)
        put(store, run, claim)
    assert scans == []

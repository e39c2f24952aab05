"""The trees of a search as tickets in the store, claimed one by one by one worker or by several of any host.

A finished tree is stored at once; what a worker had drawn of others is lost with it. A worker that dies leaves
leases, and when these end other workers take its trees over.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from treerl.engine.session import Session
from treerl.engine.step import Searched, grow_all, leaf_texts, new_growth, tree_names
from treerl.errors import LeaseLost
from treerl.problem import Problem
from treerl.replay.keys import Provenance
from treerl.replay.lease import Queue, claim_tree, queue_of, queue_trees, release, renew
from treerl.replay.rows import Claim
from treerl.replay.store import Store
from treerl.search.scheduler import Growth
from treerl.search.tree import Tree

STEP = 0
"""Of all trees of a search."""
RENEWALS = 3
"""Of a lease within its time: two may come late."""
POLL_SECONDS = 1.0
"""Between two looks at the queue while other workers have what is left of it."""


def enter_tickets(store: Store, run_id: str, problems: Sequence[Problem]) -> None:
    """Queues one tree a problem; a problem that comes twice has two."""
    by_number: dict[int, list[Problem]] = {}
    for problem, (_, number) in zip(problems, tree_names(problems), strict=True):
        by_number.setdefault(number, []).append(problem)
    for number, some in sorted(by_number.items()):
        queue_trees(store, run_id, some, step=STEP, number=number)


class Worker:
    """Grows queued trees of one run, each under a lease, until none is left.

    lease_s: seconds after which trees of this worker go to others unless it renews its leases, which it does
    between steps of the sampler: one step must take less. searched: what it has done. lost: trees that were
    taken over from it, finished too late.
    """

    def __init__(
        self, session: Session, run_id: str, provenance: Provenance, *, lease_s: float
    ) -> None:
        assert session.store is not None
        self.session, self.store = session, session.store
        self.run_id, self.provenance, self.lease_s = run_id, provenance, lease_s
        self.searched = Searched([], [], [])
        self.lost = 0
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._claims: dict[int, Claim] = {}
        self._renewed = time.monotonic()

    @property
    def queue(self) -> Queue:
        """What is not done, of all workers."""
        return queue_of(self.store, self.run_id)

    def work(
        self,
        *,
        on_tree: Callable[[Searched, int], None],
        on_round: Callable[[Searched], None],
        on_wait: Callable[[Queue], None],
    ) -> None:
        """Returns when no tree is left that may be tried again.

        on_tree, on_round: as in `search_step`. on_wait: called about once a second while other workers have
        all that is left. Whatever ends it, trees that are not finished are given back.
        """
        begun = time.perf_counter()

        def finished(searched: Searched, index: int) -> None:
            self._store(index)
            on_tree(searched, index)

        def between(searched: Searched) -> None:
            self._renew()
            on_round(searched)

        try:
            while True:
                grow_all(
                    self.session, self._claimed(), self.searched, on_tree=finished, on_round=between
                )
                left = self.queue
                if not (left.queued or left.running or left.expired):
                    return
                if not (left.queued or left.expired):
                    on_wait(left)
                    time.sleep(POLL_SECONDS)
        finally:
            for claim in self._claims.values():
                release(self.store, claim)
            self.searched.seconds = time.perf_counter() - begun

    def _claimed(self) -> Iterator[Growth]:
        """A tree of the queue whenever the sampler has room for one."""
        claim = self._claim()
        while claim is not None:
            growth = self._growth(claim)
            self._claims[id(growth.tree)] = claim
            yield growth
            claim = self._claim()

    def _claim(self) -> Claim | None:
        self._renew()  # a lease of its own that has ended must not look like that of a dead worker
        return claim_tree(self.store, self.run_id, self._name, lease_s=self.lease_s)

    def _growth(self, claim: Claim) -> Growth:
        (prompt,) = self.session.prompts([claim.problem])
        assert prompt is not None, "queued by a worker of the same recipe, which rendered it"
        name = (claim.problem.key, claim.number)
        growth = new_growth(self.session, claim.problem, prompt, claim.step, name)
        self.searched.problems.append(claim.problem)
        self.searched.names.append(name)
        self.searched.trees.append(growth.tree)
        return growth

    def _store(self, index: int) -> None:
        tree = self.searched.trees[index]
        try:
            self._put(tree, self._claims[id(tree)])
        except LeaseLost:
            self.lost += 1
        del self._claims[id(tree)]  # not earlier: an interrupted one is given back

    def _put(self, tree: Tree, claim: Claim) -> None:
        self.store.put_tree(
            self.run_id,
            tree,
            step=claim.step,
            number=claim.number,
            problem=claim.problem,
            provenance=self.provenance,
            texts=leaf_texts(self.session, tree),
            claim=claim,
        )

    def _renew(self) -> None:
        """Extends all leases when a part of their time has passed. A lost one shows when its tree is stored."""
        if time.monotonic() - self._renewed < self.lease_s / RENEWALS:
            return
        self._renewed = time.monotonic()
        for claim in self._claims.values():
            try:
                renew(self.store, claim, lease_s=self.lease_s)
            except LeaseLost:
                continue

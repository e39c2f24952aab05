"""Writers and readers on one replay cache while writers are killed: is anything lost, twice or torn?

Eight processes claim queued trees by lease, write them and note each one they were told is stored; eight read
trees and solutions back and check them; every `--kill-every` seconds one writer is killed with SIGKILL and
replaced. At the end: every tree that was acknowledged is there with its content, none is there twice, every
reader's tree was whole, trees of killed writers were taken over, `treerl replay check` finds nothing, and no
process reported an error (a deadlock is one) or stood still.

`python scripts/soak_replay.py [--url URL] [--seconds 300] [--json]`; exit code 1 if something was found.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from treerl.errors import LeaseLost
from treerl.problem import Problem
from treerl.replay import rows, schema
from treerl.replay.bound import ReadBound
from treerl.replay.check import check
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef
from treerl.replay.lease import claim_tree, queue_of, queue_trees, renew
from treerl.replay.reuse import cached_solutions, stored_prompts
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

LEASE_S = 3.0
LEAVES = 8
PROBLEMS = 20
STILL_LIMIT_S = 60.0
"""A process that has done nothing for so long counts as stuck."""
VERIFIER = VerifierRef("soak", "1")
SOURCE = Provenance("soak", PolicyRef("soak", "0"), {"temperature": 1.0}, VERIFIER)


@dataclass
class Outcome:
    """What a soak counted, and what it found wrong (in words)."""

    seconds: float
    acknowledged: int
    stored: int
    kills: int
    taken_over: int
    reads: int
    leases_lost: int
    wrong: list[str]


def search(problem: Problem, step: int) -> Tree:
    """A tree as a search would give it: the same for whoever searches it."""
    rng = np.random.default_rng([step, int(problem.truth)])
    tree = Tree([1, 2, int(problem.truth) + 3], seed=step, max_completion_length=64)
    request = tree.request(ROOT, LEAVES)
    for k in range(LEAVES):
        length = int(rng.integers(4, 40))
        tokens = rng.integers(3, 30, length).astype(np.int32)
        span = Span(
            tokens,
            np.log(rng.uniform(0.1, 1, length)).astype(np.float32),
            rng.uniform(0, 2, length).astype(np.float32),
            step,
            Finish.STOP,
        )
        tree.judge(tree.append(request, k, span), Verdict("scored", float(k % 2)))
    return tree


def encoded(problem: Problem, step: int) -> rows.TreeRows:
    tree = search(problem, step)
    return rows.encode(tree, step=step, number=0, problem=problem, provenance=SOURCE, texts={})


def problems() -> list[Problem]:
    return [Problem(f"{n}=", str(n), "chain") for n in range(PROBLEMS)]


def write(url: str, run: str, notes: Path, pause_s: float) -> None:
    """Claims and writes trees; a line in `notes` for each one that was acknowledged."""
    owner = f"{notes.stem}-{os.getpid()}"
    with Store.open(url, create=False) as store, notes.open("a") as stream:
        while True:
            claim = claim_tree(store, run, owner, lease_s=LEASE_S)
            if claim is None:
                time.sleep(pause_s)
                note(stream, ["idle"])
                continue
            time.sleep(pause_s * random.random())
            try:
                if random.random() < 0.3:
                    renew(store, claim, lease_s=LEASE_S)
                tree_id = store.put_tree(
                    run,
                    search(claim.problem, claim.step),
                    step=claim.step,
                    problem=claim.problem,
                    provenance=SOURCE,
                    claim=claim,
                )
            except LeaseLost:
                note(stream, ["lost"])
                continue
            note(stream, ["stored", tree_id, claim.step, claim.problem.truth])


def read(url: str, run: str, notes: Path, pause_s: float) -> None:
    """Loads trees and solutions and checks them; a line in `notes` for each."""
    rng = random.Random(notes.stem)
    with Store.open(url, create=False) as store, notes.open("a") as stream:
        while True:
            time.sleep(2 * pause_s)
            newest = store.position()
            trees = store.trees(run_id=run, limit=5)
            for info in trees:
                stored = store.load_tree(info.id)
                if rows.content_key(stored.tree) != rows.content_key(
                    search(stored.problem, info.step)
                ):
                    note(stream, ["torn", info.id])
            asked = stored_prompts(store, tokenizer="soak")
            if asked:
                found = cached_solutions(
                    store,
                    rng.sample(asked, 1),
                    tokenizer="soak",
                    verifier=VERIFIER,
                    bound=ReadBound("reader", newest),
                    max_per_problem=4,
                )
                if any(solution.tree_id > newest for solution in found[0]):
                    note(stream, ["beyond its bound"])
            note(stream, ["read", len(trees)])


def note(stream: "object", what: list[object]) -> None:
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def guarded(work: Callable[..., None], notes: Path, *arguments: object) -> None:
    """Runs a worker; what ends it is noted."""
    try:
        work(*arguments)
    except BaseException as error:  # noqa: BLE001 - told by the parent
        with notes.open("a") as stream:
            note(stream, ["error", f"{type(error).__name__}: {error}"])
        raise SystemExit(1) from None


class Soak:
    """The processes of one soak and the folder of their notes."""

    def __init__(self, url: str, run: str, folder: Path, pause_s: float) -> None:
        self.url, self.run, self.folder, self.pause_s = url, run, folder, pause_s
        self.writers: list[BaseProcess] = []
        self.readers: list[BaseProcess] = []
        self.started = 0

    def start(self, work: Callable[..., None], name: str) -> BaseProcess:
        self.started += 1
        notes = self.folder / f"{name}{self.started}.jsonl"
        arguments = (work, notes, self.url, self.run, notes, self.pause_s)
        process = multiprocessing.get_context("fork").Process(target=guarded, args=arguments)
        process.start()
        return process

    def kill_one(self) -> None:
        victim = random.randrange(len(self.writers))
        self.writers[victim].kill()
        self.writers[victim].join()
        self.writers[victim] = self.start(write, "writer")

    def stuck(self) -> list[str]:
        """Names of those that have written no note for too long."""
        alive = [*self.writers, *self.readers]
        newest = sorted(self.folder.glob("*.jsonl"), key=lambda p: p.stat().st_mtime)[-len(alive) :]
        return [p.stem for p in newest if time.time() - p.stat().st_mtime > STILL_LIMIT_S]

    def stop(self) -> None:
        for process in (*self.writers, *self.readers):
            process.kill()
            process.join()


def soak(
    url: str,
    *,
    seconds: float,
    kill_every: float,
    writers: int = 8,
    readers: int = 8,
    pause_s: float = 0.05,
) -> Outcome:
    """Runs it all and judges."""
    with Store.open(url) as store:
        run = store.start_run("soak", {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        working = Soak(url, run, folder, pause_s)
        wrong: list[str] = []
        kills = step = 0
        begun = killed = time.monotonic()
        try:
            working.writers = [working.start(write, "writer") for _ in range(writers)]
            working.readers = [working.start(read, "reader") for _ in range(readers)]
            while time.monotonic() - begun < seconds and not wrong:
                step = refill(url, run, step)
                time.sleep(1.0)
                if time.monotonic() - killed >= kill_every:
                    working.kill_one()
                    killed = time.monotonic()
                    kills += 1
                wrong += [f"{name} stands still" for name in working.stuck()]
        finally:
            working.stop()
        noted = [json.loads(line) for line in lines(folder)]
        return judge(url, run, noted, wrong, kills, time.monotonic() - begun)


def refill(url: str, run: str, step: int) -> int:
    """Queues trees of the next steps if few wait; nothing stays open that a fork would share."""
    with Store.open(url, create=False) as store:
        while queue_of(store, run).queued < 20 * PROBLEMS:
            queue_trees(store, run, problems(), step=step)
            step += 1
    return step


def lines(folder: Path) -> list[str]:
    """All whole notes; the last line of a killed writer may be half a one."""
    found = []
    for path in folder.glob("*.jsonl"):
        found += path.read_text().split("\n")[:-1]
    return found


def judge(
    url: str, run: str, noted: list[list[object]], wrong: list[str], kills: int, seconds: float
) -> Outcome:
    kinds = Counter(str(entry[0]) for entry in noted)
    wrong += [f"a process ended: {entry[1]}" for entry in noted if entry[0] == "error"]
    wrong += [f"tree {entry[1]} was read torn" for entry in noted if entry[0] == "torn"]
    wrong += ["a reader got what came after its bound"] * kinds["beyond its bound"]
    acknowledged = [tuple(entry[1:]) for entry in noted if entry[0] == "stored"]
    by_truth = {problem.truth: problem for problem in problems()}
    tree = schema.tree
    names = (tree.c.id, tree.c.step, schema.problem.c.truth, tree.c.content_key, tree.c.attempts)
    query = (
        sa.select(*names)
        .join(schema.problem, schema.problem.c.id == tree.c.problem_id)
        .where(tree.c.run_id == run, tree.c.state == "done")
    )
    with Store.open(url, create=False) as store:
        with store.read() as connection:
            stored = connection.execute(query).all()
        ids = {(row.id, row.step, row.truth) for row in stored}
        wrong += [f"tree {entry} was acknowledged and is lost" for entry in set(acknowledged) - ids]
        twice = Counter((step, truth) for _, step, truth in acknowledged)
        wrong += [f"{name} was acknowledged twice" for name, count in twice.items() if count > 1]
        twice = Counter((row.step, row.truth) for row in stored)
        wrong += [f"{name} is stored twice" for name, count in twice.items() if count > 1]
        wrong += [
            f"tree {row.id} has other content"
            for row in stored
            if row.content_key != encoded(by_truth[row.truth], row.step).tree["content_key"]
        ]
        wrong += list(check(store))
    return Outcome(
        seconds=round(seconds, 1),
        acknowledged=len(acknowledged),
        stored=len(stored),
        kills=kills,
        taken_over=sum(row.attempts > 1 for row in stored),
        reads=kinds["read"],
        leases_lost=kinds["lost"],
        wrong=wrong,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--url", help="replay database; default a SQLite file in a temporary folder"
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kill-every", type=float, default=3.0)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds a worker rests")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/replay.db"
        outcome = soak(
            url, seconds=options.seconds, kill_every=options.kill_every, pause_s=options.pause
        )
    if options.json:
        print(json.dumps(asdict(outcome)))
    else:
        for name, value in asdict(outcome).items():
            print(f"{name:14}{value}")
    sys.exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()

"""Hand-made trees, problems and provenance for the tests of the replay cache.

Run as a module it is a process that writes trees to URL under NAME until it is killed or has written COUNT,
and prints the id of each tree it has been told is stored.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from treerl.problem import Problem
from treerl.replay.bound import ReadBound
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef
from treerl.replay.reuse import cached_solutions, stored_prompts
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Origin, Span
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

PROBLEM = Problem("7+5=", "12", "chain", {"level": 3})
VERIFIER = VerifierRef("chain", "1", {"format": "last"})


def provenance(digest="base", temperature=1.0, tokenizer="chars", verifier=VERIFIER):
    return Provenance(tokenizer, PolicyRef("tiny", digest), {"temperature": temperature}, verifier)


def span(tokens, finish=Finish.STOP, version=0, seed=0):
    rng = np.random.default_rng([seed, *map(int, tokens)])
    return Span(
        np.asarray(tokens, np.int32),
        np.log(rng.uniform(0.1, 1.0, len(tokens))).astype(np.float32),
        rng.uniform(0.0, 2.0, len(tokens)).astype(np.float32),
        version,
        finish,
    )


def star_tree(seed=1, leaves=((4, 5, 2), (6, 2)), rewards=(1.0, 0.0), version=0, prompt=(1, 9, 3)):
    """A prompt with one ended child a leaf; texts "t0", "t1", ..."""
    tree = Tree(list(prompt), seed=seed, max_completion_length=64)
    request = tree.request(ROOT, len(leaves))
    texts = {}
    for k, (tokens, reward) in enumerate(zip(leaves, rewards, strict=True)):
        row = tree.append(request, k, span(tokens, version=version, seed=seed))
        tree.judge(row, Verdict("scored", reward, answer=str(tokens[-1]), seconds=0.25))
        texts[row] = f"t{k}"
    return tree, texts


def branched_tree(seed=3):
    """Splits, equal siblings, a chain of chunks, a timeout, per-token versions, an observation."""
    tree = Tree([1, 9, 3], seed=seed, max_completion_length=12)
    first = tree.request(ROOT, 3)
    a = tree.append(first, 0, span([4, 5, 6, 7, 2]))
    b = tree.append(first, 1, span([4, 5, 6, 7, 2], seed=8))
    c = tree.append(first, 2, span([8, 8, 8], Finish.CUT))
    head = tree.node_at(*(int(tree.nodes.draw[a]), 2))
    fork = tree.request(head, 2, origin=Origin.ENTROPY, chosen_by_token=True)
    d = tree.append(fork, 0, span([7, 2], version=1))
    e = tree.append(fork, 1, span([5] * 10, Finish.LENGTH, version=1))
    tree.node_at(int(tree.nodes.draw[e]), 4)
    more = tree.request(c, 1, origin=Origin.EXTEND)
    f = tree.append(more, 0, span([9, 9, 2], version=2))
    start = int(tree.draws.start[tree.nodes.draw[f]])
    tree.tokens.policy_version[start] = 1
    tree.tokens.mask[start + 1] = False
    tree.tokens.entropy[start + 2] = np.nan
    tree.judge(a, Verdict("scored", 1.0, "12", {"steps": [1, 2]}, 0.5))
    tree.judge(b, Verdict("timeout", seconds=5.0))
    tree.judge(d, Verdict("scored", 0.0, None))
    tree.judge(e, Verdict("skipped"))
    tree.judge(f, Verdict("scored", 0.5, "x", {"é": "ü"}))
    tree.nodes.visits[:] = np.arange(len(tree))
    tree.nodes.value_sum[:] = np.arange(len(tree)) / 3
    tree.nodes.prior[d] = 0.1
    tree.nodes.selected[e] = False
    tree.meta["wave"] = {"sizes": [3, 2]}
    return tree, {a: "7+5=12", b: "7+5=12", d: "no", e: "runs on"}


def fill_two_runs(store):
    """Runs "a" and "b", one tree and three; two of the latter have a solution of the former."""
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
        tree.judge(tree.append(tree.request(ROOT, 1), 0, span([8, 8, 8, 2])), Verdict("timeout"))
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


def stored_steps(store):
    """The step of each whole tree, ascending."""
    return sorted(info.step for info in store.trees())


def assert_same_tree(left, right):
    for part in ("nodes", "draws", "tokens"):
        ours, theirs = getattr(left, part).arrays(), getattr(right, part).arrays()
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{part}.{name}")
    assert left.seed == right.seed
    assert left.max_completion_length == right.max_completion_length
    assert left.verdicts == right.verdicts
    assert left.meta == right.meta


def start_process(url, name, count):
    command = [sys.executable, "-m", "tests.support_replay", url, name, str(count)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def _write_trees(url, name, count):
    with Store.open(url) as store:
        run = store.start_run(name, {})
        for step in range(count):
            leaves = [[step + 4, k, 2] for k in range(20)]
            tree, texts = star_tree(seed=step, leaves=leaves, rewards=[k % 2 for k in range(20)])
            tree_id = store.put_tree(
                run, tree, step=step, problem=PROBLEM, provenance=provenance(), texts=texts
            )
            print(tree_id, flush=True)


if __name__ == "__main__":
    _write_trees(sys.argv[1], sys.argv[2], int(sys.argv[3]))

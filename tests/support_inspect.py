"""Hand-made and synthetic search trees in a store, for the tests of the inspector."""

import io
from dataclasses import replace

import numpy as np
from rich.console import Console, Group

from treerl.credit.dense import Signals
from treerl.errors import ConfigError
from treerl.inspect.compare import compare, render_comparison
from treerl.inspect.detail import render_detail
from treerl.inspect.forest import forest_line, forest_titles, problem_items
from treerl.inspect.heat import heat_of
from treerl.inspect.library import Library, Scored
from treerl.inspect.render import render_tree
from treerl.inspect.siblings import best_sibling, render_family, render_pair
from treerl.problem import Problem
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Origin, Span
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

QUESTION = "Ann has 2 bags of 3 apples.\nHow many?"


def decode(tokens):
    """Tokens are bytes of UTF-8."""
    return bytes(tokens).decode("utf-8", errors="replace")


def span(text, finish, logprob=-0.5, entropy=0.25, version=0):
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    logprobs = np.broadcast_to(np.float32(logprob), len(ids)).copy()
    entropies = np.broadcast_to(np.asarray(entropy, np.float32), len(ids)).copy()
    return Span(ids, logprobs, entropies, version, finish)


def grow(tree, node, text, finish=Finish.STOP, verdict=None, origin=Origin.SAMPLE, **columns):
    row = tree.append(tree.request(node, 1, origin=origin), 0, span(text, finish, **columns))
    if verdict is not None:
        tree.judge(row, verdict)
    return row


def right(answer, **detail):
    return Verdict("scored", 1.0, answer, detail, 0.002)


def wrong(answer):
    return Verdict("scored", 0.0, answer, {}, 0.002)


def small_tree():
    """Root with an inner span that has a right and a wrong end, a cut-off leaf and a timed-out one."""
    tree = Tree(list(b"2*3="), seed=1, max_completion_length=40)
    inner = grow(tree, ROOT, "3+3", Finish.CUT, version=2)
    grow(tree, inner, "=6.", verdict=right("6", rule="number"), version=3, origin=Origin.ENTROPY)
    grow(tree, inner, "=7.", verdict=wrong("7"), entropy=1.5, version=3, origin=Origin.ENTROPY)
    grow(tree, ROOT, "2+2+2", Finish.LENGTH, verdict=wrong(None), version=1)
    grow(tree, ROOT, "9^9^9", verdict=Verdict("timeout"), version=3)
    tree.recount()
    return tree


def big_tree(n_nodes, seed=0):
    """About `n_nodes` spans of some twenty tokens, grown at random points; a third of the leaves right."""
    rng = np.random.default_rng(seed)
    tree = Tree(list(b"what is 2*3? think step by step."), seed=seed, max_completion_length=2000)
    open_rows = [ROOT]
    while len(tree) < n_nodes:
        node = open_rows[int(rng.integers(len(open_rows)))]
        last = len(open_rows) > 3 and rng.random() < 0.55
        words = " ".join(
            ["so", "then", "we", "add", "3", "and", "get", "6"][: int(rng.integers(3, 9))]
        )
        if last:
            verdict = right("6") if rng.random() < 0.33 else wrong(str(int(rng.integers(100))))
            grow(tree, node, words, verdict=verdict, entropy=float(rng.uniform(0, 2)))
        else:
            open_rows.append(grow(tree, node, words, Finish.CUT, entropy=float(rng.uniform(0, 2))))
    tree.recount()
    return tree


def put(store, *trees, run="handmade", question="2*3=", config=None):
    """Stores trees, one a step; returns their ids."""
    run_id = store.start_run(run, config or {"recipe": {}})
    source = Provenance(
        "bytes", PolicyRef("tiny", "ab12cd34ef"), {"temperature": 1.0}, VerifierRef("number", "1")
    )
    return [
        store.put_tree(
            run_id, tree, step=step, problem=Problem(question, "6", "number"), provenance=source
        )
        for step, tree in enumerate(trees)
    ]


def no_policy(run, stored):
    raise ConfigError(f"run {run.name} has no checkpoint: give --weights FOLDER")


def drifted(run, stored):
    """A policy that has moved by 0.1 nats on every token since the tree was drawn."""
    old = np.asarray(stored.tree.tokens.logprob, np.float64)
    return Scored(Signals(lp_old=old + 0.1, lp_ref=old), "step-00000003", "tiny")


def library(store, score=no_policy):
    return Library(store, lambda run: decode, score)


def open_store(folder, *trees, **options):
    """A store in a file with the trees put; returns it and their ids."""
    store = Store.open(f"sqlite:///{folder / 'cache.db'}")
    return store, put(store, *trees, **options)


# Snapshots -------------------------------------------------------------------------------------------------

WIDTHS = (60, 100, 160)
NOW_US = 1_700_000_000_000_000


def text_of(renderable, width=100):
    """What is printed to a pipe, without spaces at the ends of lines."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def shown_tree():
    """What a line can show: chains, a cached leaf, long and foreign text, control codes, many branches."""
    tree = Tree(list(b"Ann has 2 bags of 3 apples.\nHow many?"), seed=5, max_completion_length=400)
    said = "First we count the bags, then the apples in each of them"
    first = grow(tree, ROOT, said, Finish.CUT, entropy=0.1, version=2)
    then = grow(
        tree, first, ":\n2 * 3 = 6", Finish.CUT, origin=Origin.EXTEND, entropy=0.8, version=2
    )
    grow(tree, then, " so 6.", verdict=right("6", rule="number"), origin=Origin.FRONTIER, version=3)
    more = {"verdict": wrong("5"), "origin": Origin.FRONTIER, "version": 3}
    grow(tree, then, " so \x1b[31m5\x1b[0m.", entropy=np.linspace(0, 2, 15), **more)
    tree.graft(ROOT, span("两袋苹果，6", Finish.STOP, version=1), source=7)
    tree.judge(len(tree) - 1, right("6"))
    for count in range(15):
        grow(tree, first, f" guess {count}", verdict=wrong(str(count)), entropy=1.2, version=3)
    grow(tree, ROOT, "I " * 60, Finish.LENGTH, verdict=wrong(None), version=3)
    tree.recount()
    return tree


def snapshots(folder):
    """name -> what is printed, at each width."""
    store, ids = open_store(folder, shown_tree(), small_tree(), question=QUESTION)
    with store:
        shelf = library(store, drifted)
        opened = shelf.open(ids[0])
        pair = [shelf.credit(opened, name) for name in ("tree_value", "grpo")]
        one, other = (credit.shade(opened.tree) for credit in pair)
        items = [replace(item, created_us=NOW_US) for item in problem_items(shelf, None, 10)]
        found = {}
        for width in WIDTHS:
            detail = {"width": width, "ids": True}
            heat = heat_of("entropy", shelf, opened, "tree_value")
            found |= {
                f"tree_{width}": render_tree(opened.view, width=width),
                f"right_{width}": render_tree(opened.view, width=width, only_right=True),
                f"compare_{width}": Group(
                    render_tree(opened.view, width=width, shade=one, beside=(other,)),
                    render_comparison(opened, compare(opened, *pair), width=width),
                ),
                f"span_{width}": render_detail(opened, 4, heat=heat, **detail),
                f"cached_{width}": render_detail(opened, 5, heat=heat, **detail),
                f"siblings_{width}": Group(
                    render_pair(opened, 4, best_sibling(opened, 4)),
                    render_family(opened, 4, width=width),
                ),
                f"forest_{width}": Group(
                    forest_titles(width, of_trees=False),
                    *(forest_line(i, width, now_us=NOW_US, of_trees=False) for i in items),
                ),
            }
        return {name: text_of(shown, int(name.rpartition("_")[2])) for name, shown in found.items()}

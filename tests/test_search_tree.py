"""The tree: a hypothesis state machine against a plain model, splits in any order, scans, export, mending."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support_search import canonical, check_invariants, span
from treerl.search.mend import mend
from treerl.search.sampler import Finish, Origin
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict


class TreeMachine(RuleBasedStateMachine):
    """The model knows each draw's whole path as a plain list; the tree must agree after any history."""

    def __init__(self):
        super().__init__()
        self.tree = Tree([1, 2, 3], seed=7, max_completion_length=10_000)
        self.paths = {0: [1, 2, 3]}  # draw -> tokens from the prompt to its end
        self.ends = {ROOT: (0, 3)}  # row -> its end, which never changes
        self.rewards = {}
        self.next_token = 10

    def point_on(self, data, draw):
        length = int(self.tree.draws.length[draw])
        return 3 if draw == 0 else data.draw(st.integers(0, length), label="offset")

    @rule(data=st.data(), length=st.integers(1, 6), ended=st.booleans(), count=st.integers(1, 3))
    def append(self, data, length, ended, count):
        draw = data.draw(st.sampled_from(sorted(self.paths)), label="draw")
        offset = self.point_on(data, draw)
        node = self.tree.node_at(draw, offset)
        self.note_new_rows()
        if self.tree.nodes.finish[node] == Finish.STOP:
            return
        request = self.tree.request(node, count)
        for which in data.draw(st.permutations(range(count))):
            tokens = list(range(self.next_token, self.next_token + length))
            self.next_token += length
            finish = Finish.STOP if ended else Finish.CUT
            row = self.tree.append(request, which, span(tokens, finish))
            prefix = self.paths[draw][: len(self.paths[draw]) - self.length(draw) + offset]
            self.paths[int(self.tree.nodes.draw[row])] = prefix + tokens
        self.note_new_rows()

    @rule(data=st.data())
    def split(self, data):
        draw = data.draw(st.sampled_from(sorted(self.paths)), label="draw")
        offset = self.point_on(data, draw)
        row = self.tree.node_at(draw, offset)
        self.note_new_rows()
        if offset:
            assert self.tree.point(row) == (draw, offset)

    @precondition(lambda self: len(self.tree.leaves()))
    @rule(data=st.data(), reward=st.sampled_from([0.0, 1.0, -1.0, None]))
    def judge(self, data, reward):
        leaf = int(data.draw(st.sampled_from(self.tree.leaves().tolist()), label="leaf"))
        outcome = "timeout" if reward is None else "scored"
        self.tree.judge(leaf, Verdict(outcome, reward))
        self.rewards[leaf] = reward

    @rule()
    def rebuild(self):
        before = canonical(self.tree)
        old = self.tree
        self.tree = Tree.from_columns(
            old.nodes.arrays(),
            old.draws.arrays(),
            old.tokens.arrays(),
            seed=old.seed,
            max_completion_length=old.max_completion_length,
        )
        for row in range(len(old)):
            assert self.tree.children(row) == old.children(row)
        assert canonical(self.tree) == before

    def length(self, draw):
        return int(self.tree.draws.length[draw])

    def note_new_rows(self):
        for row in range(len(self.ends), len(self.tree)):
            self.ends[row] = self.tree.point(row)

    @invariant()
    def shape_holds(self):
        check_invariants(self.tree)

    @invariant()
    def rows_keep_their_end_and_their_path(self):
        for row, (draw, offset) in self.ends.items():
            assert self.tree.point(row) == (draw, offset)
            path = self.paths[draw]
            assert (
                self.tree.path_tokens(row).tolist()
                == path[: len(path) - self.length(draw) + offset]
            )

    @invariant()
    def statistics_count_the_leaves_below(self):
        self.tree.recount()
        known = {row: r for row, r in self.rewards.items() if r is not None}
        visits = dict.fromkeys(range(len(self.tree)), 0)
        total = dict.fromkeys(range(len(self.tree)), 0.0)
        for leaf, reward in known.items():
            for row in self.tree.path(leaf):
                visits[row] += 1
                total[row] += reward
        assert self.tree.nodes.visits.tolist() == list(visits.values())
        assert self.tree.nodes.value_sum.tolist() == list(total.values())
        for row in range(len(self.tree)):
            below = sum(int(self.tree.nodes.visits[c]) for c in self.tree.children(row))
            assert below <= self.tree.nodes.visits[row]


TreeMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
test_any_history = TreeMachine.TestCase


def hand_tree():
    """A draw of 8 tokens, judged right."""
    tree = Tree([1, 2], seed=1, max_completion_length=20)
    row = tree.append(tree.request(ROOT, 1), 0, span([10, 11, 12, 13, 14, 15, 16, 17]))
    tree.judge(row, Verdict("scored", 1.0))
    tree.recount()
    return tree, row


def test_split_in_front_of_an_earlier_split_keeps_ids_paths_and_statistics():
    tree, leaf = hand_tree()
    late = tree.split(leaf, 6)
    early = tree.split(late, 2)
    assert tree.path(leaf) == [ROOT, early, late, leaf]
    assert tree.path_tokens(late).tolist() == [1, 2, 10, 11, 12, 13, 14, 15]
    assert tree.path_tokens(early).tolist() == [1, 2, 10, 11]
    assert tree.order.tolist() == [ROOT, early, late, leaf]
    assert tree.nodes.parent[late] == early > late
    assert tree.nodes.visits.tolist() == [1, 1, 1, 1]
    assert tree.nodes.finish[leaf] == Finish.STOP
    assert tree.nodes.reward[leaf] == 1.0
    assert np.isnan(tree.nodes.reward[early])


def test_splits_in_any_order_give_the_same_tree():
    shapes = []
    for order in ([2, 5, 7], [7, 5, 2], [5, 2, 7]):
        tree, leaf = hand_tree()
        for offset in order:
            tree.node_at(int(tree.nodes.draw[leaf]), offset)
        shapes.append(canonical(tree))
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(shapes[0]) == 5


def test_a_request_in_flight_survives_a_split_of_its_own_span():
    tree = Tree([1], seed=1, max_completion_length=20)
    chunk = tree.append(tree.request(ROOT, 1), 0, span([10, 11, 12, 13], Finish.CUT))
    request = tree.request(chunk, 1)
    tree.split(chunk, 2)
    row = tree.append(request, 0, span([20, 21]))
    assert tree.path_tokens(row).tolist() == [1, 10, 11, 12, 13, 20, 21]


def test_seeds_are_named_by_the_point_and_not_by_rows_or_splits():
    plain, leaf = hand_tree()
    seeds = plain.request(plain.node_at(1, 4), 2).seeds
    split, leaf = hand_tree()
    split.split(leaf, 6)
    split.node_at(1, 2)
    assert split.request(split.node_at(1, 4), 2).seeds == seeds
    assert len(set(seeds)) == 2


def test_branches_of_different_cached_solutions_have_different_seeds():
    seeds = set()
    for tree_seed in (1, 2):
        tree = Tree([1], seed=tree_seed, max_completion_length=20)
        for source in (8, 9):
            tree.graft(ROOT, span([10, 11, 12]), source=source)
        for draw in (1, 2):
            seeds.update(tree.request(tree.node_at(draw, 2), 1).seeds)
    assert len(seeds) == 4


def test_an_ended_or_full_path_cannot_be_continued():
    tree, leaf = hand_tree()
    with pytest.raises(ValueError, match="has ended"):
        tree.request(leaf, 1)
    full = Tree([1], seed=1, max_completion_length=2)
    row = full.append(full.request(ROOT, 1), 0, span([5, 6], Finish.CUT))
    with pytest.raises(ValueError, match="has ended"):
        full.request(row, 1)


def test_a_request_that_may_use_up_the_path_says_last():
    tree = Tree([1, 1, 1], seed=1, max_completion_length=10)
    request = tree.request(ROOT, 1, max_tokens=4)
    assert (request.max_tokens, request.last) == (4, False)
    chunk = tree.append(request, 0, span([5, 6, 7, 8], Finish.CUT))
    request = tree.request(chunk, 1, max_tokens=100)
    assert (request.max_tokens, request.last) == (6, True)


def test_networkx_graph_has_every_span_and_edge():
    tree, leaf = hand_tree()
    head = tree.split(leaf, 3)
    tree.append(tree.request(head, 1, origin=Origin.ENTROPY), 0, span([20]))
    graph = tree.to_networkx()
    assert set(graph.edges) == {(ROOT, head), (head, leaf), (head, 3)}
    assert graph.nodes[3]["origin"] == Origin.ENTROPY
    assert graph.nodes[leaf]["reward"] == 1.0
    assert graph.graph["seed"] == 1


def test_tokens_of_cached_draws_do_not_count_as_generated():
    tree, _ = hand_tree()
    tree.graft(ROOT, span([5, 6, 7]), source=4)
    assert tree.n_generated == 8


def grown_for_tearing():
    tree, leaf = hand_tree()
    tree.append(tree.request(tree.node_at(1, 5), 1), 0, span([30, 31, 32], Finish.CUT))
    return tree, leaf


def torn_at(line_number, action):
    """Runs `action(tree)` and raises KeyboardInterrupt before its `line_number`-th line in treerl.search."""
    tree, _ = grown_for_tearing()
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if "treerl/search/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == line_number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action(tree)
    except KeyboardInterrupt:
        return tree, True
    finally:
        sys.settrace(before)
    return tree, False


@pytest.mark.parametrize("kind", ["append", "split"])
def test_an_interrupt_at_any_line_leaves_a_tree_that_can_be_mended(kind):
    def action(tree):
        if kind == "split":
            tree.node_at(1, 2)
        else:
            # Long enough that columns must be reallocated.
            tree.append(request, 0, span(list(range(40, 60))))

    untouched, _ = grown_for_tearing()
    request = untouched.request(2, 1)
    done, _ = grown_for_tearing()
    action(done)
    torn, line = True, 0
    while torn:
        line += 1
        tree, torn = torn_at(line, action)
        mend(tree)
        check_invariants(tree)
        assert canonical(tree) in (canonical(untouched), canonical(done))
        assert tree.n_generated == int(tree.nodes.stop.max()) - 2
        tree.append(tree.request(tree.node_at(1, 3), 1), 0, span([70, 71]))
        check_invariants(tree)
    assert line > 10


def test_the_benchmark_runs_and_its_cost_per_node_does_not_grow():
    script = Path(__file__).parent.parent / "scripts" / "bench_tree.py"
    command = [sys.executable, str(script), "--json", "--repeat", "2", "--sizes", "500", "4000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert [row["nodes"] for row in result["rows"]] == [500, 4000]
    assert result["last_over_first"] < 3  # quadratic cost would be 8
    assert result["rows"][1]["us_per_node"] < 200

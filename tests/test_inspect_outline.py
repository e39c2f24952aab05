"""Which lines a tree has, and that nothing is left out without being counted."""

import pytest

from tests.support_inspect import big_tree, decode, grow, shown_tree, small_tree, wrong
from treerl.inspect.model import view_tree
from treerl.inspect.outline import Rules, outline
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree


def counted(view, lines):
    """Spans that the lines show or say that they hide."""
    shown = sum(not line.is_elision for line in lines)
    return shown + sum(line.counts(view)[0] for line in lines if line.is_elision or line.folded)


def test_every_span_has_a_line_and_a_guide():
    view = view_tree(small_tree(), decode)
    lines = outline(view, Rules())
    assert [(line.row, line.guide) for line in lines] == [
        (0, ""),
        (1, "├─"),
        (2, "│ ├─"),
        (3, "│ └─"),
        (4, "├─"),
        (5, "└─"),
    ]


def test_an_only_child_stands_straight_below_its_parent():
    tree = Tree([1], seed=0, max_completion_length=99)
    row = ROOT
    for _ in range(3):
        row = grow(tree, row, "chunk", Finish.CUT)
    grow(tree, row, "a", verdict=wrong("1"))
    grow(tree, row, "b", verdict=wrong("2"))
    guides = [line.guide for line in outline(view_tree(tree, decode), Rules())]
    assert guides == ["", "", "", "", "├─", "└─"]


@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(max_children=2),
        Rules(min_share=0.02),
        Rules(only_right=True),
        Rules(only_right=True, max_children=1, min_share=0.01),
        Rules(folded={1, 2, 3, 40}),
        Rules(folded={5, 6}, max_children=1),
    ],
)
def test_no_span_is_dropped_silently(rules):
    view = view_tree(big_tree(400), decode)
    assert counted(view, outline(view, rules)) == 400


def test_only_right_leaves_paths_to_right_leaves_and_their_ends():
    view = view_tree(big_tree(400), decode)
    lines = outline(view, Rules(only_right=True))
    shown = {line.row for line in lines if not line.is_elision}
    assert set(view.right_leaves) <= shown
    assert all(view.nodes[row].right_leaves for row in shown)
    assert sum(line.counts(view)[2] for line in lines if line.is_elision) == 0


def test_the_best_path_is_never_left_out():
    view = view_tree(shown_tree(), decode)
    lines = outline(view, Rules(max_children=1, min_share=0.5))
    shown = {line.row for line in lines if not line.is_elision}
    assert {row for row, node in view.nodes.items() if node.best} <= shown


def test_each_rule_has_a_line_of_its_own_with_its_reason():
    view = view_tree(shown_tree(), decode)
    lines = outline(view, Rules(max_children=4, min_share=0.06))
    hidden = [(line.row, line.reason, len(line.hidden)) for line in lines if line.is_elision]
    few = "below 6 % of visits"
    assert hidden == [(2, few, 1), (1, few, 15), (0, few, 2)]
    lines = outline(view, Rules(max_children=4))
    assert {(line.row, line.reason, len(line.hidden)) for line in lines if line.is_elision} == {
        (1, "beyond the 4 most visited", 12)
    }


def test_what_a_person_opened_is_shown_whole():
    view = view_tree(shown_tree(), decode)
    lines = outline(view, Rules(max_children=4, opened={1}))
    assert not any(line.is_elision for line in lines)


def test_a_folded_span_counts_what_is_below_it():
    view = view_tree(shown_tree(), decode)
    folded = next(line for line in outline(view, Rules(folded={1})) if line.folded)
    assert folded.counts(view) == (18, 17, 1)

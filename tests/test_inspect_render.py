"""What the inspector shows of a hand-made tree: marks, figures, the best path, what was left out."""

import io

import numpy as np
import pytest
from rich.console import Console

from tests.support_inspect import decode, grow, small_tree, text_of
from treerl.inspect.model import as_json, view_tree
from treerl.inspect.render import render_rows, render_tree, sparkline
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT
from treerl.verifiers.verdict import Verdict


@pytest.fixture
def tree():
    return small_tree()


def test_view_counts_and_marks(tree):
    view = view_tree(tree, decode, question="2*3=", truth="6")
    assert [view.nodes[row].mark for row in (0, 1, 2, 3, 4, 5)] == list("●●◆◇▲○")
    assert view.nodes[0].visits == 3
    assert view.nodes[0].q == pytest.approx(1 / 3)
    assert view.nodes[1].value == pytest.approx(1 / 2)
    assert (view.nodes[0].leaves, view.nodes[0].right_leaves) == (4, 1)
    assert [row for row, node in view.nodes.items() if node.best] == [0, 1, 2]


def test_best_leaf_is_the_most_confident_right_one(tree):
    better = grow(tree, ROOT, "6.", Finish.STOP, Verdict("scored", 1.0, "6"), logprob=-0.1)
    assert view_tree(tree, decode).best_leaf == better


def test_a_tree_without_a_right_leaf_has_no_best_path(tree):
    tree.judge(2, Verdict("scored", 0.0, "6"))
    view = view_tree(tree, decode)
    assert view.best_leaf is None
    assert not any(node.best for node in view.nodes.values())


@pytest.mark.parametrize("width", [60, 100, 160])
def test_every_span_has_a_line_that_fits(tree, width):
    shown = text_of(
        render_tree(view_tree(tree, decode, question="2*3=", truth="6"), width=width), width
    )
    lines = shown.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for part in ("├─◆ =6.", "└─◇ =7.", "├─▲ 2+2", "└─○ 9^9", "timeout", "→ 6", "no answer"):
        assert part in shown, part


def test_no_escape_codes_without_a_terminal(tree):
    console = Console(file=io.StringIO(), width=100)
    console.print(render_tree(view_tree(tree, decode)))
    assert "\x1b" not in console.file.getvalue()


def test_hidden_branches_are_counted_and_the_best_path_is_kept(tree):
    for index in range(20):
        grow(tree, ROOT, f"{index}.", Finish.STOP, Verdict("scored", 0.0, str(index)))
    tree.recount()
    shown = text_of(render_tree(view_tree(tree, decode), max_children=4))
    assert "└─… 19 branches, 0/19 right: beyond the 4 most visited" in shown
    assert "├─◆" in shown


def test_sparkline_has_one_fixed_scale():
    assert sparkline(np.array([0.0, 0.0]), cells=8) == "▁▁"
    assert sparkline(np.array([1.0, 2.0]), cells=8) == "▄█"
    assert sparkline(np.array([9.0]), cells=8) == "█"


def test_brackets_in_cells_are_text_not_markup():
    assert "treerl[gguf]" in text_of(render_rows("", ("a",), [["pip install treerl[gguf]"]]))


def test_json_view_has_every_span(tree):
    values = as_json(view_tree(tree, decode, question="2*3=", truth="6"))
    assert len(values["nodes"]) == len(tree)
    assert values["best_leaf"] == 2
    assert values["nodes"][0]["text"] == "2*3="

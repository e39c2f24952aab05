"""Where the cursor goes and what a person's choices show, without a terminal."""

import pytest

from tests.support_inspect import (
    big_tree,
    drifted,
    library,
    no_policy,
    open_store,
    shown_tree,
    small_tree,
)
from treerl.errors import StoreError
from treerl.inspect.state import TreeState


@pytest.fixture
def look(tmp_path):
    """Makes a state over a tree put into a store."""
    opened = []

    def make(tree, score=drifted):
        store, ids = open_store(tmp_path, tree)
        opened.append(store)
        shelf = library(store, score)
        state = TreeState(shelf, shelf.open(ids[0]))
        state.prepare()
        return state

    yield make
    for store in opened:
        store.close()


def row_at(state, index):
    return state.lines[index].row


def test_right_leaves_are_visited_in_order_and_round_the_end(look):
    state = look(big_tree(300))
    right = state.opened.view.right_leaves
    index, seen = 0, []
    for _ in range(len(right) + 1):
        index = state.right_leaf(index, 1)
        seen.append(row_at(state, index))
    assert seen == [*right, right[0]]
    assert row_at(state, state.right_leaf(0, -1)) == right[-1]


def test_a_tree_without_a_right_leaf_has_nowhere_to_go(look):
    tree = small_tree()
    tree.verdicts.pop(2)
    tree.nodes.reward[2] = float("nan")
    assert look(tree).right_leaf(0, 1) is None


def test_a_jump_unfolds_what_hides_its_goal(look):
    state = look(small_tree())
    state.toggle(1)
    assert [line.row for line in state.lines] == [0, 1, 4, 5]
    assert row_at(state, state.right_leaf(0, 1)) == 2
    assert [line.row for line in state.lines] == [0, 1, 2, 3, 4, 5]


def test_search_finds_texts_and_answers_letter_case_aside(look):
    state = look(shown_tree())
    at = state.search_for(0, "GUESS 7")
    assert "guess 7" in state.opened.view.nodes[row_at(state, at)].text
    assert row_at(state, state.search_for(0, "袋")) == 5
    assert state.search_for(0, "nowhere") is None
    assert state.found == ""


def test_left_folds_then_goes_up_and_right_unfolds_then_goes_down(look):
    state = look(small_tree())
    assert state.outward(1) == 1
    assert state.lines[1].folded
    assert state.outward(1) == 0
    assert state.inward(1) == 1
    assert state.inward(1) == 2
    assert row_at(state, state.outward(2)) == 1


def test_siblings_are_stepped_through_and_end(look):
    state = look(small_tree())
    assert row_at(state, state.sibling(1, 1)) == 4
    assert row_at(state, state.sibling(1, -1)) == 1
    assert state.sibling(0, 1) == 0


def test_right_paths_alone_and_back(look):
    state = look(small_tree())
    at = state.toggle_right(4)
    assert row_at(state, at) == 0
    assert [line.row for line in state.lines if not line.is_elision] == [0, 1, 2]
    assert [line.hidden for line in state.lines if line.is_elision] == [(3,), (4, 5)]
    assert state.toggle(len(state.lines) - 1) == state.lines.index(
        next(line for line in state.lines if line.row == 4)
    )
    state.toggle_right(0)
    assert len(state.lines) == 6


def test_small_branches_are_left_out_and_come_back(look):
    state = look(shown_tree())
    assert sum(line.is_elision for line in state.lines) == 0
    state.toggle_small(0)
    assert [len(line.hidden) for line in state.lines if line.is_elision] == [4]
    state.toggle_small(0)
    assert len(state.lines) == 22


def test_estimators_turn_and_colour_the_tree(look):
    state = look(small_tree())
    state.paint_by(4)
    state.prepare()
    assert state.shade.title == "tree_value"
    state.turn_estimator(-1)
    state.prepare()
    assert state.shade.title == "rloo"
    state.turn_second(1)
    state.prepare()
    assert [shade.title for shade in state.beside] == ["tree_value"]
    state.turn_second(0)
    state.prepare()
    assert state.beside == ()


def test_what_cannot_be_had_is_said_and_the_screen_stays(look):
    state = look(small_tree(), no_policy)
    before = state.shade
    state.estimator, state.colour = "prl", "advantage"
    state.prepare()
    assert "prl: run handmade has no checkpoint: give --weights FOLDER" in state.note
    assert state.shade is before
    state.heat = "ratio"
    assert state.heat_shade() == (
        None,
        "no ratio: run handmade has no checkpoint: give --weights FOLDER",
    )


def test_the_path_is_copied_as_text(look):
    assert look(small_tree()).path_text(2) == "2*3=3+3=6."


def test_the_tree_is_saved_under_a_free_name(look, tmp_path):
    state = look(small_tree())
    first, second = state.save(tmp_path), state.save(tmp_path)
    assert (first.name, second.name) == ("tree-1.svg", "tree-1-2.svg")
    assert first.read_text(encoding="utf-8").startswith("<svg")
    with pytest.raises(StoreError, match="cannot write"):
        state.save(tmp_path / "absent")

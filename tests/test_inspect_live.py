"""The live view of hand-made states: curves, figures, which trees, what fits into the lines there are."""

import math

import numpy as np
import pytest
from rich.console import Group

from tests.test_inspect_render import decode, grow, text_of
from treerl.inspect.lines import tree_lines
from treerl.inspect.live import (
    Bar,
    Training,
    Watched,
    bar_line,
    best_and_contested,
    clock,
    count,
    curve,
    training_lines,
    watch_lines,
)
from treerl.inspect.model import view_tree
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

ROW = {
    "reward": 0.25,
    "entropy": 0.13,
    "step_time": 2.0,
    "num_tokens": 1_453_349,
    "credit/dropped_trees": 3,
    "replay/cached_leaves": 7,
    "replay/trees_with_cache": 4,
    "search/adopted_trees": 0,
    "search/depth_per_tree": 2.0,
    "search/leaves_per_tree": 6.0,
    "search/nodes_per_tree": 9.0,
    "search/prefill_tokens": 1200,
    "search/reused_tokens": 800,
    "search/solved": 0.5,
    "search/tokens_per_second": 23_463.6,
    "search/trees": 80,
    "train/total_tokens_trained": 628_679,
    "train/tokens_per_second": 14_967.5,
    "train/tree_token_ratio": 2.53,
    "train/trees": 65.0,
    "verify/error": 1,
    "verify/scored": 477,
    "verify/skipped": 0,
    "verify/timeout": 2,
}


def star(rewards, text="12345."):
    """A root with one leaf a reward; None: not judged."""
    tree = Tree(list(b"2*3="), seed=1, max_completion_length=60)
    for reward in rewards:
        verdict = None if reward is None else Verdict("scored", reward, "6")
        grow(tree, ROOT, text, Finish.STOP, verdict)
    tree.recount()
    return tree


def training(rows, total=10, **changes):
    state = Training(total)
    for step in range(1, rows + 1):
        state.add({**ROW, "step": step, **changes})
    return state


def shown(lines, width=100):
    return [text_of(Group(line), width).rstrip() for line in lines]


# Figures


def test_a_curve_goes_from_zero_to_its_top_and_leaves_unknown_blank():
    assert curve([0.0, 0.5, 1.0], 3, top=1.0) == "▁▄█"
    assert curve([0.2, math.nan], 2, top=0.2) == "█ "
    assert curve([0.0, 0.0, 1.0, 1.0], 2, top=1.0) == "▁█"
    assert curve([], 4, top=1.0) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(947, "947"), (23_463.6, "23.5k"), (1_453_349, "1.45M"), (2e9, "2G")]
)
def test_token_counts_are_short(value, text):
    assert count(value) == text


def test_clock_counts_hours():
    assert clock(3725) == "1:02:05"
    assert clock(-1) == "0:00:00"


def test_time_to_go_is_by_the_rate_since_this_process_took_up_the_work():
    bar = Bar("training", done=30, total=50, begun=100.0, first=20)
    assert bar.left(now=150.0) == pytest.approx(100.0)
    assert Bar("training", 20, 50, 100.0, first=20).left(now=150.0) is None
    assert "30/50  0:00:50 gone, 0:01:40 to go" in bar_line(bar, 150.0).plain


def test_a_run_goes_on_at_the_pace_of_its_latest_steps():
    state = training(5, total=10)
    assert state.seconds_left() == pytest.approx(10.0)
    for step in range(6, 27):
        state.add({**ROW, "step": step, "step_time": 1.0})
    state.total = 30
    assert state.seconds_left() == pytest.approx(4.0)


def test_the_view_has_every_figure():
    state = training(4)
    state.held_out = [("before", {"eval/pass@1": 0.3}), ("step 4", {"eval/pass@1": 0.4})]
    lines = shown(training_lines(state, width=120, height=40), 120)
    assert [line.split()[0] for line in lines] == [
        *("reward", "solved", "entropy", "held-out", "speed", "trees", "cache", "verdicts")
    ]
    text = "\n".join(lines)
    for part in (
        "0.250  ▂▂▂▂",
        "0 to 0.2, nats",
        "pass@1 0.300 → 0.400   step 4",
        "23.5k tok/s drawn   15k tok/s trained",
        "80 of 9.0 spans, 6.0 leaves, depth 2.0   packed x2.53   3 without signal",
        "7 leaves in 4 trees   40% of 2k prefix tokens reused",
        "477 scored   0 skipped   3 failed (2 timeouts, 1 errors)",
    ):
        assert part in text, part


def test_a_step_without_training_or_judged_leaves_is_shown():
    state = training(2, **{"reward": math.nan, "entropy": math.nan, "train/trees": 0.0})
    text = "\n".join(shown(training_lines(state, width=100, height=40)))
    assert "nan" in text
    assert "tok/s trained" not in text


@pytest.mark.parametrize("width", [40, 80, 130, 200])
@pytest.mark.parametrize("height", [1, 5, 14, 24, 60])
def test_the_view_keeps_within_its_lines_and_cells(width, height):
    state = training(3)
    view = view_tree(star([1.0, 0.0] * 10), decode, question="2*3=" * 30, truth="6")
    state.trees = [("best of step 3", view), ("most contested of step 3", view)]
    lines = training_lines(state, width=width, height=height)
    assert 0 < len(lines) <= height
    for line in lines:
        printed = text_of(Group(line), width).rstrip("\n")
        assert "\n" not in printed
        assert len(printed.rstrip()) <= width


def test_wide_terminals_have_two_trees_side_by_side():
    state = training(1)
    view = view_tree(star([1.0, 0.0]), decode, question="2*3=", truth="6")
    state.trees = [("best of step 1", view), ("most contested of step 1", view)]
    wide = shown(training_lines(state, width=130, height=40), 130)
    assert any("best of step" in line and "most contested" in line for line in wide)
    narrow = shown(training_lines(state, width=100, height=40))
    assert not any("best of step" in line and "most contested" in line for line in narrow)


def test_a_watched_search_counts_and_shows_its_tree():
    view = view_tree(star([1.0, 0.0, None]), decode, question="2*3=", truth="6")
    state = Watched(1200, 2.0, 3, 30, 10, judged=2, right=1, title="tree 1 of 2", view=view)
    text = "\n".join(shown(watch_lines(state, width=100, height=20)))
    assert "600 tok/s drawn   1.2k tokens so far" in text
    assert "3 leaves   75% of 40 prefix tokens reused" in text
    assert "2 judged   1 right" in text
    assert "tree 1 of 2  1 of 3 right  2*3=" in text
    assert len(watch_lines(state, width=100, height=2)) == 2


# Trees


def test_a_tree_has_a_line_a_span_with_its_guides():
    tree = Tree(list(b"2*3="), seed=1, max_completion_length=40)
    inner = grow(tree, ROOT, "3+3", Finish.CUT)
    grow(tree, inner, "=6.", Finish.STOP, Verdict("scored", 1.0, "6"))
    grow(tree, inner, "=7.", Finish.STOP, Verdict("scored", 0.0, "7"))
    grow(tree, ROOT, "x\ny", Finish.STOP, Verdict("timeout"))
    tree.recount()
    lines = shown(tree_lines(view_tree(tree, decode), width=60, most=10), 60)
    starts = ("├─ ● 0.50 n 2", "│  ├─ ◆ 1.00 n 1", "│  └─ ◇ 0.00 n 1", "└─ ○   -  n 0")
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    assert lines[1].endswith("=6. → 6")
    assert lines[3].endswith("x⏎y timeout")


def test_spans_that_do_not_fit_are_counted_and_the_best_path_stays():
    tree = star([0.0] * 12 + [1.0])
    lines = shown(tree_lines(view_tree(tree, decode), width=60, most=5))
    assert len(lines) == 5
    assert any("◆" in line for line in lines)
    assert lines[-1] == "… 9 more spans (0 right)"


def test_wide_characters_do_not_break_the_width():
    tree = star([1.0])
    view = view_tree(tree, lambda tokens: "計算" * 40)
    line = tree_lines(view, width=50, most=3)[0]
    assert line.cell_len <= 50


def test_what_a_model_wrote_never_steers_the_terminal():
    evil = "\x1b[2J\x07\u202egnirts\r"
    view = view_tree(star([1.0]), lambda tokens: evil, question=evil, truth=evil)
    view.nodes[1].answer = evil
    state = Training(1, trees=[("best of step 1", view)])
    text = "\n".join(line.plain for line in training_lines(state, width=120, height=20))
    assert "␛[2J␇�gnirts␍" in text
    assert not set("\x1b\x07\u202e\r") & set(text)


def test_the_best_tree_is_most_right_and_the_contested_most_divided():
    trees = [star([0.0, 0.0]), star([1.0, 0.0, 0.0]), star([1.0, 0.0]), star([1.0, 1.0, 0.0])]
    assert best_and_contested(trees) == (3, 2)


def test_of_trees_equally_right_the_one_with_longer_answers_is_best():
    assert best_and_contested([star([1.0], "1."), star([1.0], "1234567.")]) == (1, None)


def test_without_right_leaves_there_is_no_tree_to_show():
    assert best_and_contested([star([0.0]), star([None])]) == (None, None)
    assert best_and_contested([]) == (None, None)


def test_depth_counts_spans_below_the_prompt():
    tree = star([1.0])
    assert tree.depth() == 1
    tree.split(1, 2)
    assert tree.depth() == 2
    assert Tree(np.array([1]), seed=0, max_completion_length=3).depth() == 0

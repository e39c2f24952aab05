"""`treerl train` on a terminal: the view is there while it works, and the terminal is restored after it."""

import os
import signal

import pytest

from tests.support_engine import sets, signal_at
from tests.support_terminal import (
    ALTERNATE_SCREEN,
    HIDE_CURSOR,
    SHOW_CURSOR,
    plain,
    treerl_on_terminal,
)
from tests.test_engine_faults import limit_database
from treerl.replay.store import Store

SMALL = sets("search.trees_per_step=8", "eval.problems=2")


def is_restored(received):
    """The cursor was hidden, is shown again, and no other screen was left open."""
    return (
        0 <= received.rfind(HIDE_CURSOR) < received.rfind(SHOW_CURSOR)
        and ALTERNATE_SCREEN not in received
    )


def test_a_run_on_a_terminal_shows_its_view_and_ends_with_the_summary(tmp_path):
    code, received = treerl_on_terminal(tmp_path, "train", "quickstart", *SMALL)
    assert code == 0
    assert is_restored(received)
    shown = plain(received)
    assert "0 to 1, mean of the leaves" in shown
    assert "most contested of step" in shown
    summary = shown[shown.rfind("held-out  before") :]
    assert "3 steps in" in summary
    assert "mean of the leaves" not in summary


def dumb():
    os.environ["TERM"] = "dumb"


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    code, received = treerl_on_terminal(tmp_path, "train", "quickstart", *SMALL, prepare=dumb)
    assert code == 0
    assert "\x1b" not in received
    assert "step 1/3  reward" in received
    assert "step 3/3  reward" in received


def test_ctrl_c_restores_the_terminal_and_says_how_to_go_on(tmp_path):
    code, received = treerl_on_terminal(
        tmp_path,
        *("train", "quickstart", *SMALL),
        prepare=signal_at,
        given=("treerl.engine.train:put_tree", 12, signal.SIGINT),
    )
    assert code == 1
    assert is_restored(received)
    last = " ".join(plain(received[received.rfind(SHOW_CURSOR) :]).split())
    assert last.startswith("step 1/3 reward")
    assert "Go on with: treerl train --resume runs/quickstart-seed0" in last
    assert "Traceback" not in received


def test_a_watched_search_shows_its_tree_and_keeps_a_line_of_each(tmp_path):
    code, received = treerl_on_terminal(
        tmp_path, *("search", "quickstart", *SMALL, "-n", "3", "--watch")
    )
    assert code == 0
    assert is_restored(received)
    shown = plain(received)
    assert "prefix tokens reused" in shown
    assert "tree 1 of 3  " in shown
    for number in (1, 2, 3):
        assert f"tree {number}/3: " in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_ctrl_c_in_a_watched_search_restores_the_terminal(tmp_path, number):
    code, received = treerl_on_terminal(
        tmp_path,
        *("search", "quickstart", *SMALL, "-n", "3", "--watch"),
        prepare=signal_at,
        given=("treerl.search.scheduler:_Run.sample", 4, number),
    )
    assert code == 1
    assert is_restored(received)
    assert "interrupted" in plain(received[received.rfind(SHOW_CURSOR) :])


def test_an_error_restores_the_terminal_and_is_said_after_the_view(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/empty.db") as store, store.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    code, received = treerl_on_terminal(
        tmp_path, *("train", "quickstart", *SMALL), prepare=limit_database, given=(pages,)
    )
    assert code == 1
    assert is_restored(received)
    last = " ".join(plain(received[received.rfind(SHOW_CURSOR) :]).split())
    assert "the disk is full" in last

"""The interactive app, driven by keys without a terminal: what its screen shows after each."""

import asyncio
import time

import pytest

pytest.importorskip("textual", reason="the interactive app is the extra `tui`")

from tests.support_inspect import (
    big_tree,
    drifted,
    library,
    no_policy,
    open_store,
    put,
    shown_tree,
    small_tree,
)
from treerl.inspect.app import HelpScreen, InspectApp, TreeScreen
from treerl.inspect.forest import of_tree, problem_items
from treerl.inspect.forest_screen import ForestScreen
from treerl.inspect.scroller import Lines
from treerl.inspect.state import TreeState


def make(store, score=drifted, tree_id=None):
    shelf = library(store, score)

    def read(item):
        if item is None:
            return problem_items(shelf, None, 100)
        return [of_tree(info, entropy) for info, entropy in shelf.trees(item.problem, None)]

    return InspectApp(
        "a cache", read, lambda tree: TreeState(shelf, shelf.open(tree)), tree_id=tree_id
    )


def screen_text(app):
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


def drive(app, steps, size=(100, 40)):
    """Runs `steps(pilot, seen)` on the app; `seen()` is the text of the screen."""

    async def run():
        async with app.run_test(size=size) as pilot:
            await steps(pilot, lambda: screen_text(app))

    asyncio.run(run())


async def until(pilot, holds, seconds=20.0):
    """Waits until `holds()`; fails with what is on the screen."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, screen_text(pilot.app)
        await pilot.pause(0.02)
    await pilot.app.workers.wait_for_complete()
    await pilot.pause(0.1)


def on(app, kind):
    return lambda: isinstance(app.screen, kind)


def cursor_line(seen):
    return next(line for line in seen().splitlines() if line.startswith("▶"))


@pytest.fixture
def store(tmp_path):
    opened, _ = open_store(tmp_path, small_tree(), shown_tree(), question="2*3=")
    with opened:
        put(opened, big_tree(200), run="big", question="a big one")
        yield opened


def test_from_the_forest_to_a_tree_and_back(store):
    app = make(store)

    async def steps(pilot, seen):
        await until(pilot, on(app, ForestScreen))
        assert "2 of 2, by newest" in seen()
        assert "a big one" in cursor_line(seen)
        await pilot.press("down", "enter")
        await until(pilot, lambda: "trees of 2*3=" in seen())
        assert "handmade" in cursor_line(seen)
        await pilot.press("end", "enter")
        await until(pilot, on(app, TreeScreen))
        assert (
            "tree 1 · 1/4 right · truth 6 · 6 spans · 19 tokens drawn · handmade step 0" in seen()
        )
        assert "● the prompt, 4 tokens" in cursor_line(seen)
        await pilot.press("n")
        await until(pilot, lambda: "◆ span 2" in seen())
        assert "◆ =6.  → 6" in cursor_line(seen)
        assert "right, reward 1, parsed '6'" in seen()
        await pilot.press("escape", "escape")
        await until(pilot, lambda: "2 of 2, by newest" in seen())

    drive(app, steps)


def test_the_forest_is_filtered_and_sorted_by_keys(store):
    app = make(store)

    async def steps(pilot, seen):
        await until(pilot, on(app, ForestScreen))
        await pilot.press("slash", *"trees>1", "enter")
        await until(pilot, lambda: "1 of 2, by newest, filter: trees>1" in seen())
        assert "2*3=" in cursor_line(seen)
        await pilot.press("slash", *["backspace"] * 7, *"rate<", "enter")
        await until(pilot, lambda: "filter 'rate<': give rate" in seen())
        assert "filter: trees>1" in seen()
        await pilot.press("slash", *["backspace"] * 7, "enter", "o", "o")
        await until(pilot, lambda: "2 of 2, by trees" in seen())
        assert "2*3=" in cursor_line(seen)

    drive(app, steps)


def test_folds_search_and_right_paths(store):
    app = make(store, tree_id=2)

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        await pilot.press("down", "space")
        await until(pilot, lambda: "⊞ 18 spans, 1/17 right" in seen())
        await pilot.press("slash", *"guess 7", "enter")
        await until(pilot, lambda: "guess 7" in cursor_line(seen))
        assert "⊞" not in seen()
        await pilot.press("c")
        await until(pilot, lambda: "15 branches, 0/15 right: without a right leaf" in seen())
        assert "guess" not in seen()
        await pilot.press("c", "x")
        await until(pilot, lambda: "4 branches, 0/4 right: beyond the 12 most visited" in seen())

    drive(app, steps)


def test_colour_estimators_and_comparison(store):
    app = make(store, tree_id=1)

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        for number, legend in (
            ("2", "visits 0 to 3"),
            ("3", "entropy 0 to 2"),
            ("5", "age 0 to 2"),
        ):
            await pilot.press(number)
            await until(pilot, lambda legend=legend: f"colour: {legend}" in seen())
        await pilot.press("4")
        await until(pilot, lambda: "colour: tree_value ±" in seen())
        await pilot.press("v")
        await until(pilot, lambda: "opposite signs" in seen())
        titles = next(line for line in seen().splitlines() if "row" in line and "span" in line)
        assert titles.index("tree_value") < titles.index(app.screen.state.second)
        await pilot.press("V")
        await until(pilot, lambda: "opposite signs" not in seen())

    drive(app, steps)


def test_an_estimator_without_a_policy_says_why(store):
    app = make(store, no_policy, tree_id=1)

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        app.screen.state.estimator = "deepsearch"
        await pilot.press("e")
        await until(pilot, lambda: "has no checkpoint: give --weights" in seen())
        await pilot.press("n", "h", "h", "h")
        await until(pilot, lambda: "no ratio: run handmade has no checkpoint" in seen())

    drive(app, steps)


def test_siblings_details_and_help(store):
    app = make(store, tree_id=1)

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        await pilot.press("down", "down", "d")
        await until(pilot, lambda: "=⟦6⟧." in seen())
        await pilot.press("D")
        await until(pilot, lambda: "all begin with =" in seen())
        await pilot.press("J")
        await until(pilot, lambda: "◇ =7." in cursor_line(seen))
        await pilot.press("D", "t", "z")
        await until(pilot, lambda: "ids: 61 55 46" in seen() and "the prompt" not in seen())
        await pilot.press("escape", "question_mark")
        await until(pilot, on(app, HelpScreen))
        assert "previous right leaf" in seen()
        await pilot.press("escape")
        await until(pilot, on(app, TreeScreen))

    drive(app, steps)


def test_a_wide_screen_has_the_details_beside_the_tree(store):
    app = make(store, tree_id=1)

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        assert any("● the prompt" in line and "● span 0" in line for line in seen().splitlines())

    drive(app, steps, size=(180, 30))


def test_an_empty_cache_says_what_fills_it(tmp_path):
    opened, _ = open_store(tmp_path)
    app = make(opened)

    async def steps(pilot, seen):
        await until(pilot, on(app, ForestScreen))
        assert "no trees here yet: `treerl search quickstart` grows some" in seen()
        await pilot.press("enter", "down", "o")

    with opened:
        drive(app, steps)


def test_a_key_draws_only_the_lines_on_the_screen(tmp_path, monkeypatch):
    opened, ids = open_store(tmp_path, big_tree(5000))
    app = make(opened, tree_id=ids[0])
    drawn = []
    real = TreeScreen.draw
    monkeypatch.setattr(
        TreeScreen,
        "draw",
        lambda self, index, width: drawn.append(index) or real(self, index, width),
    )

    async def steps(pilot, seen):
        await until(pilot, on(app, TreeScreen))
        lines = app.screen.query_one(Lines)
        assert lines.count == 5000
        for key in ("down", "pagedown", "end", "n"):
            drawn.clear()
            await pilot.press(key)
            await pilot.pause(0.1)
            assert 0 < len(set(drawn)) <= lines.size.height + 2, key

    with opened:
        drive(app, steps)

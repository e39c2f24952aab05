"""Key to paint in the inspector on a stored tree: CPU time from a key until the screen has been drawn.

`python scripts/bench_inspect.py [--nodes 5000] [--json]`; needs the extra `tui`. The app runs without a
terminal (textual's pilot), on a synthetic tree that is read back from a store. Opening is CPU time too.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support_inspect import big_tree, drifted, library, open_store  # noqa: E402
from treerl.inspect.app import InspectApp, TreeScreen  # noqa: E402
from treerl.inspect.state import TreeState  # noqa: E402

KEYS = (
    ("down", "down", 30),
    ("page down", "pagedown", 30),
    ("last line", "end", 1),
    ("first line", "home", 1),
    ("next right leaf", "n", 30),
    ("fold, unfold", "space", 10),
    ("right paths alone, all", "c", 6),
    ("small branches", "x", 6),
    ("colour by visits", "2", 3),
    ("colour by advantage", "4", 3),
    ("compare estimators", "v", 5),
    ("token heat", "h", 8),
)


async def key_to_paint(app: InspectApp, key: str) -> float:
    """CPU milliseconds from a key to the last paint that follows it, with the app's work in between."""
    painted = [begun := time.process_time()]
    real = app._display

    def display(screen: object, renderable: object) -> None:
        real(screen, renderable)
        painted.append(time.process_time())

    app._display = display
    app.simulate_key(key)
    await asyncio.sleep(0.02)
    await app.workers.wait_for_complete()
    await asyncio.sleep(0.02)
    app._display = real
    return 1000 * (painted[-1] - begun)


async def measure(app: InspectApp, size: tuple[int, int]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    async with app.run_test(size=size) as pilot:
        while not isinstance(app.screen, TreeScreen):
            await pilot.pause(0.05)
        await pilot.pause(0.5)
        for name, key, times in KEYS:
            found = []
            for _ in range(times):
                found.append(await key_to_paint(app, key))
                await pilot.pause(0.12)  # the details follow when the cursor rests
            row = {"key": name, "times": times, "median_ms": statistics.median(found)}
            rows.append(row | {"worst_ms": max(found)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--width", type=int, default=120)
    parser.add_argument("--height", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store, ids = open_store(Path(scratch), big_tree(given.nodes))
        with store:
            shelf = library(store, drifted)
            begun = time.process_time()
            state = TreeState(shelf, shelf.open(ids[0]))
            state.prepare()
            opened = 1000 * (time.process_time() - begun)
            app = InspectApp("bench", lambda of: [], lambda tree: state, tree_id=ids[0])
            rows = asyncio.run(measure(app, (given.width, given.height)))
    tokens = len(state.opened.tree.tokens)
    result = {"nodes": given.nodes, "tokens": tokens, "open_ms": opened, "keys": rows}
    if given.json:
        print(json.dumps(result))
        return
    print(
        f"{given.nodes:,d} spans, {tokens:,d} tokens; read and laid out in {opened:.0f} ms of CPU"
    )
    print(f"{'key':24s} {'times':>5s} {'median ms':>9s} {'worst ms':>9s}")
    for row in rows:
        print("{key:24s} {times:5d} {median_ms:9.1f} {worst_ms:9.1f}".format(**row))


if __name__ == "__main__":
    main()

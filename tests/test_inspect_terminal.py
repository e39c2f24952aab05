"""A person's session: a real search, then the inspector in a real terminal (tmux), driven by keys."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support_engine import sets, treerl

pytest.importorskip("textual", reason="the interactive app is the extra `tui`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]

ROOT = Path(__file__).parents[1]
DEEPSEARCH = (
    "search={kind='deepsearch', num_generations=8, num_initial=4, chunk_tokens=8, trees_per_step=3}"
)


class Terminal:
    """A shell in a tmux of its own (at `socket`), of a given size, working in `folder`."""

    def __init__(self, socket: Path, folder: Path, width: int, height: int) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), "sh")
        self.type(f"cd {shlex.quote(str(folder))}; export PS1='ready> '; clear")

    def _run(self, *arguments: str) -> str:
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        }
        done = subprocess.run(
            [*self._tmux, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env=environment,
        )
        return done.stdout

    def type(self, line: str) -> None:
        self._run("send-keys", "-l", line)
        self.keys("Enter")

    def keys(self, *keys: str) -> None:
        for key in keys:
            self._run("send-keys", key)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def until(self, *parts: str, seconds: float = 300.0) -> str:
        """The screen once it has all `parts`."""
        end = time.monotonic() + seconds
        while not all(part in (seen := self.screen()) for part in parts):
            assert time.monotonic() < end, f"{parts} not on the screen:\n{seen}"
            time.sleep(0.1)
        return seen

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, timeout=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of three DeepSearch trees of the embedded policy."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        kept = [pair for pair in zip(*[iter(sets())] * 2, strict=True) if "search." not in pair[1]]
        flat = [part for pair in kept for part in pair]
        done = treerl(
            "search",
            "quickstart",
            *flat,
            "--set",
            DEEPSEARCH,
            "-n",
            "3",
            "--json",
            "--set",
            "replay.url='sqlite:///cache.db'",
        )
    assert done.exit_code == 0
    return folder, done.json["trees"]


@pytest.fixture
def terminal(cache, tmp_path):
    opened = Terminal(tmp_path / "tmux", cache[0], 100, 30)
    yield opened
    opened.close()


COMMAND = f"{shlex.quote(sys.executable)} -c 'from treerl.cli import app; app()' inspect"
URL = "--url sqlite:///cache.db"


def test_a_person_walks_from_the_forest_to_a_right_leaf(cache, terminal):
    terminal.type(f"{COMMAND} -i {URL}")
    terminal.until("3 of 3, by newest", "pass rate")
    terminal.keys("o")
    terminal.until("by pass rate")
    terminal.keys("End", "Enter")
    terminal.until("● the prompt", "span 0", "tokens drawn")
    terminal.keys("n")
    terminal.until("◆ span", "right, reward 1, parsed", "policy   embedded")
    terminal.keys("c")
    terminal.until("right: without a right leaf")
    terminal.keys("4")
    terminal.until("colour: sibling_rloo ±")
    terminal.keys("?")
    terminal.until("previous right leaf")
    terminal.keys("Escape")
    terminal.until("colour: sibling_rloo ±")
    terminal.keys("q")
    terminal.until("ready>")
    terminal.type("echo left $?")
    seen = terminal.until("left 0")
    assert "sibling_rloo" not in seen


def test_the_terminal_is_given_back_after_an_interrupt(cache, terminal):
    terminal.type(f"{COMMAND} {cache[1][0]} -i {URL}")
    terminal.until("● the prompt")
    terminal.keys("C-c")
    terminal.until("ready>")
    terminal.type("stty -a | grep -c ' echo'; printf 'so %s\\n' it\\ is")
    terminal.until("so it is")


def test_a_narrow_terminal_shows_the_printed_tree(cache, tmp_path):
    narrow = Terminal(tmp_path / "tmux", cache[0], 60, 40)
    try:
        narrow.type(f"{COMMAND} {cache[1][0]} {URL}; echo ended $?")
        seen = narrow.until("ended 0")
    finally:
        narrow.close()
    assert "row     q  n span" in seen
    assert "● the prompt" in seen


def test_without_a_terminal_the_app_says_so(cache, terminal):
    terminal.type(f"{COMMAND} -i {URL} | cat")
    terminal.until("-i needs a terminal for input and output")

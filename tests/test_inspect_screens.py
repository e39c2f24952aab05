"""What is printed at three widths, against recorded screens; `scripts/record_golden.py` records them anew."""

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.support_inspect import QUESTION, WIDTHS, decode, shown_tree, small_tree, snapshots
from treerl.inspect.model import view_tree
from treerl.inspect.outline import Rules, outline
from treerl.inspect.render import layout_of, render_line, render_tree
from treerl.inspect.shade import SHADES, Credit, shade_of

FOLDER = Path(__file__).parent / "golden"
KINDS = ("tree", "right", "compare", "span", "cached", "siblings", "forest")


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    return snapshots(tmp_path_factory.mktemp("screens"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_screens_are_as_recorded(screens, kind, width):
    name = f"{kind}_{width}"
    recorded = (FOLDER / f"inspect_{name}.txt").read_text(encoding="utf-8")
    assert screens[name] == recorded


@pytest.mark.parametrize("width", WIDTHS)
def test_no_screen_is_wider_than_the_terminal(screens, width):
    for kind in KINDS:
        lines = screens[f"{kind}_{width}"].splitlines()
        assert max(cell_len(line) for line in lines) <= width, kind


@pytest.mark.parametrize("width", [40, 41, 57, 73, 89, 95, 120])
@pytest.mark.parametrize("shade", SHADES)
def test_every_line_fits_whatever_colour_carries(width, shade):
    tree = shown_tree()
    view = view_tree(tree, decode, question=QUESTION, truth="6")
    credit = Credit("grpo", tree.tokens.entropy - 1.0)
    layout = layout_of(view, width, shade_of(shade, view, tree, credit))
    for line in outline(view, Rules(max_children=3, folded={2})):
        assert render_line(view, line, layout).cell_len <= width


def printed(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    console.print(render_tree(view_tree(small_tree(), decode), width=100))
    return console.file.getvalue()


def test_colour_is_there_on_a_terminal_and_goes_with_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "48;2;" in printed(monkeypatch)
    plain = printed(monkeypatch, NO_COLOR="1")
    assert "48;2;" not in plain
    assert "38;2;" not in plain


def test_control_codes_of_a_model_do_not_reach_the_terminal(screens):
    assert not any("\x1b" in text for text in screens.values())
    assert "␛[31m5" in screens["tree_100"]

"""Scales of colour: levels, what stands above and below the middle, and the figures beside them."""

import numpy as np
import pytest

from tests.support_inspect import decode, small_tree
from treerl.inspect.model import view_tree
from treerl.inspect.shade import ABOVE, FALLING, RISING, Credit, Scale, shade_of, strip_of


def test_levels_rise_to_the_top_and_stay_there():
    scale = Scale(0.0, 2.0)
    assert [scale.level(v) for v in (0.0, 0.4, 1.0, 1.9, 2.0, 9.0)] == [0, 1, 3, 5, 5, 5]
    assert scale.level(None) == scale.level(float("nan")) == scale.level(-1.0) == 0


def test_a_falling_scale_rises_towards_its_low_end():
    scale = Scale(0.0, -3.0)
    assert [scale.level(v) for v in (0.0, -1.6, -3.0, -8.0)] == [0, 3, 5, 5]


def test_values_part_at_the_middle():
    scale = Scale(-1.0, 1.0, middle=0.0)
    assert scale.level(0.5) == -scale.level(-0.5) == 3
    assert scale.style(1.0) == ABOVE[-1]
    assert scale.style(-1.0) == FALLING[-1]
    assert scale.style(0.0) == ""


def test_the_legend_shows_both_ends_and_the_middle():
    assert Scale(0.0, 2.0).ticks() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert Scale(0.5, 2.0, middle=1.0).ticks() == [0.5, 0.75, 1.0, 1.5, 2.0]


def test_each_ramp_grows_darker_step_by_step():
    for ramp in (RISING, ABOVE, FALLING):
        light = [
            sum(int(c[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.6), (5, 0.1)))
            for c in (style.rpartition(" ")[2] for style in ramp[1:])
        ]
        assert light == sorted(light, reverse=True)


def test_blocks_hang_from_the_top_below_the_middle():
    scale = Scale(-1.0, 1.0, middle=0.0)
    blocks = [block for block, _ in strip_of(scale, np.array([1.0, 0.3, 0.0, -0.3, -1.0]), cells=5)]
    assert blocks == ["▄", "▂", "─", "▔", "▀"]


def test_unknown_values_are_blank():
    assert strip_of(Scale(0, 1), np.array([np.nan, 1.0]), cells=2)[0] == (" ", "")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("q", ["+0.33", "+0.50", "+1.00", "+0.00", "+0.00", "-"]),
        ("visits", ["3", "2", "1", "1", "1", "0"]),
        ("entropy", ["-", "0.25", "0.25", "1.50", "0.25", "0.25"]),
        ("age", ["-", "1", "0", "0", "2", "0"]),
    ],
)
def test_each_shade_has_a_figure_a_span(name, figures):
    tree = small_tree()
    shade = shade_of(name, view_tree(tree, decode), tree)
    assert [shade.figure(row) for row in range(6)] == figures


def test_credit_is_the_mean_of_a_spans_tokens_on_a_scale_of_its_own():
    tree = small_tree()
    paid = np.full(len(tree.tokens), np.nan)
    paid[tree.nodes.start[2] : tree.nodes.stop[2]] = (0.2, 0.4, 0.6)
    shade = Credit("mine", paid).shade(tree)
    assert shade.values[2] == pytest.approx(0.4)
    assert shade.values[3] is None
    assert (shade.scale.low, shade.scale.high) == (-0.6, 0.6)
    assert shade.legend == "mine ±0.6"

"""Cut rules on hand-made entropies."""

import numpy as np
import pytest

from tests.support_search import EOS, decode_tokens, span
from treerl.config import EntropyTopK, EntropyWindow, RandomCut
from treerl.search.cut import (
    Cut,
    TokenLengths,
    chosen_by_token,
    points_before,
    top_k,
    window_means,
    window_starts,
    window_threshold,
)
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree


def one_rollout(tokens, entropies, finish=Finish.STOP):
    tree = Tree([2, 3], seed=1, max_completion_length=20)
    leaf = tree.append(tree.request(ROOT, 1), 0, span(tokens, finish, entropies=entropies))
    return tree, leaf


def cut(settings):
    return Cut(settings, TokenLengths(decode_tokens))


@pytest.mark.parametrize(("k", "expected"), [(1, [4]), (3, [4, 3, 1]), (20, [4, 3, 1])])
def test_top_k_filters_first_and_skips_position_0_and_special_tokens(k, expected):
    # H = [9, .1, 3, .2, 2], index 2 special (token 0). Long tokens are 7 and above.
    tree, leaf = one_rollout([7, 8, 0, 9, 7], [9, 0.1, 3, 0.2, 2], Finish.LENGTH)
    assert cut(EntropyTopK(top_k=k)).candidates(tree, leaf, np.nan).tolist() == expected


def test_no_token_qualifies():
    tree, leaf = one_rollout([7, 3, 4, EOS], [9, 1, 1, 1])
    assert len(cut(EntropyTopK(min_characters=2)).candidates(tree, leaf, np.nan)) == 0
    assert cut(EntropyTopK(min_characters=1)).candidates(tree, leaf, np.nan).tolist() == [1, 2]


def test_the_stop_token_is_never_a_site_even_where_its_text_is_long():
    for rule in (EntropyTopK(), RandomCut(), EntropyWindow(width=1)):
        tree, leaf = one_rollout([7, 8, 9], [0, 1, 9])
        assert cut(rule).candidates(tree, leaf, 0.5).tolist() == [1]
        tree, leaf = one_rollout([7, 8, 9], [0, 1, 9], Finish.LENGTH)
        assert sorted(cut(rule).candidates(tree, leaf, 0.5).tolist()) == [1, 2]


def test_unknown_entropies_do_not_qualify():
    assert top_k(np.array([1, np.nan, 2]), np.ones(3, bool), 5).tolist() == [2, 0]


def test_ties_go_to_the_earlier_position():
    assert top_k(np.array([1.0, 2, 2, 2]), np.ones(4, bool), 2).tolist() == [1, 2]


def test_window_means():
    assert window_means(np.array([0.0, 4, 0, 0, 4]), 4).tolist() == [1, 2]
    assert window_means(np.array([0.0, 4]), 4).tolist() == []


def test_a_lone_spike_is_diluted_and_two_are_not():
    starts = window_starts(np.array([0.0, 4, 0, 0, 4]), np.ones(5, bool), 4, 1.5)
    assert starts.tolist() == [1]


def test_windows_over_the_threshold_do_not_overlap():
    entropies = np.array([3.0] * 6 + [0, 0])
    assert window_starts(entropies, np.ones(8, bool), 2, 2.0).tolist() == [0, 2, 4]


def test_the_threshold_is_the_mean_of_token_quantiles_of_the_rollouts():
    # quantile .5: medians 1 and 10
    rollouts = [np.array([0.0, 1, 9]), np.array([10.0, 10]), np.array([np.nan])]
    assert window_threshold(rollouts, 0.5) == pytest.approx(5.5)
    assert np.isnan(window_threshold([np.array([np.nan])], 0.5))


def test_each_token_id_is_decoded_once():
    asked = []

    def decode(ids):
        asked.extend(ids)
        return decode_tokens(ids)

    lengths = TokenLengths(decode)
    assert lengths(np.array([7, 3, 7, EOS])).tolist() == [2, 1, 2, -1]
    assert lengths(np.array([3, 8, 8])).tolist() == [1, 2, 2]
    assert sorted(asked) == [EOS, 3, 7, 8]


def test_whitespace_counts_as_no_characters():
    assert TokenLengths(lambda ids: [" \n" for _ in ids])(np.array([4])).tolist() == [0]


def test_which_rules_read_the_sampled_token():
    assert chosen_by_token(EntropyWindow())
    assert chosen_by_token(EntropyTopK(min_characters=2))
    assert not chosen_by_token(EntropyTopK(min_characters=1))
    assert not chosen_by_token(RandomCut())


def test_points_are_named_by_the_draw_that_owns_the_token():
    tree, first = one_rollout([7, 8, 9, 7, 8, 9], [1] * 6)
    node = tree.node_at(1, 2)
    branch = tree.append(tree.request(node, 1), 0, span([5, 6, 4]))
    assert points_before(tree, branch, [1, 2, 3, 4]) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert points_before(tree, first, [1, 2, 5]) == [(1, 1), (1, 2), (1, 5)]
    for position, (draw, offset) in zip(
        [1, 2, 3], points_before(tree, branch, [1, 2, 3]), strict=True
    ):
        expected = tree.path_tokens(branch)[: 2 + position].tolist()
        assert tree.path_tokens(tree.node_at(draw, offset)).tolist() == expected

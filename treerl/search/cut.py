"""Where to branch a finished rollout: cut rules over its token entropies.

A rule gives candidate positions; the strategy draws one of them. Position p stands for the branch before
token p: the prefix [0, p) is kept, token p is drawn again. Position 0 (that would be a rollout of its own),
special tokens and the stop token never qualify. Opening the branches is the strategies' business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from treerl.config import CutSettings, EntropyTopK, EntropyWindow, RandomCut
from treerl.search.sampler import Finish, Origin
from treerl.search.tree import Tree

IntArray = NDArray[Any]
FloatArray = NDArray[Any]
BoolArray = NDArray[np.bool_]

_UNREAD = -2


@dataclass(slots=True)
class TokenLengths:
    """Characters of a token's stripped text, -1 for special tokens ("" from `decode`); each id read once.

    known: int32, by token id.
    """

    decode: Callable[[Sequence[int]], list[str]]
    known: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    def __call__(self, tokens: IntArray) -> IntArray:
        """int32, one a token."""
        missing = int(tokens.max(initial=-1)) + 1 - len(self.known)
        if missing > 0:
            self.known = np.append(self.known, np.full(missing, _UNREAD, dtype=np.int32))
        lengths = self.known[tokens]
        new = np.unique(tokens[lengths == _UNREAD]).tolist()
        if not new:
            return lengths
        texts = self.decode(new)
        for token, text in zip(new, texts, strict=True):
            self.known[token] = len(text.strip()) if text else -1
        return self.known[tokens]


def top_k(entropies: FloatArray, allowed: BoolArray, k: int) -> IntArray:
    """The `k` allowed positions of highest entropy, highest first (CURE: filter first, then top-k).

    Fewer if fewer are allowed; unknown (NaN) entropies do not qualify; ties go to the earlier position.
    """
    positions = np.flatnonzero(allowed & np.isfinite(entropies))
    return positions[np.argsort(-entropies[positions], kind="stable")][:k]


def window_means(entropies: FloatArray, width: int) -> FloatArray:
    """Mean entropy of every window of `width` tokens, by its first token; float, max(0, T - width + 1)."""
    if len(entropies) < width:
        return np.empty(0)
    views = np.lib.stride_tricks.sliding_window_view(entropies.astype(np.float64), width)
    return np.asarray(views.mean(axis=1))


def window_threshold(rollouts: Sequence[FloatArray], quantile: float) -> float:
    """Mean over rollouts of each one's quantile of *token* entropy (ARES, arXiv 2510.08457).

    Rollouts with unknown entropies are left out; NaN if none remains.
    """
    known = [entropies for entropies in rollouts if np.isfinite(entropies).all()]
    if not known:
        return np.nan
    return float(np.mean([np.quantile(entropies, quantile) for entropies in known]))


def window_starts(
    entropies: FloatArray, allowed: BoolArray, width: int, threshold: float
) -> IntArray:
    """Starts of windows over the threshold, ascending; windows do not overlap, so one branch a window."""
    means = window_means(entropies, width)
    starts: list[int] = []
    for position in np.flatnonzero((means > threshold) & allowed[: len(means)]).tolist():
        if not starts or position >= starts[-1] + width:
            starts.append(position)
    return np.array(starts, dtype=np.int64)


def cut_origin(settings: CutSettings) -> Origin:
    """What the branches of a rule are recorded as."""
    match settings:
        case EntropyTopK():
            return Origin.ENTROPY
        case EntropyWindow():
            return Origin.WINDOW
        case RandomCut():
            return Origin.RANDOM
        case _:
            assert_never(settings)


def chosen_by_token(settings: CutSettings) -> bool:
    """Does the rule read the sampled tokens, so that the original continuation is no fair sample of the site?

    A window looks ahead of its start; a filter on the token's text reads the very token that is drawn again.
    Entropy itself is known before the token is.
    """
    match settings:
        case EntropyTopK():
            return settings.min_characters > 1
        case EntropyWindow():
            return True
        case RandomCut():
            return False
        case _:
            assert_never(settings)


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut rule with its token filter."""

    settings: CutSettings
    lengths: TokenLengths

    def threshold(self, tree: Tree, leaves: Sequence[int]) -> float:
        """What window means are compared with, from all first rollouts; NaN for rules without one."""
        if not isinstance(self.settings, EntropyWindow):
            return np.nan
        return window_threshold(
            [response_entropies(tree, u) for u in leaves], self.settings.quantile
        )

    def candidates(self, tree: Tree, leaf: int, threshold: float) -> IntArray:
        """Positions in the response of `leaf` where the rule would branch; may be empty."""
        entropies = response_entropies(tree, leaf)
        lengths = self.lengths(tree.completion_tokens(leaf))
        allowed = lengths >= 0
        allowed[0] = False
        if tree.nodes.at("finish", leaf) == Finish.STOP:
            allowed[-1] = False
        match self.settings:
            case EntropyTopK(top_k=k, min_characters=characters):
                return top_k(entropies, allowed & (lengths >= characters), k)
            case EntropyWindow(width=width):
                return window_starts(entropies, allowed, width, threshold)
            case RandomCut():
                return np.flatnonzero(allowed)
            case _:
                assert_never(self.settings)


def response_entropies(tree: Tree, leaf: int) -> FloatArray:
    """Entropies of the tokens beyond the prompt, float32[T]."""
    entropies: FloatArray = tree.tokens.entropy[tree.path_index(leaf)[tree.n_prompt :]]
    return entropies


def points_before(tree: Tree, leaf: int, positions: Sequence[int]) -> list[tuple[int, int]]:
    """(draw, offset) of the branch points before some response tokens of a path; positions ascend from 1."""
    at = tree.nodes.at
    path = iter(tree.path(leaf))
    points = []
    begin = stop = shift = draw = 0
    for position in positions:
        depth = tree.n_prompt + position
        while stop < depth:
            node = next(path)
            begin, draw, start = at("offset", node), at("draw", node), at("start", node)
            stop = begin + at("stop", node) - start
            shift = start - tree.draws.at("start", draw)
        points.append((draw, shift + depth - begin))
    return points

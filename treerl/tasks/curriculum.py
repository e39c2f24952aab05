"""Choosing problems by pass rates: the rules of curricula, as functions of numbers alone.

Rates are of responses drawn from the prompt. A screening is noisy: of the kept problems some were only
unlucky, so their rate rises by itself when it is measured again.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from treerl.replay.rates import Rate

Rates = Mapping[str, Rate]
"""By problem key, in the order of the candidates; ties go to the earlier one."""


def hard(rates: Rates, *, max_rate: float, at_least: int = 1) -> list[str]:
    """Keys with a rate of at most `max_rate`; if these are fewer than `at_least`, the lowest rates fill up."""
    kept = [key for key, rate in rates.items() if rate.share <= max_rate]
    return kept if len(kept) >= at_least else hardest(rates, at_least)


def hardest(rates: Rates, count: int) -> list[str]:
    """The `count` keys of the lowest rates."""
    return sorted(rates, key=lambda key: rates[key].share)[:count]


def variance_score(history: Sequence[Rate], *, subtract_noise: bool) -> float:
    """How much the rate varied over its epochs (at least two).

    The population variance of the rates, or their unbiased variance less what the sampling of n responses
    gives alone, the mean of p (1 - p) / (n - 1).
    """
    shares = np.array([rate.share for rate in history])
    if not subtract_noise:
        return float(shares.var())
    others = np.array([max(rate.count - 1, 1) for rate in history])
    return float(shares.var(ddof=1) - np.mean(shares * (1 - shares) / others))


def most_varied(
    histories: Mapping[str, Sequence[Rate]], count: int, *, min_epochs: int, subtract_noise: bool
) -> list[str]:
    """The `count` keys of the largest `variance_score` among those tried at `min_epochs` steps; ties by key."""
    scores = {
        key: variance_score(history, subtract_noise=subtract_noise)
        for key, history in histories.items()
        if len(history) >= min_epochs
    }
    return sorted(scores, key=lambda key: (-scores[key], key))[:count]

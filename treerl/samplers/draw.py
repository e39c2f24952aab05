"""Drawing next tokens from logits: uniforms by counter, inverse CDF, behaviour log-probs, entropies.

Each continuation has its own stream of uniforms, a function of (seed, index of the token) alone, so that a
token depends on its row's logits and on nothing else in the batch. Which model made the logits, and when a
row ends, is the sampler's business.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treerl.config import SamplerSettings

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(
    seeds: NDArray[np.uint64], first: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Uniforms in [0, 1) for tokens first .. first + count - 1 of each row: float64[count, rows].

    SplitMix64 (Steele, Lea and Flood, 2014) as a counter: mix(mix(seed) + (t + 1) gamma), 53 bits of it.
    """
    counter = (first.astype(np.uint64) + np.arange(1, count + 1, dtype=np.uint64)[:, None]) * _GAMMA
    bits = _mix(_mix(seeds + _GAMMA) + counter) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def draw(
    logits: Tensor, uniform: Tensor, settings: SamplerSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row. logits: float[n, V], raw; uniform: float64[n].

    Returns tokens int64[n], logprobs float32[n] of the distribution drawn from (temperature, then top_k,
    then top_p, renormalised) and entropies float32[n], in nats, of softmax(logits). Temperature 0 takes the
    most likely token, of a distribution with all its mass there: log-prob 0. NaN logits give a NaN entropy.
    """
    logits = logits.float()
    logp = logits.log_softmax(-1)
    p = logp.exp()
    entropies = torch.special.entr(p).sum(-1)
    if settings.temperature == 0:
        return logits.argmax(-1), torch.zeros_like(entropies), entropies
    if settings.temperature != 1:
        logp = (logits / settings.temperature).log_softmax(-1)
        p = logp.exp()
    truncated = settings.top_p < 1 or 0 < settings.top_k < logits.shape[-1]
    if truncated:
        p = truncate(p, settings.top_k, settings.top_p)
    # In float64, so that the sum rounds away no token of a large vocabulary.
    cdf = p.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    value = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, value, right=True).clamp_(max=logits.shape[-1] - 1)
    logprobs = logp.gather(-1, tokens)
    if truncated:
        logprobs = logprobs - total.log().float()
    return tokens[:, 0], logprobs[:, 0], entropies


def truncate(p: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets to 0 what is outside the `top_k` likeliest (0: no limit) or outside the top-p nucleus of these.

    p: float[n, V]. The nucleus is the smallest set of likeliest tokens that holds `top_p` of the mass;
    ties go to the lower id. The order of tokens stays that of ids, so that a tie broken otherwise in the
    tail moves no other token. Not renormalised.
    """
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    if 0 < top_k < p.shape[-1]:
        ordered[:, top_k:] = 0
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    outside = before >= top_p * ordered.sum(-1, keepdim=True, dtype=torch.float64)
    if 0 < top_k < p.shape[-1]:
        outside[:, top_k:] = True
    return p.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), 0.0)

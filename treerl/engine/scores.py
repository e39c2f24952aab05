"""Log-probs of a step's trees that credit needs: dense signals, and importance weights that act on rows.

Both are functions of the current weights, taken before the first optimizer step of the update.
"""

from collections.abc import Sequence

import numpy as np

from treerl.config import DeepSearchSearch, Recipe, SamplerSettings, SearchSettings
from treerl.credit.assign import NEEDS_SIGNALS
from treerl.credit.deepsearch import PAPER, Discount
from treerl.credit.dense import Signals
from treerl.credit.importance import Importance
from treerl.errors import UpdateError
from treerl.policy.batch import FloatArray
from treerl.policy.model import Policy
from treerl.policy.reference import score_trees
from treerl.search.tree import Tree


def credit_scores(
    recipe: Recipe, policy: Policy, reference: Policy | None, trees: Sequence[Tree]
) -> tuple[list[Signals] | None, Importance | None]:
    """What `assign_with_summary` wants beside the trees; the policy is run once for both, or not at all.

    Raises UpdateError if importance weights are asked for and a token has no sampler log-prob.
    """
    loss = recipe.loss
    with_signals = reference is not None and recipe.advantage.estimator in NEEDS_SIGNALS
    with_weights = loss.rollout_is != "none" and not loss.weighs_in_loss
    if not (with_signals or with_weights):
        return None, None
    old = _scored(recipe, policy, trees)
    signals = importance = None
    if with_signals and reference is not None:
        ref = _scored(recipe, reference, trees)
        signals = [Signals(lp_old=o, lp_ref=r) for o, r in zip(old, ref, strict=True)]
    if loss.rollout_is != "none" and with_weights:
        low, high = loss.rollout_is_band
        importance = Importance(
            level=loss.rollout_is,
            mask=loss.rollout_is_mode == "mask",
            low=low,
            high=high,
            log_weights=[_log_weights(t, o) for t, o in zip(trees, old, strict=True)],
        )
    return signals, importance


def discount_of(search: SearchSettings) -> Discount:
    """Depth discount of DeepSearch's scores: the search's own where it is one, else the paper's."""
    if isinstance(search, DeepSearchSearch):
        return Discount(search.gamma, search.gamma_min, search.chunk_tokens)
    return PAPER


def comparable(sampler: SamplerSettings, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics without those that set the trainer beside the sampler, where top_p or top_k cut: these would
    tell the mass cut off."""
    if sampler.top_p == 1 and sampler.top_k == 0:
        return metrics
    return {k: v for k, v in metrics.items() if not k.startswith(("sampling/", "mismatch/"))}


def _scored(recipe: Recipe, policy: Policy, trees: Sequence[Tree]) -> list[FloatArray]:
    return score_trees(
        policy,
        trees,
        temperature=recipe.sampler.temperature,
        max_tokens=recipe.update.max_tokens_per_microbatch,
        pack=recipe.update.pack,
    )


def _log_weights(tree: Tree, lp_old: FloatArray) -> FloatArray:
    """lp_old - lp_beh, float64[n_tokens]; 0 where the token is not trained, or came from the cache.

    Cached tokens have a correction of their own, `loss.replay_is`: a weight here would count it twice.
    """
    cached = np.repeat(tree.draws.source > 0, tree.draws.length)
    trained = ~np.isnan(lp_old) & ~cached
    sampled = tree.tokens.logprob.astype(np.float64)
    absent = int(np.isnan(sampled[trained]).sum())
    if absent:
        raise UpdateError(
            f"{absent} tokens have no sampler log-prob (NaN), which loss.rollout_is needs; set "
            'loss.rollout_is = "none"'
        )
    return np.where(trained, lp_old - sampled, 0.0)

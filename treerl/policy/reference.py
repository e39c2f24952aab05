"""Frozen reference policies, and the log-probs of whole trees under any policy.

The reference of the KL term is the policy the run started from. Log-probs under it, or under the policy
itself, also feed credit that needs them (PRL, FRPO, implicit rewards); they are functions of current weights
and are computed anew each step, never read from the replay cache.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from treerl.policy.batch import FloatArray
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy, find_head
from treerl.policy.pack import pack_trees, scatter_to_trees
from treerl.search.tree import Tree


def freeze(policy: Policy) -> Policy:
    """A copy of `policy` with weights of its own that take no gradient."""
    model = copy.deepcopy(policy.model)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return replace(policy, model=model.eval(), head=find_head(model))


def score_trees(
    policy: Policy,
    trees: Sequence[Tree],
    *,
    temperature: float,
    max_tokens: int,
    pack: Literal["tree", "flat"] = "tree",
) -> list[FloatArray]:
    """Log-probs of each tree's tokens under `policy` at `temperature`: float64[n_tokens] a tree.

    NaN on the prompt, on tokens without gradient mask, and off the paths to selected ended leaves. Raises
    ConfigError if a path is longer than `max_tokens`.
    """
    batches = pack_trees(
        trees,
        max_tokens=max_tokens,
        row_tokens=policy.row_tokens,
        mode=pack,
        bucket=policy.bucket,
    )
    values = []
    for batch in batches:
        lp, _ = token_logprobs(policy, batch, temperature=temperature)
        values.append(lp.to("cpu").double().numpy())
    if not batches:
        return [np.full(len(tree.tokens), np.nan) for tree in trees]
    return scatter_to_trees(batches, values, trees)

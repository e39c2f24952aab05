"""Trees and tiny models for the tests of packing, and the reference every variant must equal."""

from dataclasses import replace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treerl.credit.masses import TokenCredit
from treerl.policy.batch import PackedBatch
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy, wrap_model
from treerl.policy.pack import pack_trees, training_leaves
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree

VOCABULARY = 61


def grow(tree: Tree, node: int, length: int, finish: Finish, rng: np.random.Generator) -> int:
    """Appends a span of random tokens below `node`; returns its row."""
    span = Span(
        tokens=rng.integers(3, VOCABULARY, length, dtype=np.int32),
        logprobs=-rng.random(length, dtype=np.float32),
        entropies=rng.random(length, dtype=np.float32),
        policy_version=0,
        finish=finish,
    )
    return tree.append(tree.request(node, 1), 0, span)


def ragged_tree(seed: int = 0, prompt: int = 7) -> Tree:
    """Five leaves at several depths; forks at the prompt and in the middle; a span of one token."""
    rng = np.random.default_rng(seed)
    tree = Tree(rng.integers(3, VOCABULARY, prompt), seed=seed, max_completion_length=512)
    a = grow(tree, ROOT, 9, Finish.CUT, rng)
    b = grow(tree, ROOT, 1, Finish.CUT, rng)
    grow(tree, a, 14, Finish.STOP, rng)
    c = grow(tree, a, 5, Finish.CUT, rng)
    grow(tree, c, 3, Finish.STOP, rng)
    grow(tree, c, 11, Finish.LENGTH, rng)
    grow(tree, b, 17, Finish.STOP, rng)
    grow(tree, b, 8, Finish.STOP, rng)
    return tree


def random_tree(seed: int, spans: int = 8, longest: int = 9) -> Tree:
    """A tree of `spans` random spans; all that end without children are leaves."""
    rng = np.random.default_rng(seed)
    tree = Tree(rng.integers(3, VOCABULARY, 5), seed=seed, max_completion_length=4096)
    rows = [ROOT]
    for _ in range(spans):
        parent = int(rng.choice(rows))
        rows.append(grow(tree, parent, int(rng.integers(1, longest)), Finish.CUT, rng))
    for row in rows[1:]:
        if not tree.children(row):
            tree.nodes.finish[row] = Finish.STOP
    return tree


def random_credit(tree: Tree, seed: int) -> TokenCredit:
    """Masses of both signs on the completion tokens."""
    rng = np.random.default_rng(seed)
    trained = tree.tokens.mask.astype(float)
    count = len(tree.tokens)
    return TokenCredit(
        positive=rng.random(count) * trained,
        negative=rng.random(count) * trained,
        weight=rng.random(count) * trained,
        denominator=float(trained.sum()),
        n_rows=len(training_leaves(tree)),
    )


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> Policy:
    """A Llama of four layers with grouped heads and large random weights."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        **changes,
    }
    return make_policy(LlamaForCausalLM, LlamaConfig(**settings), dtype, seed)


def make_policy(model_class, config, dtype=torch.float32, seed: int = 0, **options) -> Policy:
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.normal_(0.0, 0.15)
    return wrap_model(model.to(dtype), name=type(model).__name__, **options)


def reference(policy: Policy, tree: Tree) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """The model's own forward, one leaf at a time, batch 1: lp and H per path token after the first.

    Returns for each training leaf lp and H stacked as [2, length - 1], and the path's token indices.
    """
    results, paths = [], []
    for leaf in training_leaves(tree):
        path = tree.path_index(leaf)
        token = torch.from_numpy(tree.tokens.token[path].astype(np.int64))[None]
        logits = policy.model(input_ids=token, use_cache=False).logits[0, :-1]
        logp = torch.log_softmax(logits, -1)
        lp = logp.gather(1, token[0, 1:, None])[:, 0]
        results.append(torch.stack([lp, -(logp.exp() * logp).sum(-1)]))
        paths.append(path)
    return results, paths


def reference_loss(
    policy: Policy, trees: list[Tree], weights: list[np.ndarray], bonus: list[np.ndarray]
) -> torch.Tensor:
    """Sum over rows of w_t lp_t + v_t H_t, the weight of a token spread over the rows that hold it."""
    total = torch.zeros((), dtype=policy.dtype)
    for tree, weight, extra in zip(trees, weights, bonus, strict=True):
        results, paths = reference(policy, tree)
        count = np.bincount(np.concatenate(paths), minlength=len(tree.tokens))
        trained = tree.tokens.mask / np.maximum(count, 1)
        for values, path in zip(results, paths, strict=True):
            w = torch.from_numpy((weight * trained)[path[1:]])
            v = torch.from_numpy((extra * trained)[path[1:]])
            total = total + (w * values[0]).sum() + (v * values[1]).sum()
    return total


def packed_loss(
    policy: Policy, batches: list[PackedBatch], weights: list[np.ndarray], bonus: list[np.ndarray]
) -> torch.Tensor:
    """The same sum from packed batches, each owned token once."""
    total = torch.zeros((), dtype=policy.dtype)
    for batch in batches:
        lp, entropy = token_logprobs(policy, batch, with_entropy=True, grad=True)
        total = total + (lp * slots(batch, weights)).sum() + (entropy * slots(batch, bonus)).sum()
    return total


def slots(batch: PackedBatch, columns: list[np.ndarray]) -> torch.Tensor:
    """Token columns as [B, T], 0 where not owned."""
    value = np.zeros(batch.shape)
    for t, column in enumerate(columns):
        here = batch.own & (batch.tree == t)
        value[here] = column[batch.source[here]]
    return torch.from_numpy(value)


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    grads = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
    policy.model.zero_grad(set_to_none=True)
    return torch.cat(grads)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def random_columns(trees: list[Tree], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=len(tree.tokens)) for tree in trees]


def with_attention(policy: Policy, attention: str) -> Policy:
    return replace(policy, attention=attention)


def one_row(trees: list[Tree]) -> PackedBatch:
    """All trees in one row."""
    total = sum(len(tree.tokens) for tree in trees)
    (batch,) = pack_trees(trees, max_tokens=total, row_tokens=total)
    return batch

"""The plain way to the same update: separate padded rows with their own advantages, no packing, no masses."""

import numpy as np
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from treerl.config import LossSettings, UpdateSettings
from treerl.credit.masses import TokenCredit
from treerl.policy.model import Policy
from treerl.policy.optimizer import PolicyOptimizer, StepInfo
from treerl.policy.pack import training_leaves
from treerl.policy.reference import score_trees
from treerl.policy.update import update_policy
from treerl.policy.update_report import UpdateReport
from treerl.search.tree import Tree

Advantages = list[list[np.ndarray]]
"""Per tree and training leaf: float64[path length], the prompt included."""


def unweighted(**settings) -> LossSettings:
    """Loss settings without importance weights: for trees that no sampler drew. Cached tokens take their stored
    log-probs as denominators, which is how tests set ratios."""
    return LossSettings(rollout_is="none", replay_is="ratio", **settings)


def use_exact_norm(monkeypatch) -> None:
    """RMSNorm in the dtype of its input: the library's is float32 whatever the dtype."""

    def forward(self, hidden):
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)


def random_advantages(trees: list[Tree], seed: int) -> Advantages:
    """Advantages of both signs that differ by row and by token."""
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=len(tree.path_index(leaf))) for leaf in training_leaves(tree)]
        for tree in trees
    ]


def store_logprobs(policy: Policy, trees: list[Tree], *, spread: float, seed: int) -> None:
    """Gives the trees' tokens behaviour log-probs `spread` around those of `policy`."""
    rng = np.random.default_rng(seed)
    scores = score_trees(policy, trees, temperature=1.0, max_tokens=4096)
    for tree, lp in zip(trees, scores, strict=True):
        noise = rng.normal(0.0, spread, len(lp))
        tree.tokens.logprob[:] = np.where(np.isnan(lp), 0.0, lp + noise)


def mark_cached(trees: list[Tree]) -> list[Tree]:
    """As if all completions came from the cache: ratios are taken to the stored log-probs."""
    for tree in trees:
        tree.draws.source[1:] = 7
    return trees


def masses(trees: list[Tree], advantages: Advantages, mode: str) -> list[TokenCredit]:
    """P, M and W of each tree by adding up its rows, one by one."""
    credits = []
    for tree, rows in zip(trees, advantages, strict=True):
        positive, negative, weight = np.zeros((3, len(tree.tokens)))
        n_tokens = 0
        leaves = training_leaves(tree)
        for leaf, row in zip(leaves, rows, strict=True):
            path = tree.path_index(leaf)
            trained = tree.tokens.mask[path]
            w = 1.0 / trained.sum() if mode == "seq-mean-token-mean" else 1.0
            np.add.at(positive, path, w * trained * np.maximum(row, 0))
            np.add.at(negative, path, w * trained * np.maximum(-row, 0))
            np.add.at(weight, path, w * trained)
            n_tokens += trained.sum()
        denominator = float(n_tokens if mode == "token-mean" else len(leaves))
        if mode == "seq-mean-token-sum-norm":
            denominator *= tree.max_completion_length
        credits.append(TokenCredit(positive, negative, weight, denominator, len(leaves)))
    return credits


def plain_model(policy: Policy) -> LlamaForCausalLM:
    """The same weights under the library's own attention."""
    config = type(policy.model.config)(**policy.model.config.to_dict())
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).to(policy.dtype)
    model.load_state_dict(policy.model.state_dict())
    return model


def padded(trees: list[Tree]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, attention mask, trained) of all rows of all trees, [B, L]."""
    paths = [(tree, tree.path_index(leaf)) for tree in trees for leaf in training_leaves(tree)]
    longest = max(len(path) for _, path in paths)
    token, mask, trained = np.zeros((3, len(paths), longest), np.int64)
    for b, (tree, path) in enumerate(paths):
        token[b, : len(path)] = tree.tokens.token[path]
        mask[b, : len(path)] = 1
        trained[b, : len(path)] = tree.tokens.mask[path]
    return torch.from_numpy(token), torch.from_numpy(mask), torch.from_numpy(trained)


def padded_columns(trees: list[Tree], columns: list[np.ndarray]) -> torch.Tensor:
    """Token columns of each tree spread over its rows, float64[B, L]; 0 on padding."""
    rows = [
        column[tree.path_index(leaf)]
        for tree, column in zip(trees, columns, strict=True)
        for leaf in training_leaves(tree)
    ]
    return padded_rows(rows)


def padded_rows(rows: list[np.ndarray]) -> torch.Tensor:
    values = np.zeros((len(rows), max(len(row) for row in rows)))
    for b, row in enumerate(rows):
        values[b, : len(row)] = row
    return torch.from_numpy(values)


def row_logprobs(
    model: LlamaForCausalLM, trees: list[Tree], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """lp and entropy of each token given its row so far, [B, L]; 0 at the first token."""
    token, mask, _ = padded(trees)
    logits = model(input_ids=token, attention_mask=mask, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits / temperature, -1)
    lp = logp.gather(2, token[:, 1:, None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)
    pad = torch.nn.functional.pad
    return pad(lp, (1, 0)), pad(entropy, (1, 0))


def flat_loss(
    model: LlamaForCausalLM,
    trees: list[Tree],
    advantages: Advantages,
    settings: LossSettings,
    *,
    lp_old: torch.Tensor,
    weights: torch.Tensor | float = 1.0,
    reference: LlamaForCausalLM | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """PPO's loss with dual clip over separate rows, times `weights`, [B, L]; then one of the usual means."""
    trained = padded(trees)[2]
    lp, entropy = row_logprobs(model, trees, temperature)
    a = padded_rows([row for rows in advantages for row in rows])
    ratio = (lp - lp_old).exp()
    clipped = ratio.clamp(1 - settings.clip_ratio_low, 1 + settings.clip_ratio_high)
    loss = torch.maximum(-a * ratio, -a * clipped)
    if settings.clip_ratio_c is not None:
        loss = torch.where(a < 0, torch.minimum(loss, -a * settings.clip_ratio_c), loss)
    loss = loss * weights
    if reference is not None:
        with torch.no_grad():
            lp_ref, _ = row_logprobs(reference, trees, temperature)
        d = lp_ref - lp
        kl = 0.5 * d**2 if settings.kl_estimator == "k2" else d.exp() - 1 - d
        omega = (ratio.detach() * weights).clamp(max=settings.rollout_is_threshold)
        loss = loss + settings.kl_coef * omega * kl
    loss = (loss - settings.entropy_coef * entropy) * trained
    match settings.loss_agg_mode:
        case "token-mean":
            return loss.sum() / trained.sum()
        case "seq-mean-token-mean":
            return (loss.sum(1) / trained.sum(1)).mean()
        case "seq-mean-token-sum":
            return loss.sum(1).mean()
        case _:
            return loss.sum(1).mean() / max(tree.max_completion_length for tree in trees)


def flat_gradient(
    model: LlamaForCausalLM,
    trees: list[Tree],
    advantages: Advantages,
    loss: LossSettings,
    **options,
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradient of `flat_loss` by parameter, and its value."""
    model.zero_grad(set_to_none=True)
    value = flat_loss(model, trees, advantages, loss, **options)
    value.backward()
    return gradients_by_name(dict(model.named_parameters())), value.item()


def run_update(
    policy: Policy,
    trees: list[Tree],
    credits: list[TokenCredit],
    *,
    loss: LossSettings | None = None,
    settings: UpdateSettings | None = None,
    optimizer: PolicyOptimizer | None = None,
    **options,
) -> UpdateReport:
    """`update_policy` with a new optimizer, at temperature 1, unless told otherwise."""
    settings = settings or UpdateSettings(lr=1e-3)
    return update_policy(
        policy,
        optimizer or PolicyOptimizer(policy.model, settings),
        trees,
        credits,
        loss=loss or unweighted(),
        update=settings,
        temperature=options.pop("temperature", 1.0),
        generator=np.random.default_rng(0),
        **options,
    )


def recorded(
    policy: Policy, trees: list[Tree], credits: list[TokenCredit], **options
) -> tuple[list[dict[str, torch.Tensor]], UpdateReport]:
    """The update's gradients, one dict an optimizer step, and its report; no weight moves."""
    settings = options.setdefault("settings", UpdateSettings())
    optimizer = Recorder(policy.model, settings)
    report = run_update(policy, trees, credits, optimizer=optimizer, **options)
    return optimizer.gradients, report


class Recorder(PolicyOptimizer):
    """Keeps the gradient of each step instead of taking it."""

    def step(self) -> StepInfo:
        self.gradients = [*getattr(self, "gradients", []), gradients_by_name(self._named())]
        self.zero_grad()
        return StepInfo(0.0, 0.0)

    def _named(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self._params, strict=True))


def gradients_by_name(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in parameters.items()}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference over all parameters, relative to the largest expected value."""
    scale = max(float(value.abs().max()) for value in expected.values())
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of all tensors."""
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)

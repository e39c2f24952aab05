"""One policy update: judged, credited trees to optimizer steps.

Trees are dealt whole into mini-batches, packed so that each token runs once, and every optimizer step divides
plain sums by a denominator counted before its first forward. Ratios are taken to log-probs of the same
weights, packer and attention variant (lp_old), so they are exactly 1 in the first mini-batch; tokens from the
replay cache take their stored behaviour log-probs instead. How advantages arise is in treerl.credit, the loss
itself in treerl.policy.losses.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from treerl.config import LossSettings, UpdateSettings
from treerl.credit.masses import TokenCredit
from treerl.errors import ConfigError, UpdateError
from treerl.policy.batch import PackedBatch
from treerl.policy.forward import token_logprobs
from treerl.policy.loss_sums import LossSums
from treerl.policy.losses import LossOutputs, TokenColumns, policy_loss
from treerl.policy.model import Policy
from treerl.policy.optimizer import PolicyOptimizer, StepInfo
from treerl.policy.pack import gather_from_trees, pack_trees, training_leaves
from treerl.search.tree import Tree


@dataclass(slots=True)
class TokenCounts:
    """Tokens of one pass over the step's trees.

    trained: unique tokens that took the loss. packed: tokens run forward and backward (prompts, and paths
    repeated between the parts of a tree, included). slots: the same with padding. flat: what separate rows of
    the same leaves would have run.
    """

    trained: int = 0
    packed: int = 0
    slots: int = 0
    flat: int = 0

    @property
    def tree_token_ratio(self) -> float:
        """flat / packed: how often each token would have been run without sharing."""
        return self.flat / self.packed if self.packed else float("nan")


@dataclass(slots=True)
class UpdateReport:
    """What `update_policy` did.

    skipped: mini-batches without any gradient (every mass 0), for which no step was taken. trees_trained:
    trees that carried a gradient. steps: gradient norm and learning rate of each step. first: diagnostics of
    the first optimizer step alone, where ratios of fresh tokens are 1. seconds: by phase (pack, old,
    reference, forward, backward, optimizer).
    """

    trees: int = 0
    trees_trained: int = 0
    skipped: int = 0
    iterations: int = 1
    steps: list[StepInfo] = field(default_factory=list)
    sums: LossSums = field(default_factory=LossSums)
    first: LossSums = field(default_factory=LossSums)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_trained(self) -> int:
        """Tokens that took the loss, over all iterations."""
        return self.tokens.trained * self.iterations

    def metrics(self) -> dict[str, float]:
        """Numbers for the metrics file; those of the loss are absent if no step was taken."""
        values = {
            "train/optimizer_steps": float(len(self.steps)),
            "train/skipped_steps": float(self.skipped),
            "train/trees": float(self.trees_trained),
            "train/tokens_trained": float(self.tokens_trained),
            "train/tokens_packed": float(self.tokens.packed * self.iterations),
            "train/tokens_padded": float(self.tokens.slots * self.iterations),
            "train/tokens_flat": float(self.tokens.flat * self.iterations),
        }
        if self.tokens.packed:
            values["train/tree_token_ratio"] = self.tokens.tree_token_ratio
        values |= {f"time/update_{name}": value for name, value in self.seconds.items()}
        if self.steps:
            norms = [step.grad_norm for step in self.steps]
            values |= {
                "loss": self.sums.loss / len(self.steps),
                "grad_norm": sum(norms) / len(norms),
                "train/grad_norm_max": max(norms),
                "learning_rate": self.steps[-1].lr,
                "train/first_ratio_out_of_band": self.first.out_of_band / self.first.tokens,
                **self.sums.metrics(),
            }
        return values


@dataclass(slots=True)
class _MicroBatch:
    """One forward and backward pass. own: int64[n], flat slots that take the loss; columns over these.

    `known` is False until lp_old holds log-probs of the weights at the start of the update.
    """

    packed: PackedBatch
    own: Tensor
    columns: TokenColumns
    known: bool = False


@dataclass(slots=True)
class _MiniBatch:
    """One optimizer step."""

    micro: list[_MicroBatch]
    denominator: float


@dataclass(frozen=True, slots=True)
class _Run:
    """What every phase of one update needs."""

    policy: Policy
    optimizer: PolicyOptimizer
    loss: LossSettings
    temperature: float
    report: UpdateReport

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the wall time of the block to `phase`."""
        start = time.perf_counter()
        yield
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)
        seconds = self.report.seconds
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def update_policy(
    policy: Policy,
    optimizer: PolicyOptimizer,
    trees: Sequence[Tree],
    credits: Sequence[TokenCredit],
    *,
    loss: LossSettings,
    update: UpdateSettings,
    temperature: float,
    generator: np.random.Generator,
    reference: Policy | None = None,
) -> UpdateReport:
    """Trains `policy` in place on `trees`; `credits[i]` holds the masses of `trees[i]`.

    temperature: the sampler's, at which all log-probs are taken. generator: deals the trees. reference: the
    policy of the KL term; needed iff `loss.kl_coef` > 0.

    Trees whose masses are all 0 are not run unless KL or entropy act on them; their denominators count all the
    same. Raises UpdateError before the weights move if the loss or a gradient is not finite (earlier
    optimizer steps of the same call stand, and the message counts them), ConfigError if a path is longer than
    `max_tokens_per_microbatch`.
    """
    _check(temperature, loss, reference)
    report = UpdateReport(trees=len(trees), iterations=update.num_iterations)
    run = _Run(policy, optimizer, loss, temperature, report)
    regularised = loss.kl_coef > 0 or loss.entropy_coef != 0
    active = [_is_active(credit, regularised) for credit in credits]
    report.trees_trained = sum(active)
    scale = 1.0
    if loss.loss_agg_mode == "seq-mean-token-sum-norm":
        scale = float(max((tree.max_completion_length for tree in trees), default=1))
    minis = []
    with run.clock("pack"):
        for members in deal(active, update.mini_batches, generator):
            chosen = [i for i in members if active[i]]
            denominator = scale * sum(credits[i].denominator for i in members)
            micro = _micro_batches(
                run, [trees[i] for i in chosen], [credits[i] for i in chosen], update
            )
            if micro and not denominator > 0:
                raise UpdateError(f"credit gave masses but a denominator of {denominator}")
            minis.append(_MiniBatch(micro, denominator))
    # The first step's own forward gives its lp_old: ratio exp(lp - sg(lp)) is exact.
    first = next((i for i, mini in enumerate(minis) if mini.micro), len(minis))
    for mini in minis[first + 1 :]:
        for micro_batch in mini.micro:
            with run.clock("old"):
                _learn_old(run, micro_batch)
    if reference is not None and loss.kl_coef > 0:
        for micro_batch in (m for mini in minis for m in mini.micro):
            with run.clock("reference"):
                _learn_reference(run, reference, micro_batch)
    for _ in range(update.num_iterations):
        for mini in minis:
            _optimizer_step(run, mini)
    return report


def deal(active: Sequence[bool], piles: int, generator: np.random.Generator) -> list[list[int]]:
    """Indices of the trees of each mini-batch, shuffled; `active` ones and the others are dealt evenly."""
    hands: list[list[int]] = [[] for _ in range(piles)]
    order = generator.permutation(len(active)).tolist()
    for wanted in (True, False):
        for place, index in enumerate(i for i in order if active[i] == wanted):
            hands[place % piles].append(index)
    return hands


def _check(temperature: float, loss: LossSettings, reference: Policy | None) -> None:
    if temperature <= 0:
        raise ConfigError(
            "sampler.temperature = 0 is greedy decoding: its samples have no log-probs to train on; "
            "set a temperature above 0"
        )
    if loss.kl_coef > 0 and reference is None:
        raise ConfigError("loss.kl_coef > 0 needs a reference policy")


def _is_active(credit: TokenCredit, regularised: bool) -> bool:
    masses = bool(credit.positive.any() or credit.negative.any())
    return masses or (regularised and bool(credit.weight.any()))


# Micro-batches ---------------------------------------------------------------------------------------------


def _micro_batches(
    run: _Run, trees: list[Tree], credits: list[TokenCredit], update: UpdateSettings
) -> list[_MicroBatch]:
    """Packs the trees of one mini-batch and counts their tokens."""
    if not trees:
        return []
    batches = pack_trees(
        trees, credits, max_tokens=update.max_tokens_per_microbatch, mode=update.pack
    )
    counts = run.report.tokens
    for tree in trees:
        leaves = training_leaves(tree)
        nodes = tree.nodes
        path = nodes.offset[leaves] + nodes.stop[leaves] - nodes.start[leaves]
        counts.flat += int(path.sum())
    cached = _cached_tokens(trees)
    micro = []
    for batch in batches:
        own = np.flatnonzero(batch.own)
        counts.trained += len(own)
        counts.packed += int((batch.source >= 0).sum())
        counts.slots += batch.source.size
        if len(own):
            micro.append(_micro_batch(run.policy, batch, own, cached))
    return micro


def _micro_batch(
    policy: Policy, batch: PackedBatch, own: np.ndarray, cached: list[np.ndarray] | None
) -> _MicroBatch:
    dtype = torch.float64 if policy.dtype == torch.float64 else torch.float32

    def column(values: np.ndarray, kind: torch.dtype = dtype) -> Tensor:
        return torch.from_numpy(values.reshape(-1)[own]).to(policy.device, kind)

    fresh = np.ones(batch.shape, np.bool_)
    if cached is not None:
        fresh = gather_from_trees(batch, cached) == 0
    columns = TokenColumns(
        positive=column(batch.positive),
        negative=column(batch.negative),
        weight=column(batch.weight),
        lp_old=column(batch.lp_beh),
        lp_beh=column(batch.lp_beh),
        fresh=column(fresh, torch.bool),
    )
    return _MicroBatch(batch, torch.from_numpy(own).to(policy.device), columns)


def _cached_tokens(trees: list[Tree]) -> list[np.ndarray] | None:
    """float32[n_tokens] a tree, 1 where the token's draw came from the replay cache; None if no draw did.

    Raises UpdateError if such a token has no log-prob: without it, its ratio would silently be 1.
    """
    if not any(tree.draws.source.any() for tree in trees):
        return None
    columns = []
    for tree in trees:
        column = np.zeros(len(tree.tokens), np.float32)
        for draw in np.flatnonzero(tree.draws.source):
            start = int(tree.draws.start[draw])
            stop = start + int(tree.draws.length[draw])
            column[start:stop] = 1.0
            if np.isnan(tree.tokens.logprob[start:stop]).any():
                raise UpdateError(
                    f"stored draw {tree.draws.source[draw]} has no behaviour log-probs; it cannot be "
                    "trained on. Set replay.max_cached = 0, or drop that solution from the cache"
                )
        columns.append(column)
    return columns


# Passes ----------------------------------------------------------------------------------------------------


def _own_logprobs(
    run: _Run, policy: Policy, micro: _MicroBatch, *, grad: bool
) -> tuple[Tensor, Tensor]:
    """lp and entropy of the owned tokens, float[n]."""
    lp, entropy = token_logprobs(policy, micro.packed, temperature=run.temperature, grad=grad)
    return lp.reshape(-1)[micro.own], entropy.reshape(-1)[micro.own]


def _with(columns: TokenColumns, *, lp_old: Tensor, lp_ref: Tensor | None) -> TokenColumns:
    return TokenColumns(
        positive=columns.positive,
        negative=columns.negative,
        weight=columns.weight,
        lp_old=lp_old,
        lp_beh=columns.lp_beh,
        fresh=columns.fresh,
        lp_ref=lp_ref,
    )


def _set_old(micro: _MicroBatch, lp: Tensor) -> None:
    """lp_old of fresh tokens := `lp`; cached tokens keep their stored behaviour log-probs."""
    columns = micro.columns
    old = torch.where(columns.fresh, lp.detach(), columns.lp_beh)
    micro.columns = _with(columns, lp_old=old, lp_ref=columns.lp_ref)
    micro.known = True


def _learn_old(run: _Run, micro: _MicroBatch) -> None:
    lp, _ = _own_logprobs(run, run.policy, micro, grad=False)
    _set_old(micro, lp)


def _learn_reference(run: _Run, reference: Policy, micro: _MicroBatch) -> None:
    lp, _ = _own_logprobs(run, reference, micro, grad=False)
    micro.columns = _with(micro.columns, lp_old=micro.columns.lp_old, lp_ref=lp.detach())


def _optimizer_step(run: _Run, mini: _MiniBatch) -> None:
    report = run.report
    if not mini.micro:
        report.skipped += 1
        return
    run.optimizer.zero_grad()
    sums = LossSums()
    for micro in mini.micro:
        with run.clock("forward"):
            lp, entropy = _own_logprobs(run, run.policy, micro, grad=True)
            if not micro.known:
                _set_old(micro, lp)
            _check_sampler(run, micro)
            outputs = policy_loss(lp, entropy, micro.columns, run.loss, mini.denominator)
            _check_finite(run, micro, lp, outputs)
        with run.clock("backward"):
            torch.autograd.backward(outputs.loss)
            run.optimizer.collect()
        sums += outputs.sums
    with run.clock("optimizer"):
        info = run.optimizer.step()
    if not report.steps:
        report.first = sums
    report.steps.append(info)
    report.sums += sums


def _check_sampler(run: _Run, micro: _MicroBatch) -> None:
    """Importance weights need the sampler's log-prob of every fresh token."""
    columns = micro.columns
    if run.loss.rollout_is == "none":
        return
    absent = int((columns.fresh & columns.lp_beh.isnan()).sum())
    if absent:
        run.optimizer.zero_grad()
        raise UpdateError(
            f"{absent} of {len(columns.fresh)} tokens have no sampler log-prob (NaN), which "
            'loss.rollout_is = "token" needs; set loss.rollout_is = "none"'
        )


def _check_finite(run: _Run, micro: _MicroBatch, lp: Tensor, outputs: LossOutputs) -> None:
    if np.isfinite(outputs.sums.loss):
        return
    run.optimizer.zero_grad()
    columns = micro.columns
    causes = {
        "log-probs of the policy": lp,
        "old log-probs": columns.lp_old,
        "reference log-probs": columns.lp_ref,
        "masses": columns.positive + columns.negative + columns.weight,
    }
    found = [
        f"{int((~values.isfinite()).sum())} {name}"
        for name, values in causes.items()
        if values is not None and not bool(values.isfinite().all())
    ]
    raise UpdateError(
        f"loss is {outputs.sums.loss} in a micro-batch of {len(lp)} tokens; not finite: "
        f"{', '.join(found) or 'the sum'}. Weights stand as after {len(run.report.steps)} optimizer steps of "
        "this update"
    )

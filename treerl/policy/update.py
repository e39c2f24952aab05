"""One policy update: judged, credited trees to optimizer steps.

Trees are dealt whole into mini-batches, packed so that each token runs once, and every optimizer step divides
plain sums by a denominator counted before its first forward. Ratios are taken to log-probs of the same
weights, packer and attention variant (lp_old), so they are exactly 1 in the first mini-batch, and weights
lead from there back to the policy that drew a token; settings can put its recorded log-probs in the place of
lp_old. How advantages arise is in treerl.credit, the loss itself in treerl.policy.losses.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
from treerl.policy.optimizer import PolicyOptimizer
from treerl.policy.pack import gather_from_trees, pack_trees, training_leaves
from treerl.policy.update_report import UpdateReport
from treerl.search.tree import Tree


@dataclass(slots=True)
class _MicroBatch:
    """One forward and backward pass. own: int64[n], flat slots that take the loss; columns over these.

    unknown: bool[n], tokens whose lp_old is still to be computed from the weights at the start of the update;
    None: there are none.
    """

    packed: PackedBatch
    own: Tensor
    columns: TokenColumns
    unknown: Tensor | None


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
    active = [_is_active(credit, _regularised(loss)) for credit in credits]
    report.trees_trained = sum(active)
    report.sampled_entropy = _sampled_entropy(
        [t for t, on in zip(trees, active, strict=True) if on]
    )
    with run.clock("pack"):
        hands = deal(active, update.mini_batches, generator)
        minis = [_mini_batch(run, trees, credits, active, hand, update) for hand in hands]
    if update.old_logprobs == "sampler":
        _check_sampled(minis)
    _compute_old(run, minis)
    if reference is not None and loss.kl_coef > 0:
        for micro_batch in (m for mini in minis for m in mini.micro):
            with run.clock("reference"):
                _learn_reference(run, reference, micro_batch)
    for _ in range(update.num_iterations):
        for mini in minis:
            _optimizer_step(run, mini)
    return report


def _compute_old(run: _Run, minis: list[_MiniBatch]) -> None:
    """lp_old of all but the first mini-batch: its own forward gives it, ratio exp(lp - sg(lp)) is exact."""
    first = next((i for i, mini in enumerate(minis) if mini.micro), len(minis))
    for mini in minis[first + 1 :]:
        for micro_batch in mini.micro:
            if micro_batch.unknown is not None:
                with run.clock("old"):
                    _set_old(micro_batch, _own_logprobs(run, run.policy, micro_batch))


def _check_sampled(minis: list[_MiniBatch]) -> None:
    """lp_old is what the sampler recorded, and the columns hold it already. Raises UpdateError where absent."""
    for micro in (m for mini in minis for m in mini.micro):
        absent = int(micro.columns.lp_beh.isnan().sum())
        if absent:
            raise UpdateError(
                f"{absent} tokens have no sampler log-prob (NaN), which update.old_logprobs = "
                '"sampler" needs; set it to "recompute"'
            )
        # The first step's forward has the weights that sampled, and fills this in.
        start = torch.full_like(micro.columns.lp_beh, torch.nan)
        micro.columns = replace(micro.columns, lp_start=start)


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


def _regularised(loss: LossSettings) -> bool:
    """Do KL or entropy act on every token, credited or not?"""
    return loss.kl_coef > 0 or loss.entropy_coef != 0


def _is_active(credit: TokenCredit, regularised: bool) -> bool:
    masses = bool(credit.positive.any() or credit.negative.any())
    return masses or (regularised and bool(credit.weight.any()))


def _mini_batch(
    run: _Run,
    trees: Sequence[Tree],
    credits: Sequence[TokenCredit],
    active: Sequence[bool],
    hand: Sequence[int],
    update: UpdateSettings,
) -> _MiniBatch:
    """One optimizer step over the trees in `hand`, of which only active ones are packed."""
    chosen = [i for i in hand if active[i]]
    denominator = sum(credits[i].denominator for i in hand)
    micro = _micro_batches(run, [trees[i] for i in chosen], [credits[i] for i in chosen], update)
    if micro and not denominator > 0:
        raise UpdateError(f"credit gave masses but a denominator of {denominator}")
    return _MiniBatch(micro, denominator)


def _sampled_entropy(trees: list[Tree]) -> float:
    """Mean over completion tokens of the entropy the sampler saw; NaN if it told none."""
    values = [tree.tokens.entropy[tree.tokens.mask] for tree in trees]
    known = np.concatenate([column[~np.isnan(column)] for column in values] or [np.zeros(0)])
    return float(known.mean()) if len(known) else float("nan")


# Micro-batches ---------------------------------------------------------------------------------------------


def _micro_batches(
    run: _Run, trees: list[Tree], credits: list[TokenCredit], update: UpdateSettings
) -> list[_MicroBatch]:
    """Packs the trees of one mini-batch and counts their tokens."""
    if not trees:
        return []
    batches = pack_trees(
        trees,
        credits,
        max_tokens=update.max_tokens_per_microbatch,
        row_tokens=run.policy.row_tokens,
        mode=update.pack,
        bucket=run.policy.bucket,
        credited_only=not _regularised(run.loss),
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
            micro.append(_micro_batch(run, batch, own, cached, update))
    return micro


def _micro_batch(
    run: _Run,
    batch: PackedBatch,
    own: np.ndarray,
    cached: list[np.ndarray] | None,
    update: UpdateSettings,
) -> _MicroBatch:
    policy = run.policy
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
    unknown = np.zeros(batch.shape, np.bool_)
    if update.old_logprobs == "recompute":
        unknown |= fresh
    if run.loss.replay_is != "ratio":
        unknown |= ~fresh
    return _MicroBatch(
        batch,
        torch.from_numpy(own).to(policy.device),
        columns,
        column(unknown, torch.bool) if unknown.reshape(-1)[own].any() else None,
    )


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


def _own_logprobs(run: _Run, policy: Policy, micro: _MicroBatch) -> Tensor:
    """Log-probs of the owned tokens, float[n], without gradient."""
    lp, _ = token_logprobs(policy, micro.packed, temperature=run.temperature)
    return lp.reshape(-1)[micro.own]


def _set_old(micro: _MicroBatch, lp: Tensor) -> None:
    """lp_old of tokens that had none := `lp`, float[n]."""
    if micro.unknown is not None:
        old = torch.where(micro.unknown, lp.detach(), micro.columns.lp_old)
        micro.columns = replace(micro.columns, lp_old=old)
        micro.unknown = None


def _learn_reference(run: _Run, reference: Policy, micro: _MicroBatch) -> None:
    micro.columns = replace(micro.columns, lp_ref=_own_logprobs(run, reference, micro))


def _train_forward(run: _Run, micro: _MicroBatch) -> tuple[Tensor, Tensor | None]:
    """Log-probs and, if the loss wants it, entropy of the owned tokens, float[n], with gradient."""
    lp, entropy = token_logprobs(
        run.policy,
        micro.packed,
        temperature=run.temperature,
        with_entropy=run.loss.entropy_coef != 0,
        grad=True,
    )
    chosen = None if entropy is None else entropy.reshape(-1)[micro.own]
    return lp.reshape(-1)[micro.own], chosen


def _optimizer_step(run: _Run, mini: _MiniBatch) -> None:
    report = run.report
    if not mini.micro:
        report.skipped += 1
        return
    run.optimizer.zero_grad()
    sums = LossSums()
    for micro in mini.micro:
        with run.clock("forward"):
            lp, entropy = _train_forward(run, micro)
            _set_old(micro, lp)
            if micro.columns.lp_start is not None and not report.steps:
                micro.columns = replace(micro.columns, lp_start=lp.detach())
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
            f'loss.rollout_is = "{run.loss.rollout_is}" needs; set loss.rollout_is = "none"'
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

"""Supervised fine-tuning on (prompt, completion) token sequences: warm starts and rejection fine-tuning.

The loss is the mean over all completion tokens of an optimizer step of -log p; prompts are seen but take no
loss. Where the sequences come from (demonstration files, verified solutions of the replay cache) is the
caller's matter, and so is the end token, which must stand at the end of a completion to be learnt.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from treerl.canon import generator
from treerl.config import UpdateSettings
from treerl.errors import DataError, UpdateError
from treerl.policy.batch import PackedBatch
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy
from treerl.policy.optimizer import PolicyOptimizer, warmup_cosine

log = logging.getLogger(__name__)

Example = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, completion ids), neither empty."""


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Settings of `sft`. lr rises over `warmup_steps`, then falls by a cosine to `lr_floor` * lr.

    batch_size: examples an optimizer step. max_length: longer examples (prompt and completion) are left out
    and counted. max_steps: stop early; None: all epochs. seed: names the order of the examples.
    """

    lr: float = 1e-4
    epochs: int = 1
    batch_size: int = 64
    max_steps: int | None = None
    max_length: int = 1024
    max_tokens_per_microbatch: int = 8192
    warmup_steps: int = 20
    lr_floor: float = 0.05
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SftProgress:
    """After one optimizer step of `total`: token-mean loss, gradient norm, tokens so far (padding excluded)."""

    step: int
    total: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int


@dataclass(frozen=True, slots=True)
class SftReport:
    """losses: token-mean loss of each step. too_long: examples left out. tokens: run, prompts included."""

    losses: tuple[float, ...]
    examples: int
    too_long: int
    tokens: int


def sft(
    policy: Policy,
    examples: Iterable[Example],
    settings: SftSettings,
    *,
    progress: Callable[[SftProgress], None] | None = None,
) -> SftReport:
    """Trains `policy` in place on `examples`; the order depends on `settings.seed` alone.

    Raises DataError if no example can be used, UpdateError on a loss or gradient that is not finite.
    """
    kept, too_long = _usable(examples, settings)
    per_epoch = math.ceil(len(kept) / settings.batch_size)
    total = per_epoch * settings.epochs
    if settings.max_steps is not None:
        total = min(total, settings.max_steps)
    optimizer = PolicyOptimizer(
        policy.model,
        UpdateSettings(
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            grad_clip=settings.grad_clip,
        ),
        schedule=warmup_cosine(settings.warmup_steps, total, settings.lr_floor),
    )
    losses: list[float] = []
    tokens = 0
    for chosen in _order(len(kept), total, settings):
        batch = [kept[i] for i in chosen]
        loss = _backward(policy, optimizer, batch, settings.max_tokens_per_microbatch)
        info = optimizer.step()
        tokens += sum(len(prompt) + len(completion) for prompt, completion in batch)
        losses.append(loss)
        if progress is not None:
            progress(SftProgress(len(losses), total, loss, info.grad_norm, info.lr, tokens))
    return SftReport(tuple(losses), len(kept), too_long, tokens)


def flat_batches(examples: Sequence[Example], max_tokens: int) -> list[PackedBatch]:
    """One padded row an example, rows of like length together, at most `max_tokens` slots a batch.

    The loss is taken (`own`, weight 1) on completion tokens. An example longer than `max_tokens` has a batch
    of its own.
    """
    order = sorted(range(len(examples)), key=lambda i: -_length(examples[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * _length(examples[groups[-1][0]]) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_fill([examples[i] for i in group]) for group in groups]


def _usable(examples: Iterable[Example], settings: SftSettings) -> tuple[list[Example], int]:
    limit = min(settings.max_length, settings.max_tokens_per_microbatch)
    kept, too_long = [], 0
    for number, (prompt, completion) in enumerate(examples, 1):
        if not len(prompt) or not len(completion):
            raise DataError(f"example {number} has an empty prompt or completion")
        if len(prompt) + len(completion) > limit:
            too_long += 1
        else:
            kept.append((prompt, completion))
    if too_long:
        log.warning("%d examples are longer than %d tokens and were left out", too_long, limit)
    if not kept:
        raise DataError(f"no example to train on ({too_long} were longer than {limit} tokens)")
    return kept, too_long


def _order(count: int, total: int, settings: SftSettings) -> Iterator[list[int]]:
    """Indices of the examples of each of `total` optimizer steps; each epoch in an order of its own."""
    step = 0
    for epoch in range(settings.epochs):
        order = generator("sft", settings.seed, epoch).permutation(count)
        for start in range(0, count, settings.batch_size):
            if step == total:
                return
            step += 1
            yield order[start : start + settings.batch_size].tolist()


def _backward(
    policy: Policy, optimizer: PolicyOptimizer, examples: list[Example], max_tokens: int
) -> float:
    """Gradients of the step's token-mean loss, which is returned."""
    optimizer.zero_grad()
    n_tokens = sum(len(completion) for _, completion in examples)
    total = 0.0
    for batch in flat_batches(examples, max_tokens):
        lp, _ = token_logprobs(policy, batch, temperature=1.0, grad=True)
        own = torch.from_numpy(np.flatnonzero(batch.own)).to(lp.device)
        loss = -lp.reshape(-1)[own].sum() / n_tokens
        value = float(loss.detach())
        if not math.isfinite(value):
            optimizer.zero_grad()
            raise UpdateError(
                f"loss is {value} at step {optimizer.steps + 1}; weights were not changed by it. Lower lr"
            )
        torch.autograd.backward(loss)
        optimizer.collect()
        total += value
    return total


def _length(example: Example) -> int:
    return len(example[0]) + len(example[1])


def _fill(examples: list[Example]) -> PackedBatch:
    shape = len(examples), max(_length(example) for example in examples)
    slot = np.arange(shape[1], dtype=np.int32)
    token = np.zeros(shape, np.int32)
    length = np.array([[_length(example)] for example in examples], np.int32)
    n_prompt = np.array([[len(prompt)] for prompt, _ in examples], np.int32)
    for row, (prompt, completion) in enumerate(examples):
        token[row, : len(prompt)] = prompt
        token[row, len(prompt) : len(prompt) + len(completion)] = completion
    real = slot < length
    own = real & (slot >= n_prompt)
    flat = np.arange(token.size, dtype=np.int32).reshape(shape)
    absent = np.full(shape, np.nan, np.float32)
    return PackedBatch(
        token=token,
        position=np.where(real, slot, 0),
        prev=np.where(real & (slot > 0), flat - 1, -1),
        end=np.where(real, length, slot + 1),
        tree=np.where(real, np.arange(len(examples), dtype=np.int32)[:, None], -1),
        source=np.where(real, slot, -1),
        own=own,
        positive=own.astype(np.float64),
        negative=np.zeros(shape),
        weight=own.astype(np.float64),
        lp_old=absent,
        lp_beh=absent,
        lp_ref=absent,
    )

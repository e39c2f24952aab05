"""Evaluation: many samples a problem, then avg@k, unbiased pass@k, maj@k, greedy accuracy, with errors.

Works on any sampler and verifier; knows no model and no database.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.canon import derive_seed
from treerl.errors import SamplerError
from treerl.problem import Problem
from treerl.search.sampler import Continuation, Failure, Finish, Sampler
from treerl.verifiers.verdict import Completion, Verdict, Verify

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of n samples a problem.

    right: bool[problems, n] (a verdict other than scored counts as wrong; see `outcomes`).
    answers: extracted answers, None where nothing was found. generated_tokens: what it cost.
    """

    right: NDArray[np.bool_]
    answers: list[list[str | None]]
    outcomes: dict[str, int]
    generated_tokens: int
    dropped_prompts: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Mean over samples, float64[problems]."""
        return np.asarray(self.right.mean(axis=1), np.float64)

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k (Chen et al. 2021): mean of 1 - C(n-c, k) / C(n, k). NaN without problems."""
        counts = self.right.sum(axis=1)
        n = self.right.shape[1]
        return _mean([pass_at_k(n, int(count), k) for count in counts])

    def maj_at(self, k: int) -> float:
        """Share of problems whose most frequent answer among the first k samples is right.

        Samples without an answer do not vote; ties go to the answer that came first.
        """
        return _mean([self._majority_right(row, k) for row in range(len(self.right))])

    def standard_error(self) -> float:
        """Standard error of avg@n over problems (ddof 1)."""
        if len(self.right) < 2:
            return math.nan
        return float(self.accuracy.std(ddof=1) / math.sqrt(len(self.right)))

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Flat metrics, `eval/...`."""
        n = self.right.shape[1]
        out = {f"eval/avg@{n}": _mean(self.accuracy.tolist()), "eval/se": self.standard_error()}
        out |= {f"eval/pass@{k}": self.pass_at(k) for k in ks}
        out[f"eval/maj@{n}"] = self.maj_at(n)
        out["eval/problems"] = len(self.right)
        out["eval/generated_tokens"] = self.generated_tokens
        return out

    def _majority_right(self, row: int, k: int) -> float:
        votes = Counter(answer for answer in self.answers[row][:k] if answer is not None)
        if not votes:
            return 0.0
        winner = votes.most_common(1)[0][0]
        return float(self.right[row, self.answers[row].index(winner)])


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): chance that k of n samples, drawn without replacement, hold a right one."""
    if not 0 < k <= n:
        raise ValueError(f"k = {k} needs 1 <= k <= n = {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def paired_gain(before: Evaluation, after: Evaluation) -> tuple[float, float]:
    """Mean gain in accuracy on the same problems, and its standard error over problems."""
    difference = after.accuracy - before.accuracy
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    return float(difference.mean()), error


def evaluate(
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int] | None],
    sampler: Sampler,
    verify: Verify,
    decode: Decode,
    *,
    num_samples: int,
    max_completion_length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    patience_s: float = math.inf,
) -> Evaluation:
    """Draws `num_samples` completions a problem and judges them.

    prompts: token ids, None = too long (counted, not judged). Seeds depend on (seed, problem, sample), so
    the same weights give the same result whatever else is evaluated. Raises SamplerError where a sample comes
    to nothing, or none comes for `patience_s` seconds.
    """
    kept = [index for index, prompt in enumerate(prompts) if prompt is not None]
    spans = _draw(
        kept,
        problems,
        prompts,
        sampler,
        num_samples,
        max_completion_length,
        seed,
        progress,
        patience_s,
    )
    completions = [
        Completion(
            text=decode(span.tokens.tolist()),
            finish="stop" if span.finish == Finish.STOP else "length",
            prompt=problems[index].question,
            token_ids=tuple(span.tokens.tolist()),
        )
        for index in kept
        for span in spans[index]
    ]
    judged = verify([problems[index] for index in kept for _ in range(num_samples)], completions)
    grid = [judged[i : i + num_samples] for i in range(0, len(judged), num_samples)]
    return Evaluation(
        right=np.array([[_is_right(v) for v in row] for row in grid], dtype=bool).reshape(
            len(kept), num_samples
        ),
        answers=[[v.answer for v in row] for row in grid],
        outcomes=dict(Counter(v.outcome for v in judged)),
        generated_tokens=sum(len(span.tokens) for row in spans.values() for span in row),
        dropped_prompts=len(problems) - len(kept),
    )


def _is_right(verdict: Verdict) -> bool:
    return verdict.reward is not None and verdict.reward >= 1.0


def _draw(
    kept: Sequence[int],
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int] | None],
    sampler: Sampler,
    num_samples: int,
    max_completion_length: int,
    seed: int,
    progress: Callable[[int, int], None],
    patience_s: float,
) -> dict[int, list[Any]]:
    spans: dict[int, list[Any]] = {index: [None] * num_samples for index in kept}
    total = len(kept) * num_samples
    for order, index in enumerate(kept):
        prompt = prompts[index]
        assert prompt is not None
        for k in range(num_samples):
            draw_seed = derive_seed("evaluate", seed, problems[index].key, k)
            work = Continuation(
                np.asarray(prompt, np.int32), draw_seed, max_completion_length, True
            )
            sampler.submit(order * num_samples + k, work)
    done, newest = 0, time.monotonic()
    while done < total:
        before = done
        for ticket, span in sampler.step():
            if isinstance(span, Failure):
                raise SamplerError(f"a sample of the evaluation came to nothing: {span.reason}")
            spans[kept[ticket // num_samples]][ticket % num_samples] = span
            done += 1
        now = time.monotonic()
        if done > before:
            newest = now
        elif now - newest > patience_s:
            raise SamplerError(
                f"the evaluation waited {patience_s:g} s (sampler.request_timeout_s) for any of the "
                f"{total - done} samples that are missing"
            )
        progress(done, total)
    return spans


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

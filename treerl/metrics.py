"""Numbers of a run: one flat JSON object a step in metrics.jsonl, names documented in one table.

TRL's names where TRL has one, else `area/name`. Metrics are not logs; nothing here prints.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

METRICS: dict[str, str] = {
    "step": "optimizer steps' search-and-update cycles done, from 1",
    "seed": "seed of the recipe",
    "reward": "mean reward of the judged leaves drawn in this step",
    "reward_std": "standard deviation of the leaf rewards, mean over trees (ddof 1)",
    "frac_reward_zero_std": "share of trees whose leaves all have one reward",
    "entropy": "mean entropy at temperature 1 of the tokens drawn, nats",
    "num_tokens": "tokens generated since the start of the run",
    "step_time": "seconds of the step: search, write, credit, update; evaluation not counted",
    "train_time": "seconds of all steps so far",
    "completions/mean_length": "mean tokens of a completion",
    "completions/max_length": "longest completion, tokens",
    "completions/clipped_ratio": "share of leaves that ended by length",
    "search/generated_tokens": "tokens generated in this step",
    "search/prefill_tokens": "prompt and prefix tokens encoded in this step",
    "search/trees": "trees that were searched",
    "search/adopted_trees": "trees taken from the store after a resume instead of being searched again",
    "search/dropped_prompts": "prompts over sampler.max_prompt_length",
    "search/nodes_per_tree": "mean number of spans a tree",
    "search/leaves_per_tree": "mean number of ended leaves a tree",
    "search/seconds": "seconds of search, judging included",
    "search/tokens_per_second": "generated tokens per second of search",
    "search/exit/*": "trees that stopped for this reason",
    "verify/scored": "verdicts with a reward",
    "verify/skipped": "verdicts `not applicable`",
    "verify/timeout": "answers whose judge was killed at the time limit",
    "verify/error": "answers whose judge raised or died",
    "replay/cached_leaves": "leaves taken from the cache into this step's trees",
    "replay/trees_with_cache": "trees that took at least one cached solution",
    "replay/write_seconds": "seconds the step waited for the database",
    "credit/advantage_abs": "mean absolute advantage of the trained tokens",
    "credit/dropped_trees": "trees without training signal that left the batch",
    "credit/seconds": "seconds of credit assignment",
    "train/loss": "loss of the update, mean over optimizer steps",
    "train/grad_norm": "gradient norm before clipping, mean over optimizer steps",
    "train/lr": "learning rate of the last optimizer step",
    "train/optimizer_steps": "optimizer steps taken in this step",
    "train/skipped_steps": "optimizer steps without any credit",
    "train/trained_tokens": "unique tree tokens run forward and backward, prompts included",
    "train/flat_tokens": "tokens the same rows would take one row a leaf",
    "train/tree_token_ratio": "flat_tokens / tokens run once each: the ceiling of packing",
    "train/seconds": "seconds of the update",
    "train/tokens_per_second": "trained tokens per second of update",
    "train/total_trained_tokens": "trained tokens since the start of the run",
    "train/ratio_mean": "mean ratio of new to old probability",
    "train/ratio_max": "largest ratio",
    "kl": "KL estimate to the reference policy, mean a token",
    "approx_kl": "k3 estimate of the KL between the policy at the start of the update and now",
    "clip_ratio/low_mean": "share of negative mass clipped below",
    "clip_ratio/high_mean": "share of positive mass clipped above",
    "clip_ratio/dual_mean": "share of negative mass capped by the dual clip",
    "sampling/sampling_logp_difference/mean": "mean |trainer - sampler| log-prob of the fresh tokens",
    "sampling/sampling_logp_difference/max": "largest such difference",
    "mismatch/k3_kl": "k3 KL between sampler and trainer",
    "mismatch/ess": "effective sample size of the importance weights before the clamp, as a share",
    "eval/*": "held-out results: avg@k, pass@k, maj@k, greedy, se",
}
"""Every name a run may write; `*` stands for one word or path."""


def is_documented(name: str) -> bool:
    """True if `name` is in METRICS, by itself or under a `*` entry."""
    if name in METRICS:
        return True
    return any(key.endswith("*") and name.startswith(key[:-1]) for key in METRICS)


class MetricsLog:
    """Appends to metrics.jsonl; on a resume, lines after the checkpoint's step are cut off first."""

    def __init__(self, path: Path, *, keep_until: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [row for row in read_metrics(path) if row.get("step", 0) <= keep_until]
            draft = path.with_suffix(".tmp")
            draft.write_text("".join(_line(row) for row in kept), encoding="utf-8")
            os.replace(draft, path)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """One line, flushed. NaN and infinities become null: JSON has none."""
        self._file.write(_line(row))
        self._file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a torn last line (killed run) is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _line(row: Mapping[str, Any]) -> str:
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(clean, ensure_ascii=False) + "\n"

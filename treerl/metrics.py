"""Numbers of a run: one flat JSON object a step in metrics.jsonl, names documented in one table.

TRL's names where TRL has one, else `area/name`. Metrics are not logs; nothing here prints.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from treerl.errors import StoreError

METRICS: dict[str, str] = {
    # A run's row 0 has step, seed and the evaluation of the start; each later row is one step.
    "step": "search-and-update steps done; row 0 holds the evaluation of the start",
    "seed": "seed of the recipe (row 0)",
    "reward": "mean reward of the judged leaves drawn for this step's trees (cached ones not counted)",
    "reward_std": "standard deviation of a tree's leaf rewards, mean over trees (ddof 1)",
    "frac_reward_zero_std": "share of trees whose leaves all have one reward",
    "entropy": "mean entropy at temperature 1 of the tokens drawn, nats",
    "num_tokens": "tokens generated for this run's trees, and to choose its problems, so far",
    "step_time": "seconds of the step: search, write, credit, update; evaluation not counted",
    "train_time": "seconds of all steps so far",
    "train_cpu_time": "CPU seconds of this process in all steps so far, all threads",
    "completions/mean_length": "mean tokens of a completion",
    "completions/max_length": "longest completion, tokens",
    "completions/clipped_ratio": "share of leaves that ended by length",
    "search/generated_tokens": "tokens of this step's trees, cached ones not counted",
    "search/prefill_tokens": "prompt and prefix tokens encoded in this step",
    "search/discarded_tokens": "tokens drawn in this step that are in no tree: their continuation was given up",
    "search/reused_tokens": "prefix tokens that were not encoded in this step because another row had them",
    "search/trees": "trees that were searched in this step",
    "search/adopted_trees": "trees taken from the store after a resume instead of being searched again",
    "search/dropped_prompts": "prompts over sampler.max_prompt_length or without room in the model's context",
    "search/nodes_per_tree": "mean number of spans a tree, the prompt's included",
    "search/leaves_per_tree": "mean number of ended leaves a tree, cached ones included",
    "search/depth_per_tree": "mean number of spans on a tree's longest path, the prompt's not counted",
    "search/solved": "share of trees with a right leaf among those drawn (cached ones not counted)",
    "search/seconds": "seconds of search, judging included",
    "search/sampler_seconds": "seconds of these inside the sampler; the rest: books, waiting for verdicts",
    "search/tokens_per_second": "tokens generated now per second of search",
    "search/exit/*": "trees that stopped for this reason",
    "verify/scored": "verdicts with a reward",
    "verify/skipped": "verdicts `not applicable`",
    "verify/timeout": "answers whose judge was killed at the time limit",
    "verify/error": "answers whose judge raised or died",
    "replay/cached_leaves": "leaves in this step's trees that came from the cache",
    "replay/trees_with_cache": "trees with at least one cached leaf",
    "replay/own_rows": "stored rows read from this run's own earlier steps",
    "replay/other_rows": "stored rows read from other runs",
    "replay/age_mean": "mean steps that the policy of the run's own stored rows is behind",
    "replay/age_max": "most steps that one of them is behind",
    "replay/pool_size": "rows in the self-imitation pool when the step began",
    "replay/imitation_weight": "weight of a replayed token beside a fresh one",
    "replay/imitation_baseline": "median of the last group means, which stored rewards are compared with",
    "replay/imitation_ess": "effective share of the tokens to be imitated, by their ratios before the update",
    "replay/imitation_dropped": "rows left out because their mean ratio was too large",
    "replay/imitated_rows": "stored rows that joined the update",
    "curriculum/phase": "number of the curriculum's phase, from 0",
    "curriculum/problems": "problems the phase trains on",
    "curriculum/candidates": "problems the phase was chosen from (its first step)",
    "curriculum/candidate_rate": "share of right responses among those that chose it (its first step)",
    "curriculum/screen_tokens": "tokens generated to choose it (its first step)",
    "replay/write_seconds": "seconds the step waited to hand its trees to the writer of the database",
    "replay/trained_tokens": "cached tokens that took the loss, summed over optimizer steps",
    "replay/is_mean": "mean importance weight of cached tokens, policy / policy that drew, before the cap",
    "replay/is_max": "largest of these weights",
    "replay/capped_frac": "share of these weights over loss.replay_is_threshold",
    "replay/ess": "effective sample size of these weights before the cap, as a share",
    "credit/advantage_mean": "mean advantage of the trained tokens",
    "credit/advantage_abs": "mean absolute advantage of the trained tokens",
    "credit/positive_on_wrong": "share of the tokens of wrong leaves whose advantage is positive",
    "credit/negative_on_right": "share of the tokens of right leaves whose advantage is negative",
    "credit/dropped_trees": "trees without training signal that left the batch",
    "credit/seconds": "seconds of credit assignment",
    "loss": "loss of the update, mean over optimizer steps",
    "grad_norm": "gradient norm before clipping, mean over optimizer steps",
    "learning_rate": "learning rate of the last optimizer step",
    "train/grad_norm_max": "largest gradient norm before clipping",
    "train/optimizer_steps": "optimizer steps taken in this step",
    "train/skipped_steps": "optimizer steps left out because nothing had a gradient",
    "train/trees": "trees that carried a gradient",
    "train/tokens_trained": "unique tokens that took the loss, over all iterations",
    "train/tokens_packed": "tokens run forward and backward, prompts and repeated paths included",
    "train/tokens_padded": "the same with padding",
    "train/tokens_flat": "tokens that one row a leaf would run",
    "train/tree_token_ratio": "tokens_flat / tokens_packed: the ceiling of packing",
    "train/total_tokens_trained": "tokens_trained since the start of the run",
    "train/seconds": "seconds of the update",
    "train/tokens_per_second": "tokens trained per second of update",
    "train/entropy": "mean entropy of the trained tokens: the loss's where it computes one, else the sampler's",
    "train/first_ratio_out_of_band": "share of tokens outside the clip band in the first optimizer step",
    "train/clip_dual": "share of negative mass capped by the dual clip",
    "train/ratio_mean": "mean ratio of new to old probability",
    "train/ratio_max": "largest ratio",
    "train/ratio_min": "smallest ratio",
    "train/approx_kl": "k3 estimate of the KL between the policy at the start of the update and now",
    "time/update_*": "seconds of one phase of the update: pack, old, reference, forward, backward, optimizer",
    "kl": "KL estimate to the reference policy, mean a token",
    "clip_ratio/low_mean": "share of negative mass clipped below",
    "clip_ratio/high_mean": "share of positive mass clipped above",
    "clip_ratio/region_mean": "share of tokens outside the clip band",
    "sampling/sampling_logp_difference/mean": "mean |trainer - sampler| log-prob of the fresh tokens",
    "sampling/sampling_logp_difference/max": "largest such difference",
    "sampling/importance_sampling_ratio/min": "smallest weight trainer / sampler before the cap",
    "sampling/importance_sampling_ratio/mean": "mean weight",
    "sampling/importance_sampling_ratio/max": "largest weight",
    "mismatch/k1": "k1 KL between sampler and trainer",
    "mismatch/kl": "k3 KL between sampler and trainer",
    "mismatch/ess": "effective sample size of the importance weights before the cap, as a share",
    "mismatch/capped_frac": "share of importance weights over the cap",
    "time/handover": "seconds of the hand-over of weights to the sampler, its checks included",
    "handover/checked": "checks made of what the sampler serves: fingerprints, cache, log-probs",
    "handover/tensors": "tensors whose fingerprints were compared",
    "handover/logp_difference": "mean |trainer - sampler| log-prob of the samples drawn as a check",
    "mismatch/ess_leaves": "effective sample size of the leaves' weights, before cap and mask",
    "mismatch/rejected_frac": "share of row tokens that a mask or a leaf's weight took out of the update",
    "eval/*": "held-out results: avg@k, pass@k, maj@k, greedy, se, problems, tokens, unjudged answers",
}
"""Every name a run may write; `*` stands for one word or path."""


def is_documented(name: str) -> bool:
    """True if `name` is in METRICS, by itself or under a `*` entry."""
    if name in METRICS:
        return True
    return any(key.endswith("*") and name.startswith(key[:-1]) for key in METRICS)


class MetricsLog:
    """Appends to metrics.jsonl; lines of an earlier attempt after step `keep_until` are cut off first."""

    def __init__(self, path: Path, *, keep_until: int = -1) -> None:
        self.path = path
        with _store_errors(path):
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
        # What a full disk left in the buffer fails once more here; `write` has said so.
        with suppress(OSError):
            self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """One line, flushed. NaN and infinities become null: JSON has none. Raises StoreError (full disk)."""
        with _store_errors(self.path):
            self._file.write(_line(row))
            self._file.flush()


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Turns a failed write into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Free some space or choose another run.output_dir"
        ) from error


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

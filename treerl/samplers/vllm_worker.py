"""What runs inside vLLM's worker: a sampler that reports the exact entropy of each step.

vLLM's own reports log-probs either of the raw logits or of what it drew from, and the entropy of neither.
Imported by the worker alone, for it needs vllm.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.sampler import Sampler

from treerl.samplers.vllm_engine import ENTROPY_ID

_GREEDY_BELOW = 1e-5
"""vLLM's limit."""
_CPU_ROWS = 4


class EntropySampler(Sampler):  # type: ignore[misc]
    """vLLM's V1 sampler with two columns of log-probs: that of the drawn token, and the entropy.

    The first is of the distribution drawn from (temperature, top-k and top-p included; 0 where greedy), the
    second in nats of the raw logits at temperature 1 over the full vocabulary, under the id ENTROPY_ID.
    """

    def __init__(self, replaced: Sampler) -> None:
        super().__init__("processed_logits", replaced.use_fp64_gumbel)
        # Log-probs of prompt tokens go through these methods of the sampler as before.
        self.logprobs_mode = replaced.logprobs_mode

    def forward(
        self,
        logits: Tensor,
        sampling_metadata: Any,
        predict_bonus_token: bool = False,
        logprobs_mode_override: Any = None,
    ) -> SamplerOutput:
        """logits: float[n, V]. Draws one token a row."""
        metadata = sampling_metadata
        logits = logits.float()
        logp = logits.log_softmax(-1)  # before `sample`, which changes logits in place
        entropies = entropies_of(logp)
        logits = self.apply_logits_processors(logits, metadata, predict_bonus_token)
        sampled, processed = self.sample(logits, metadata, "processed_logits")
        sampled = sampled.long()[:, None]
        if metadata.all_greedy:
            drawn = torch.zeros_like(entropies)
        else:
            drawn = _drawn_logprobs(logp, processed, sampled, metadata)
        columns = torch.stack([drawn, entropies], 1)
        ids = torch.cat([sampled, torch.full_like(sampled, ENTROPY_ID)], 1).to(torch.int32)
        ranks = torch.zeros_like(sampled[:, 0])  # nobody asks for them
        return SamplerOutput(
            sampled_token_ids=sampled.to(torch.int32),
            logprobs_tensors=LogprobsTensors(ids, columns, ranks),
        )


def entropies_of(logp: Tensor) -> Tensor:
    """Entropies float[n], in nats, of rows of log-probs float[n, V]; NaN for a row with NaN.

    -inf in `logp`, which some models give to tokens that never are, becomes the smallest number.
    """
    parts = []
    for rows in _few_rows(logp):
        rows.clamp_min_(torch.finfo(rows.dtype).min)  # else 0 times infinity
        parts.append(-torch.linalg.vecdot(rows.exp(), rows))
    return torch.cat(parts)


def _few_rows(matrix: Tensor) -> Sequence[Tensor]:
    """Views of some rows each: on a CPU what is computed of them stays in its cache, five times as fast."""
    count = _CPU_ROWS if matrix.is_cpu else max(1, len(matrix))
    return torch.split(matrix, count)


def _drawn_logprobs(logp: Tensor, processed: Tensor, sampled: Tensor, metadata: Any) -> Tensor:
    """float[n]: log-probs of `sampled` (int64[n, 1]) in softmax(processed), logits after truncation."""
    untruncated = metadata.top_k is None and metadata.top_p is None
    temperature = metadata.temperature
    # On a GPU the question would wait for the device, and the sum costs nothing.
    if untruncated and temperature.is_cpu and bool((temperature == 1).all()):
        return logp.gather(-1, sampled)[:, 0]
    # Where truncation left -inf, `logsumexp` takes six times as long.
    pairs = zip(_few_rows(processed), _few_rows(sampled), strict=True)
    drawn = torch.cat([rows.log_softmax(-1).gather(-1, ids)[:, 0] for rows, ids in pairs])
    if metadata.all_random:
        return drawn
    return drawn.masked_fill(temperature < _GREEDY_BELOW, 0.0)


class WorkerExtension:
    """Methods that treerl adds to vLLM's worker, for `VllmEngine.rpc`."""

    model_runner: Any

    def report_entropies(self) -> None:
        """Puts `EntropySampler` in the place of vLLM's."""
        self.model_runner.sampler = EntropySampler(self.model_runner.sampler)

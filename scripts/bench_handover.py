"""What a hand-over of weights to vLLM costs, and what serving an adapter costs: CPU seconds of this process.

    python scripts/bench_handover.py --model DIR_OR_GGUF [--dtype float32 bfloat16] [--rounds 5] [--json FILE]

Three ways: `full` (the whole model is trained), `merged` (LoRA, full weights go over) and `adapter` (LoRA, the
adapter goes over). Each round changes the trained weights, hands them over and makes the checks; then rows
are decoded. Medians over the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from treerl.config import EngineSettings, LoraSettings, PolicySettings, VllmSettings
from treerl.engine.handover import Handover, weights_of
from treerl.engine.samplers import SamplerSource
from treerl.policy.model import Policy, load_policy
from treerl.search.sampler import Continuation, Finish, Span
from treerl.search.tree import ROOT, Tree

PROMPT, TOKENS, ROWS = 48, 48, 32


def cpu_seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def change(policy: Policy, seed: int) -> None:
    """A small update of everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in policy.model.parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
                value.add_((noise * 1e-4).to(value.dtype))


def paths(vocabulary: int) -> list[Tree]:
    """Trees of one path each, for the checks."""
    rng = np.random.default_rng(0)
    trees = []
    for index in range(8):
        tree = Tree(rng.integers(3, vocabulary, PROMPT), seed=index, max_completion_length=99)
        zeros = np.zeros(TOKENS, np.float32)
        tokens = rng.integers(3, vocabulary, TOKENS, dtype=np.int32)
        tree.append(tree.request(ROOT, 1), 0, Span(tokens, zeros, zeros, 0, Finish.STOP))
        trees.append(tree)
    return trees


def decode(sampler: Any, vocabulary: int) -> int:
    """Draws ROWS continuations; returns the number of tokens."""
    rng = np.random.default_rng(1)
    for row in range(ROWS):
        prefix = rng.integers(3, vocabulary, PROMPT, dtype=np.int32)
        sampler.submit(row, Continuation(prefix, row, TOKENS, last=True))
    drawn = ended = 0
    while ended < ROWS:  # a step may come back with nothing after a second
        spans = sampler.step()
        ended += len(spans)
        drawn += sum(len(span.tokens) for _, span in spans)
    return drawn


def measure(model: str, dtype: str, way: str, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each part."""
    lora = None if way == "full" else LoraSettings(r=16)
    policy = load_policy(PolicySettings(model=model, dtype=dtype, lora=lora))  # type: ignore[arg-type]
    served = EngineSettings(kv_cache_gib=0.25, lora="adapter" if way == "adapter" else "merged")
    settings = VllmSettings(
        max_prompt_length=128, max_completion_length=128, max_batch=64, vllm=served
    )
    vocabulary = int(policy.model.config.vocab_size)
    parts: dict[str, list[float]] = {}
    with ExitStack() as opened:
        source = SamplerSource(policy, settings, opened)
        sampler: Any = source.make(settings)
        assert source.engine is not None
        handed = Handover(
            policy, sampler, settings, context=256, sampler_dtype=source.engine.weights.dtype
        )
        trees = paths(vocabulary)
        for number in range(1, rounds + 1):
            change(policy, number)
            weights = weights_of(policy)
            begun = {
                "send": lambda n=number, w=weights: sampler.publish(w, n),
                "fingerprints": lambda w=weights: sampler.compare(w),
            }
            for name, work in begun.items():
                parts.setdefault(name, []).append(cpu_seconds(work))
            whole = cpu_seconds(lambda n=number: handed.publish(n, trees))
            parts.setdefault("hand-over with all checks", []).append(whole)
            sampler.set_version(number)
            clock = time.process_time()
            drawn = decode(sampler, vocabulary)
            spent = 1e3 * (time.process_time() - clock) / drawn
            parts.setdefault("decode, ms a token", []).append(spent)
    return {name: statistics.median(values) for name, values in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--way", nargs="+", default=["full", "merged", "adapter"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    model = given.model
    with tempfile.TemporaryDirectory() as folder:
        if model.endswith(".gguf"):
            # An adapter names its base, so it needs a folder.
            policy = load_policy(PolicySettings(model=model))
            policy.model.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
            model = folder
        rows = {
            f"{dtype} {way}": measure(model, dtype, way, given.rounds)
            for dtype in given.dtype
            for way in given.way
        }
    for name, row in rows.items():
        print(f"{name:18}", "  ".join(f"{part} {value:.3f}" for part, value in row.items()))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()

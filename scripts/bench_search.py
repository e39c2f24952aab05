"""Tokens per CPU second of tree search through the scheduler, against one flat batch on the same sampler.

    python scripts/bench_search.py --model FILE_OR_FOLDER [--sampler vllm] [--rounds 3] [--json FILE]

`generate` submits all continuations at once and drains the engine: what it can do at best. flat, cure and
deepsearch grow trees of as many leaves over the same prompts, with seeds, prefixes, verdicts and statistics.
Nobody waits for EOS: each continuation ends after a number of tokens drawn from its seed, geometric and cut at
the length limit, so that all sides have ragged lengths of one distribution. Prompts are random tokens, rewards
a coin of the text. Rounds alternate, the prefix cache is empty at the start of each; the ratio is the median
over rounds of tokens per CPU second over those of `generate` in the same round. `shared` is the share of prefix
tokens that the sampler had, of those that an earlier continuation of the tree left (vLLM: in whole blocks).
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from treerl.canon import derive_seed
from treerl.config import (
    CureSearch,
    DeepSearchSearch,
    EngineSettings,
    EntropyTopK,
    FlatSearch,
    PolicySettings,
    SamplerSettings,
    SearchSettings,
)
from treerl.engine.samplers import write_model
from treerl.policy.model import Policy, load_policy
from treerl.problem import Problem
from treerl.samplers.transformers import TransformersSampler
from treerl.samplers.vllm import VllmSampler
from treerl.samplers.vllm_engine import CPU_BLOCK, VllmEngine
from treerl.search.sampler import CUT, LENGTH, STOP, Continuation, Sampler, Span
from treerl.search.scheduler import Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Completion, Verdict


def searches(leaves: int, chunk: int) -> dict[str, SearchSettings]:
    cut = EntropyTopK(min_characters=1)
    return {
        "flat": FlatSearch(num_generations=leaves),
        "cure": CureSearch(num_generations=leaves, num_branches=1, cut=cut, only_undecided=False),
        "deepsearch": DeepSearchSearch(num_generations=leaves, chunk_tokens=chunk),
    }


class Ragged:
    """A sampler whose continuations end after a number of tokens that their seeds name."""

    def __init__(self, inner: Sampler, mean: float) -> None:
        self._inner, self._mean = inner, mean
        self._works: dict[int, Continuation] = {}
        self.prefixes: list[int] = []

    @property
    def capacity(self) -> int:
        return self._inner.capacity

    @property
    def policy_version(self) -> int:
        return self._inner.policy_version

    @property
    def stats(self) -> dict[str, Any]:
        return self._inner.stats

    def submit(self, ticket: int, work: Continuation) -> None:
        self._works[ticket] = work
        self.prefixes.append(len(work.prefix))
        length = ragged_length(work.seed, self._mean, work.max_tokens)
        self._inner.submit(ticket, replace(work, max_tokens=length))

    def step(self) -> list[tuple[int, Span]]:
        return [(ticket, self._ended(ticket, span)) for ticket, span in self._inner.step()]

    def abort(self, tickets: Iterable[int]) -> None:
        self._inner.abort(tickets)

    def _ended(self, ticket: int, span: Any) -> Span:
        work = self._works.pop(ticket)
        if len(span.tokens) < work.max_tokens:
            return replace(span, finish=STOP)
        return replace(span, finish=LENGTH if work.last else CUT)


def ragged_length(seed: int, mean: float, most: int) -> int:
    uniform = (seed >> 11) / 2.0**52
    return max(1, min(most, math.ceil(-mean * math.log(1.0 - uniform))))


class Bench:
    """One policy under one sampler; `fresh` makes a sampler that remembers no prefix."""

    def __init__(self, arguments: argparse.Namespace, policy: Policy, opened: ExitStack) -> None:
        self.arguments, self.policy = arguments, policy
        self.settings = SamplerSettings(max_batch=arguments.batch)
        self.engine: VllmEngine | None = None
        if arguments.sampler == "vllm":
            self.engine = opened.enter_context(self._open())
        self.strategies = {
            name: make_strategy(settings, lambda ids: ["xy"] * len(ids))
            for name, settings in searches(arguments.leaves, arguments.chunk).items()
        }

    def _open(self) -> VllmEngine:
        with tempfile.TemporaryDirectory() as folder:
            write_model(self.policy, Path(folder))
            return VllmEngine(
                folder,
                EngineSettings(kv_cache_gib=self.arguments.cache_gib),
                max_length=self.arguments.prompt + self.arguments.longest,
                max_batch=self.arguments.batch,
                dtype=getattr(torch, self.arguments.dtype),
            )

    def fresh(self) -> Ragged:
        vocabulary = self.policy.model.config.vocab_size
        sampler: Sampler
        if self.engine is None:
            sampler = TransformersSampler(
                self.policy.model,
                settings=self.settings,
                stop_token_ids=[],
                pad_token_id=0,
                device="cpu",
            )
        else:
            self.engine.reset_prefix_cache()
            sampler = VllmSampler(
                self.engine, settings=self.settings, stop_token_ids=[], vocabulary=vocabulary
            )
        return Ragged(sampler, self.arguments.mean)

    def generate(self, prompts: Sequence[Any], number: int) -> tuple[int, Ragged]:
        """All continuations at once, nothing between the engine and its result."""
        sampler, total = self.fresh(), len(prompts) * self.arguments.leaves
        for ticket in range(total):
            seed = derive_seed("generate", number, ticket)
            prompt = prompts[ticket // self.arguments.leaves]
            sampler.submit(ticket, Continuation(prompt, seed, self.arguments.longest, True))
        ended = tokens = 0
        while ended < total:
            for _, span in sampler.step():
                ended += 1
                tokens += len(span.tokens)
        return tokens, sampler

    def search(self, name: str, prompts: Sequence[Any], number: int) -> tuple[int, Ragged]:
        sampler = self.fresh()
        longest = self.arguments.longest
        trees = [
            Tree(prompt, seed=derive_seed(number, i), max_completion_length=longest)
            for i, prompt in enumerate(prompts)
        ]
        problem = Problem("question", "truth", "exact")
        growths = [Growth(tree, self.strategies[name], problem) for tree in trees]
        decode = self.policy.tokenizer.decode
        list(grow(growths, sampler, judge, lambda ids: str(decode(list(ids)))))
        return sum(tree.n_generated for tree in trees), sampler

    def side(self, name: str, prompts: Sequence[Any], number: int) -> dict[str, float]:
        """Figures of one side of one round."""
        run: Callable[[], tuple[int, Ragged]] = (
            (lambda: self.generate(prompts, number))
            if name == "generate"
            else (lambda: self.search(name, prompts, number))
        )
        begun = time.process_time()
        tokens, sampler = run()
        seconds = time.process_time() - begun
        given, reused = sum(sampler.prefixes), sampler.stats["reused_tokens"]
        block = CPU_BLOCK if self.engine else 1
        blocks = [(n - 1) // block * block for n in sampler.prefixes]
        firsts = sum((len(prompt) - 1) // block * block for prompt in prompts)
        return {
            "tokens": tokens,
            "per_second": tokens / seconds,
            "hit_rate": reused / given,
            "shared": reused / max(1, sum(blocks) - firsts),
        }


def judge(problems: list[Problem], completions: list[Completion]) -> "Future[list[Verdict]]":
    done: Future[list[Verdict]] = Future()
    done.set_result([Verdict("scored", float(sum(c.token_ids) % 2)) for c in completions])
    return done


def measure(bench: Bench, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    names = ["generate", *bench.strategies]
    rounds: list[dict[str, dict[str, float]]] = []
    vocabulary = bench.policy.model.config.vocab_size
    bench.generate([np.array([3, 4, 5], np.int32)], -1)  # warms up
    for number in range(arguments.rounds):
        shape = (arguments.trees, arguments.prompt)
        prompts = list(rng.integers(3, vocabulary, shape, dtype=np.int32))
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        figures = {name: bench.side(name, prompts, number) for name in order}
        rounds.append(figures)
        speeds = "  ".join(f"{name} {figures[name]['per_second']:.1f}" for name in names)
        print(f"round {number + 1}, tokens per CPU second: {speeds}", flush=True)
    lines = []
    for name in names:
        own = [figures[name] for figures in rounds]
        line: dict[str, Any] = {key: statistics.median(one[key] for one in own) for key in own[0]}
        ratios = [f[name]["per_second"] / f["generate"]["per_second"] for f in rounds]
        lines.append({"side": name, **line, "ratio": statistics.median(ratios), "ratios": ratios})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file or a folder with a causal LM")
    parser.add_argument("--sampler", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--trees", type=int, default=32)
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="sequences drawn together")
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--mean", type=float, default=64, help="of the geometric lengths")
    parser.add_argument("--longest", type=int, default=160)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-gib", type=float, default=0.5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(PolicySettings(model=arguments.model, dtype=arguments.dtype, device="cpu"))
    with ExitStack() as opened:
        lines = measure(Bench(arguments, policy, opened), arguments)
    print(f"{'side':12}{'tokens':>9}{'a CPU s':>10}{'ratio':>8}{'hits':>8}{'shared':>8}")
    for line in lines:
        print(
            f"{line['side']:12}{line['tokens']:9.0f}{line['per_second']:10.1f}{line['ratio']:8.3f}"
            f"{line['hit_rate']:8.3f}{line['shared']:8.3f}"
        )
    if arguments.json:
        header = {"torch": torch.__version__, "machine": platform.machine(), **vars(arguments)}
        text = json.dumps({**header, "json": None, "lines": lines}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

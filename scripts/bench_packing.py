"""Time and memory of packed trees against flat rows, forward and backward, on three tree shapes.

    python scripts/bench_packing.py [--rounds 5] [--layers 4] [--threads 1] [--json FILE]

A Llama of SmolLM2-135M's width with random weights; its vocabulary is cut with its depth (49152 * layers / 30)
so that head and layers weigh as in the whole model (`--layers 30` is it). Variants run interleaved in one
process; the measure is CPU seconds, median over rounds, and the fraction of the ceiling (flat tokens / tree
tokens) that is realised against the better flat. Flat rows of a shape are alike, so one micro-batch of them
is timed and scaled (`--all-rows`: all). Peak memory comes from one pass of each variant in its own process.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treerl.credit.masses import TokenCredit
from treerl.policy.batch import PackedBatch
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy, wrap_model
from treerl.policy.pack import pack_trees, training_leaves
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree

VARIANTS = ("flat padded", "flat packed", "tree")
MAX_TOKENS = 4352
"""Tokens of a micro-batch, the same for all variants. More is slower on CPU for each of them: activations
above 32 MB get fresh pages from malloc every time."""


@dataclass(frozen=True)
class Work:
    """Batches of one variant of one shape; `scale`: measured part to whole."""

    policy: Policy
    batches: list[PackedBatch]
    scale: float


@dataclass(frozen=True)
class Result:
    """One variant of one shape: medians over rounds, and the CPU seconds of each round."""

    shape: str
    variant: str
    tokens: int
    unique: int
    cpu_s: float
    wall_s: float
    rounds: list[float]
    peak_mb: float | None


# Shapes ----------------------------------------------------------------------------------------------------


def mcts(vocabulary: int) -> Tree:
    """Binary: 6 levels of 64-token spans (1, 2, ..., 32 of them), 128-token prompt; ceiling 3.94."""
    grower = Grower(vocabulary, 128)
    level = [grower.span(ROOT, 64, Finish.CUT)]
    for depth in range(5):
        finish = Finish.STOP if depth == 4 else Finish.CUT
        level = [grower.span(node, 64, finish) for node in level for _ in range(2)]
    return grower.tree


def cure(vocabulary: int) -> Tree:
    """CURE-like: 4 rollouts of 512 tokens, each branched three times in its middle; ceiling 1.95."""
    grower = Grower(vocabulary, 128)
    for _ in range(4):
        half = grower.span(ROOT, 256, Finish.CUT)
        for _ in range(4):
            grower.span(half, 256, Finish.STOP)
    return grower.tree


def star(vocabulary: int) -> Tree:
    """16 rollouts of 512 tokens that share a prompt of 16: nothing to gain; ceiling 1.03."""
    grower = Grower(vocabulary, 16)
    for _ in range(16):
        grower.span(ROOT, 512, Finish.STOP)
    return grower.tree


SHAPES: dict[str, Callable[[int], Tree]] = {"mcts": mcts, "cure": cure, "star": star}


class Grower:
    """Adds random spans to a tree."""

    def __init__(self, vocabulary: int, prompt: int) -> None:
        self.rng = np.random.default_rng(0)
        self.vocabulary = vocabulary
        self.tree = Tree(self.tokens(prompt), seed=0, max_completion_length=4096)

    def tokens(self, count: int) -> np.ndarray:
        """Random token ids, int32[count]."""
        return self.rng.integers(0, self.vocabulary, count, dtype=np.int32)

    def span(self, node: int, count: int, finish: Finish) -> int:
        """Appends a span; returns its row."""
        zero = np.zeros(count, np.float32)
        span = Span(self.tokens(count), zero, zero, 0, finish)
        return self.tree.append(self.tree.request(node, 1), 0, span)


def flat_tokens(tree: Tree) -> int:
    return sum(len(tree.path_index(leaf)) for leaf in training_leaves(tree))


# Work ------------------------------------------------------------------------------------------------------


def make_policy(
    layers: int,
    vocabulary: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """SmolLM2-135M's width with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    return wrap_model(LlamaForCausalLM(config).to(dtype), name="bench", device=device)


def make_work(policy: Policy, tree: Tree, variant: str, *, all_rows: bool) -> Work:
    if variant == "tree":
        credit = random_credit(tree)
        batches = pack_trees([tree], [credit], max_tokens=MAX_TOKENS, row_tokens=policy.row_tokens)
        return Work(policy, batches, 1.0)
    leaves = training_leaves(tree)
    paths = [single_path(tree, leaf) for leaf in leaves]
    credits = [random_credit(path) for path in paths]
    row_tokens = MAX_TOKENS if variant == "flat packed" else 0
    flat = pack_trees(paths, credits, max_tokens=MAX_TOKENS, row_tokens=row_tokens)
    if all_rows:
        return Work(replace(policy, attention="runs"), flat, 1.0)
    largest = max(flat, key=lambda batch: batch.source.size)
    rows = len(np.unique(largest.tree[largest.tree >= 0]))
    return Work(replace(policy, attention="runs"), [largest], len(paths) / rows)


def single_path(tree: Tree, leaf: int) -> Tree:
    """A tree of one leaf, as flat training sees it."""
    path = tree.path_tokens(leaf)
    alone = Tree(path[: tree.n_prompt], seed=0, max_completion_length=4096)
    rest = path[tree.n_prompt :]
    zero = np.zeros(len(rest), np.float32)
    alone.append(alone.request(ROOT, 1), 0, Span(rest, zero, zero, 0, Finish.STOP))
    return alone


def random_credit(tree: Tree) -> TokenCredit:
    trained = tree.tokens.mask.astype(float)
    mass = np.random.default_rng(1).random(len(trained)) * trained
    return TokenCredit(mass, mass[::-1].copy() * trained, trained, float(trained.sum()), 1)


def step(work: Work) -> None:
    """Forward and backward of a policy-gradient loss with an entropy bonus; the gradient is dropped."""
    for batch in work.batches:
        lp, entropy = token_logprobs(work.policy, batch, with_entropy=True, grad=True)
        mass = torch.from_numpy(batch.positive - batch.negative).to(lp)
        assert entropy is not None
        (-(mass * lp).sum() - 0.01 * entropy.sum()).backward()
    work.policy.model.zero_grad(set_to_none=True)


def measure(work: Work) -> tuple[float, float]:
    """CPU and wall seconds of the whole, scaled."""
    cpu, wall = time.process_time(), time.perf_counter()
    step(work)
    return work.scale * (time.process_time() - cpu), work.scale * (time.perf_counter() - wall)


def peak_mb(arguments: argparse.Namespace, shape: str, variant: str) -> float:
    """Peak resident memory above the loaded model, of one step in a process of its own."""
    command = [sys.executable, __file__, "--memory", shape, variant]
    command += ["--layers", str(arguments.layers), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_memory(arguments: argparse.Namespace) -> None:
    shape, variant = arguments.memory
    vocabulary = vocabulary_of(arguments.layers)
    policy = make_policy(arguments.layers, vocabulary)
    work = make_work(policy, SHAPES[shape](vocabulary), variant, all_rows=False)
    work = replace(work, batches=[max(work.batches, key=lambda batch: batch.source.size)])
    before = resident_peak_mb()
    step(work)
    print(resident_peak_mb() - before)


def resident_peak_mb() -> float:
    """Peak resident memory of this program (Linux: VmHWM; getrusage would hand down the parent's peak)."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def vocabulary_of(layers: int) -> int:
    return 49152 * layers // 30


# Report ----------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> list[Result]:
    vocabulary = vocabulary_of(arguments.layers)
    policy = make_policy(arguments.layers, vocabulary)
    trees = {name: SHAPES[name](vocabulary) for name in arguments.shapes}
    works = {
        (shape, variant): make_work(policy, tree, variant, all_rows=arguments.all_rows)
        for shape, tree in trees.items()
        for variant in VARIANTS
    }
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in works}
    for number in range(arguments.rounds):
        for key, work in works.items():
            times[key].append(measure(work))
            print(
                f"round {number + 1}: {key[0]:5} {key[1]:12} {times[key][-1][0]:7.1f} CPU s",
                file=sys.stderr,
                flush=True,
            )
    results = []
    for (shape, variant), seconds in times.items():
        tree = trees[shape]
        tokens = flat_tokens(tree)
        if variant == "tree":
            tokens = sum(int((b.source >= 0).sum()) for b in works[shape, variant].batches)
        cpu = [pair[0] for pair in seconds]
        wall = statistics.median(pair[1] for pair in seconds)
        memory = None if arguments.no_memory else peak_mb(arguments, shape, variant)
        results.append(
            Result(
                shape,
                variant,
                tokens,
                len(tree.tokens),
                statistics.median(cpu),
                wall,
                cpu,
                memory,
            )
        )
    return results


def summarise(results: list[Result]) -> list[dict[str, object]]:
    """One line a shape and variant, with speed-up and fraction of the ceiling against the better flat."""
    lines: list[dict[str, object]] = []
    for result in results:
        flats = [r for r in results if r.shape == result.shape and r.variant != "tree"]
        best = min(flats, key=lambda r: r.cpu_s)
        rounds = [a / b for a, b in zip(best.rounds, result.rounds, strict=True)]
        speedup = statistics.median(rounds)
        ceiling = best.tokens / best.unique
        lines.append(
            {
                "shape": result.shape,
                "variant": result.variant,
                "tokens": result.tokens,
                "cpu_s": round(result.cpu_s, 2),
                "wall_s": round(result.wall_s, 2),
                "peak_mb": None if result.peak_mb is None else round(result.peak_mb),
                "speedup": round(speedup, 3),
                "speedup_range": [round(min(rounds), 3), round(max(rounds), 3)],
                "ceiling": round(ceiling, 3),
                "fraction": round(speedup / ceiling, 3),
            }
        )
    return lines


def show(lines: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Forward and backward, packed trees against flat rows")
    columns = ["shape", "variant", "tokens", "cpu_s", "wall_s", "peak_mb"]
    columns += ["speedup", "speedup_range", "ceiling", "fraction"]
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right", no_wrap=True)
    for line in lines:
        is_tree = line["variant"] == "tree"
        hidden = () if is_tree else ("ceiling", "fraction")
        table.add_row(
            *("" if column in hidden else str(line[column]) for column in columns),
            end_section=is_tree,
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--all-rows", action="store_true", help="time every flat row")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, metavar=("SHAPE", "VARIANT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_memory(arguments)
        return
    lines = summarise(run(arguments))
    show(lines)
    if arguments.json:
        header = {
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "threads": arguments.threads,
            "layers": arguments.layers,
            "rounds": arguments.rounds,
        }
        arguments.json.write_text(json.dumps({**header, "results": lines}, indent=1))


if __name__ == "__main__":
    main()

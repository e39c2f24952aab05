"""Everything worth knowing about packing on a GPU, in one table; runs unattended.

    PYTHONPATH=. python scripts/gpu_check.py [--cpu] [--json FILE] [--layers 12]

Exactness of each attention variant against dense fp32, gradients included; fraction of the ceiling, tokens
per second and peak memory on the shapes of bench_packing; compiles over 100 steps of varying trees; speed
of the transformers sampler. Needs torch, transformers and numpy alone (rich for a nicer table). Without
CUDA it says so and ends with 0; `--cpu` runs first what a CPU can. Exit code 1: a check failed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from bench_packing import (
    SHAPES,
    Grower,
    Work,
    flat_tokens,
    make_policy,
    random_credit,
    single_path,
    step,
)
from transformers import LlamaConfig, LlamaForCausalLM

from treerl.errors import TreerlError
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy, wrap_model
from treerl.policy.pack import pack_trees, scatter_to_trees, training_leaves
from treerl.policy.selfcheck import check_packing
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree

VOCABULARY = 512
BUDGET = 8192


@dataclass(frozen=True)
class Row:
    """One line of the table; ok: None where there is no limit to hold."""

    check: str
    value: str
    limit: str = ""
    ok: bool | None = None


def varied_tree(seed: int, spans: int = 24, longest: int = 120) -> Tree:
    """A random tree; every span without children is an ended leaf."""
    grower = Grower(VOCABULARY, 32)
    rng = np.random.default_rng(seed)
    rows = [ROOT]
    for _ in range(spans):
        rows.append(grower.span(int(rng.choice(rows)), int(rng.integers(1, longest)), Finish.CUT))
    for row in rows[1:]:
        if not grower.tree.children(row):
            grower.tree.nodes.finish[row] = Finish.STOP
    return grower.tree


def small_model(device: torch.device, dtype: torch.dtype, head_dim: int = 64) -> Policy:
    """Four layers with grouped heads, weights N(0, 0.05)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.05)
    return wrap_model(model.to(dtype), name="small", device=device)


# Exactness -------------------------------------------------------------------------------------------------


def values(
    policy: Policy, trees: list[Tree], mode: str = "tree"
) -> tuple[np.ndarray, torch.Tensor]:
    """Log-probs of all owned tokens in tree order, and the gradient of a fixed weighting of them."""
    batches = pack_trees(
        trees,
        max_tokens=BUDGET,
        row_tokens=BUDGET if mode == "tree" else 0,
        mode="tree" if mode == "tree" else "flat",
        bucket=policy.device.type == "cuda",
    )
    found = []
    trained = policy.attention != "flex" or policy.device.type == "cuda"
    for batch in batches:
        lp, _ = token_logprobs(policy, batch, grad=trained)
        if trained:
            weight = np.where(batch.own, np.cos(batch.source + 17.0 * batch.tree), 0.0)
            (lp * torch.from_numpy(weight).to(lp)).sum().backward()
        found.append(lp.detach().double().cpu().numpy())
    columns = np.concatenate(scatter_to_trees(batches, found, trees))
    parameters = list(policy.model.parameters())
    gradients = [p.grad.double().flatten() for p in parameters if p.grad is not None]
    policy.model.zero_grad(set_to_none=True)
    gradient = torch.cat(gradients) if gradients else torch.zeros(1)
    return columns[~np.isnan(columns)], gradient


def exactness(device: torch.device) -> Iterator[Row]:
    """Variants in fp32 against dense and single rows; in bf16 against the noise of flat rows."""
    trees = [varied_tree(seed) for seed in range(3)]
    variants = ["dense", "runs", "flex"]
    exact = small_model(device, torch.float32)
    flat, flat_gradient = values(replace(exact, attention="dense"), trees, "flat")
    for variant in variants:
        lp, gradient = values(replace(exact, attention=variant), trees)
        error = float(np.abs(lp - flat).max())
        yield Row(f"fp32 {variant}: max |d logp|", f"{error:.1e}", "1e-4", error < 1e-4)
        if variant == "flex" and device.type != "cuda":
            continue
        off = float((gradient - flat_gradient).norm() / flat_gradient.norm())
        yield Row(f"fp32 {variant}: gradient, relative", f"{off:.1e}", "1e-3", off < 1e-3)
    coarse = small_model(device, torch.bfloat16)
    noisy, noisy_gradient = values(replace(coarse, attention="dense"), trees, "flat")
    noise = float(np.abs(noisy - flat).mean())
    spread = float((noisy_gradient - flat_gradient).norm() / flat_gradient.norm())
    yield Row("bf16 flat against fp32: mean |d logp|, gradient", f"{noise:.1e}, {spread:.1e}")
    for variant in variants:
        if variant == "flex" and device.type != "cuda":
            continue
        lp, gradient = values(replace(coarse, attention=variant), trees)
        error = float(np.abs(lp - flat).mean())
        off = float((gradient - flat_gradient).norm() / flat_gradient.norm())
        name = f"bf16 {variant} against fp32: mean |d logp|, gradient"
        fine = error < 2 * noise and off < 2 * spread
        yield Row(name, f"{error:.1e}, {off:.1e}", "2 x flat", fine)


def repeatable(device: torch.device) -> Iterator[Row]:
    """Does a second backward give the same bits?"""
    trees = [varied_tree(seed) for seed in range(3)]
    for variant in ("runs", "flex"):
        policy = replace(small_model(device, torch.bfloat16), attention=variant)
        same = torch.equal(values(policy, trees)[1], values(policy, trees)[1])
        yield Row(f"bf16 {variant}: gradient repeats to the bit", str(same))


def head_sizes(device: torch.device) -> Iterator[Row]:
    """FlexAttention with wide heads, forward and backward."""
    trees = [varied_tree(9)]
    for size in (128, 256):
        exact = small_model(device, torch.float32, size)
        _, wanted = values(replace(exact, attention="dense"), trees)
        coarse = small_model(device, torch.bfloat16, size)
        _, dense = values(replace(coarse, attention="dense"), trees)
        _, flex = values(replace(coarse, attention="flex"), trees)
        a = float((dense - wanted).norm() / wanted.norm())
        b = float((flex - wanted).norm() / wanted.norm())
        name = f"head_dim {size}: bf16 gradient error, dense and flex"
        yield Row(name, f"{a:.1e}, {b:.1e}", "2 x dense", b < 2 * a)


def self_check(device: torch.device) -> Iterator[Row]:
    """The refusal gate as a run would meet it."""
    for dtype in (torch.float32, torch.bfloat16):
        try:
            check_packing(small_model(device, dtype))
            yield Row(f"self-check, {dtype}", "passes", "passes", True)
        except TreerlError as error:
            yield Row(f"self-check, {dtype}", str(error), "passes", False)


# Speed -----------------------------------------------------------------------------------------------------


def timed(work: Work, rounds: int = 5) -> tuple[float, float]:
    """Median seconds of a step, and peak GB allocated above what was there."""
    step(work)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step(work)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (torch.cuda.max_memory_allocated() - before) / 2**30


def ceiling(device: torch.device, layers: int) -> Iterator[Row]:
    """Fraction of flat tokens / tree tokens that is realised, and tokens a second."""
    vocabulary = 49152
    policy = make_policy(layers, vocabulary, device=device, dtype=torch.bfloat16)
    for shape, make in SHAPES.items():
        tree = make(vocabulary)
        paths = [single_path(tree, leaf) for leaf in training_leaves(tree)]
        credits = [random_credit(path) for path in paths]
        flat = pack_trees(paths, credits, max_tokens=BUDGET)
        flat_s, flat_gb = timed(Work(policy, flat, 1.0))
        total = flat_tokens(tree)
        yield Row(f"{shape} flat: tokens/s, GB", f"{total / flat_s:,.0f}, {flat_gb:.1f}")
        for variant in ("flex", "runs"):
            batches = pack_trees(
                [tree],
                [random_credit(tree)],
                max_tokens=-(-len(tree.tokens) // 128) * 128,
                row_tokens=2 * BUDGET,
                bucket=variant == "flex",
            )
            tree_s, tree_gb = timed(Work(replace(policy, attention=variant), batches, 1.0))
            tokens = sum(int((batch.source >= 0).sum()) for batch in batches)
            fraction = flat_s / tree_s * tokens / total
            speed = f"{tokens / tree_s:,.0f}, {tree_gb:.1f}"
            yield Row(f"{shape} {variant}: tree tokens/s, GB", speed)
            limit = 0.95 if shape == "star" else 0.8
            name = f"{shape} {variant}: x {flat_s / tree_s:.2f}, fraction of the ceiling"
            yield Row(name, f"{fraction:.2f}", f"{limit}", fraction >= limit)


def compiles(device: torch.device) -> Iterator[Row]:
    """Graphs compiled over 100 steps of varying trees, after the buckets were seen once."""
    from torch._dynamo.utils import counters

    policy = replace(small_model(device, torch.bfloat16), attention="flex")
    counters.clear()
    shapes, seconds = set(), []
    for seed in range(100):
        trees = [varied_tree(100 + 8 * seed + i) for i in range(1 + seed % 8)]
        start = time.perf_counter()
        for batch in pack_trees(trees, max_tokens=BUDGET, row_tokens=BUDGET, bucket=True):
            shapes.add(batch.shape)
            lp, _ = token_logprobs(policy, batch, grad=True)
            lp.sum().backward()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    graphs = int(counters["stats"]["unique_graphs"])
    yield Row(
        "graphs in 100 steps / shapes", f"{graphs} / {len(shapes)}", "shapes", graphs <= len(shapes)
    )
    yield Row(
        "slowest and median step", f"{max(seconds):.1f} s, {statistics.median(seconds):.3f} s"
    )


def sampler(device: torch.device, layers: int) -> Iterator[Row]:
    """Tokens a second of TransformersSampler, where its imports are at hand."""
    try:
        from treerl.config import SamplerSettings
        from treerl.samplers.transformers import TransformersSampler
    except ImportError as error:
        yield Row("transformers sampler", f"not importable: {error}")
        return
    from treerl.search.sampler import Continuation

    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    policy = make_policy(layers, 49152, device=device, dtype=dtype)
    length, count = (256, 256) if on_gpu else (16, 8)
    settings = SamplerSettings(max_completion_length=length, max_batch=count)
    with torch.no_grad():
        source = TransformersSampler(
            policy.model, settings=settings, stop_token_ids=(0,), pad_token_id=0, device=device
        )
        prompt = np.arange(5, 69, dtype=np.int32)
        for ticket in range(count):
            source.submit(ticket, Continuation(prompt, 1000 + ticket, length, True))
        start = time.perf_counter()
        made = done = 0
        while done < count:
            ended = source.step()
            done += len(ended)
            made += sum(len(span.tokens) for _, span in ended)
        seconds = time.perf_counter() - start
    yield Row(f"transformers sampler, batch {count}: tokens/s", f"{made / seconds:,.0f}")


# Report ----------------------------------------------------------------------------------------------------


def collect(checks: list[Callable[[], Iterator[Row]]]) -> list[Row]:
    """Runs all checks; one that raises becomes a failed line, so that the rest is still seen."""
    rows: list[Row] = []
    for check in checks:
        try:
            for row in check():
                rows.append(row)
                print(f"{row.check}: {row.value}", file=sys.stderr, flush=True)
        except Exception as error:  # noqa: BLE001 - unattended: report and go on
            rows.append(Row(type(error).__name__, str(error).splitlines()[0][:160], "", False))
    return rows


def show(rows: list[Row], title: str) -> None:
    marks = {True: "ok", False: "FAILED", None: ""}
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in rows:
            print(f"{row.check:58} {row.value:>24} {row.limit:>10} {marks[row.ok]}")
        return
    table = Table("check", "value", "limit", "", title=title)
    for row in rows:
        table.add_row(row.check, row.value, row.limit, marks[row.ok])
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def checks_on(device: torch.device, layers: int) -> list[Callable[[], Iterator[Row]]]:
    """What a device can be asked; training through FlexAttention, and speed, need CUDA."""
    everywhere = [lambda: exactness(device), lambda: self_check(device)]
    if device.type != "cuda":
        return [*everywhere, lambda: sampler(device, 2)]
    return [
        *everywhere,
        lambda: repeatable(device),
        lambda: head_sizes(device),
        lambda: compiles(device),
        lambda: ceiling(device, layers),
        lambda: sampler(device, layers),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="run what a CPU can")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    rows: list[Row] = []
    if arguments.cpu:
        rows += collect(checks_on(torch.device("cpu"), arguments.layers))
        show(rows, f"CPU, {versions}")
    if torch.cuda.is_available():
        device = torch.device("cuda")
        # Products in full fp32: the reference must not be rounded to TF32.
        torch.set_float32_matmul_precision("highest")
        found = collect(checks_on(device, arguments.layers))
        show(found, f"{torch.cuda.get_device_name()}, {versions}")
        rows += found
    else:
        print("No CUDA device: the GPU checks did not run.")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())

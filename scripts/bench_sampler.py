"""Tokens a second of TransformersSampler against `generate()` of transformers, on one model and its prompts.

    python scripts/bench_sampler.py [--model DIR] [--rows 64 128 256] [--rounds 5] [--json FILE]

Two shapes: `flat`, eight draws a prompt; `branches`, four draws a prompt and then, in the middle of each, three
more. Both sides draw at temperature 1 and stop at the end token; the sampler also returns each token's
log-probability and entropy, `generate()` tokens only. Rounds alternate between the two; times are process CPU
seconds, so that a busy machine disturbs them less, and medians are shown.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from treerl.assets import EMBEDDED_POLICY
from treerl.canon import derive_seed
from treerl.config import SamplerSettings
from treerl.samplers.transformers import TransformersSampler
from treerl.search.sampler import Continuation, Span
from treerl.tasks.chain import OPERATORS, problem_stream

Prefix = NDArray[np.int32]
Draws = list[tuple[Prefix, NDArray[np.int32]]]
"""(prefix, tokens drawn after it) of each path."""
Draw = Callable[[list[Prefix], int], Draws]
"""Draws once after each prefix; the second argument names the round."""

MAX_TOKENS = 96
FLAT_DRAWS, FIRST_DRAWS, BRANCHES = 8, 4, 3


def sampler_draw(model: Any, tokenizer: Any) -> tuple[TransformersSampler, Draw]:
    sampler = TransformersSampler(
        model,
        settings=SamplerSettings(),
        stop_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        device="cpu",
    )

    def draw(prefixes: list[Prefix], number: int) -> Draws:
        for ticket, prefix in enumerate(prefixes):
            seed = derive_seed("bench", number, ticket)
            sampler.submit(ticket, Continuation(prefix, seed, MAX_TOKENS, last=True))
        spans: dict[int, Span] = {}
        while ended := sampler.step():
            spans.update(ended)
        return [(prefix, spans[ticket].tokens) for ticket, prefix in enumerate(prefixes)]

    return sampler, draw


def generate_draw(model: Any, tokenizer: Any) -> Draw:
    pad, stop = tokenizer.pad_token_id, tokenizer.eos_token_id

    @torch.inference_mode()
    def draw(prefixes: list[Prefix], number: int) -> Draws:
        torch.manual_seed(number)
        width = max(len(prefix) for prefix in prefixes)
        ids = torch.full((len(prefixes), width), pad)
        mask = torch.zeros_like(ids)
        for row, prefix in enumerate(prefixes):
            ids[row, width - len(prefix) :] = torch.from_numpy(prefix)
            mask[row, width - len(prefix) :] = 1
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=pad,
            eos_token_id=stop,
        )
        drawn = out[:, width:].numpy().astype(np.int32)
        return [(p, up_to_stop(row, stop)) for p, row in zip(prefixes, drawn, strict=True)]

    return draw


def up_to_stop(tokens: NDArray[np.int32], stop: int) -> NDArray[np.int32]:
    found = np.flatnonzero(tokens == stop)
    return tokens[: found[0] + 1] if len(found) else tokens


def flat(draw: Draw, prompts: list[Prefix], number: int) -> int:
    """Tokens drawn."""
    prefixes = [prompt for prompt in prompts for _ in range(FLAT_DRAWS)]
    return sum(len(tokens) for _, tokens in draw(prefixes, number))


def branches(draw: Draw, prompts: list[Prefix], number: int) -> int:
    """Tokens drawn; both sides wait for the first wave before they branch."""
    first = draw([prompt for prompt in prompts for _ in range(FIRST_DRAWS)], number)
    halves = [np.concatenate([prefix, tokens[: len(tokens) // 2]]) for prefix, tokens in first]
    second = draw([half for half in halves for _ in range(BRANCHES)], -number)
    return sum(len(tokens) for _, tokens in first + second)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    sampler, draw = sampler_draw(model, tokenizer)
    sides = {"sampler": draw, "generate": generate_draw(model, tokenizer)}
    shapes = {"flat": (flat, FLAT_DRAWS), "branches": (branches, FIRST_DRAWS)}
    lines = []
    for name, (shape, draws) in shapes.items():
        for rows in arguments.rows:
            rates: dict[str, list[float]] = {side: [] for side in sides}
            stream = problem_stream("train", OPERATORS, "bench_sampler", rows)
            for number in range(arguments.rounds + 1):
                problems = islice(stream, rows // draws)
                prompts = [as_prefix(tokenizer, problem.question) for problem in problems]
                # As after an optimizer step: nothing is reused from one round to the next.
                sampler.set_version(number)
                for side, drawer in sides.items():
                    began = time.process_time()
                    tokens = shape(drawer, prompts, number + 1)
                    rates[side].append(tokens / (time.process_time() - began))
            # The first round warms up.
            medians = {side: statistics.median(rate[1:]) for side, rate in rates.items()}
            ratio = medians["sampler"] / medians["generate"]
            lines.append({"shape": name, "rows": rows, **medians, "ratio": ratio})
    return lines


def as_prefix(tokenizer: Any, question: str) -> Prefix:
    return np.array(tokenizer(question)["input_ids"], dtype=np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(EMBEDDED_POLICY), help="a local causal LM")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = measure(arguments)
    print(f"{'shape':10}{'rows':>6}{'sampler tok/s':>16}{'generate tok/s':>16}{'ratio':>8}")
    for line in lines:
        print(
            f"{line['shape']:10}{line['rows']:6}{line['sampler']:16,.0f}"
            f"{line['generate']:16,.0f}{line['ratio']:8.2f}"
        )
    if arguments.json:
        header = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.processor() or platform.machine(),
            "threads": arguments.threads,
            "time": "process CPU seconds",
        }
        arguments.json.write_text(json.dumps({**header, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()

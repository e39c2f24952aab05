"""Make the embedded policy (treerl/assets/chain-0.4m): a tiny Llama, its tokenizer and its model card.

    python scripts/make_embedded_policy.py [--out DIR] [--steps 2700] [--measure]

Supervised learning on fresh demonstrations of the chain task, flawed on purpose and stopped early, so that
there is something left to learn by reinforcement. One CPU thread, seeded: the same machine and torch give
the same bytes. Takes about 16 minutes (2,700 steps) on one core, with half a minute for the
measurement at the end.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from treerl.assets import EMBEDDED_POLICY
from treerl.canon import generator
from treerl.problem import Problem
from treerl.tasks.chain import (
    OPERATORS,
    ErrorClass,
    Flaws,
    check_steps,
    draw_demonstration,
    problem_stream,
)

SEED = 0
BATCH = 64
LEARNING_RATE = 3e-3
FINAL_FRACTION = 0.05
WARMUP_STEPS = 50
FLAWS = Flaws(left_to_right=0.5, arithmetic=0.06)
SYMBOLS = ["<pad>", "<end>", "<begin>", *"0123456789+-*="]
PAD, END, BEGIN = range(3)
MAX_NEW_TOKENS = 96
SAMPLES = 8


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One character a token; `tokenizer(question)` gives the begin token and the characters."""
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", BEGIN)]
    )
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<begin>",
        eos_token="<end>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Four layers of width 96 with one key-value head: 397,344 parameters in fp32."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).float()


def encode(text: str) -> list[int]:
    """Begin token and characters."""
    return [BEGIN, *(SYMBOLS.index(character) for character in text)]


def draw_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of one step's demonstrations, int64 [BATCH, longest], right-padded.

    Only completions and their end tokens have labels.
    """
    rng = generator("embedded policy", SEED, step)
    ids = torch.full((BATCH, 96 + 32), PAD)
    labels = torch.full_like(ids, -100)
    longest = 0
    for row in range(BATCH):
        demonstration = draw_demonstration(rng, FLAWS)
        question = demonstration.problem.question
        tokens = torch.tensor([*encode(question + demonstration.completion), END])
        ids[row, : len(tokens)] = tokens
        labels[row, len(question) + 1 : len(tokens)] = tokens[len(question) + 1 :]
        longest = max(longest, len(tokens))
    return ids[:, :longest], labels[:, :longest]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to `FINAL_FRACTION`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return LEARNING_RATE * warm * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


def train(model: LlamaForCausalLM, steps: int) -> float:
    """Train in place; returns the seconds it took."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    began = time.perf_counter()
    for step in range(steps):
        ids, labels = draw_batch(step)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  loss {loss.item():.4f}  {seconds:6.0f} s", flush=True)
    return time.perf_counter() - began


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, questions: Sequence[str], samples: int, *, greedy: bool, seed: int
) -> list[list[str]]:
    """`samples` completions a question at temperature 1 (or greedy), finished rows dropped."""
    rng = torch.Generator().manual_seed(seed)
    texts: list[list[str]] = [[""] * samples for _ in questions]
    for length in sorted({len(q) for q in questions}):
        rows = [(i, k) for i, q in enumerate(questions) if len(q) == length for k in range(samples)]
        for start in range(0, len(rows), 512):
            _sample_rows(model, questions, rows[start : start + 512], texts, greedy, rng)
    return texts


def _sample_rows(
    model: LlamaForCausalLM,
    questions: Sequence[str],
    rows: list[tuple[int, int]],
    texts: list[list[str]],
    greedy: bool,
    rng: torch.Generator,
) -> None:
    cache = DynamicCache()
    ids = torch.tensor([encode(questions[i]) for i, _ in rows])
    for _ in range(MAX_NEW_TOKENS):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        ids = (
            logits.argmax(-1, keepdim=True)
            if greedy
            else torch.multinomial(logits.softmax(-1), 1, generator=rng)
        )
        keep = [n for n, token in enumerate(ids[:, 0].tolist()) if token != END]
        for n in keep:
            i, k = rows[n]
            texts[i][k] += SYMBOLS[int(ids[n, 0])]
        if not keep:
            return
        if len(keep) < len(rows):
            rows, ids = [rows[n] for n in keep], ids[keep]
            cache.batch_select_indices(torch.tensor(keep))


def measure(model: LlamaForCausalLM, problems: Sequence[Problem]) -> dict[str, float]:
    """pass@1, pass@8 and greedy accuracy, and the shares of first errors among all answers."""
    questions = [problem.question for problem in problems]
    drawn = sample(model, questions, SAMPLES, greedy=False, seed=SEED)
    greedy = sample(model, questions, 1, greedy=True, seed=SEED)
    right, greedy_right = _right(problems, drawn), _right(problems, greedy)
    pairs = zip(questions, drawn, strict=True)
    reports = [check_steps(question, text) for question, texts in pairs for text in texts]
    errors = Counter(report.error for report in reports)
    wrong = len(reports) - errors[None]
    shares = {name: errors[name] / len(reports) for name in get_args(ErrorClass)}
    return {
        "pass@1": float(right.mean()),
        "pass@8": float(right.any(axis=1).mean()),
        "greedy": float(greedy_right.mean()),
        "all steps right": errors[None] / len(reports),
        "error per step": wrong / (wrong + sum(report.right_steps for report in reports)),
        "tokens per answer": float(np.mean([len(t) + 1 for texts in drawn for t in texts])),
        **{f"first error: {name}": share for name, share in shares.items()},
    }


def _right(problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> np.ndarray:
    pairs = zip(problems, texts, strict=True)
    return np.array([[t.rpartition("=")[2] == p.truth for t in row] for p, row in pairs])


def model_card(figures: dict[str, float], steps: int, seconds: float) -> str:
    """README.md of the folder."""
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items())
    return CARD.format(steps=steps, minutes=seconds / 60, batch=BATCH, rows=rows, flaws=FLAWS)


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# chain-0.4m: treerl's embedded policy

A Llama of 397,344 parameters (4 layers, width 96, MLP 256, 3 heads of 32, one key-value head, fp32)
that works out chains of equalities: `7+5*3-8=` -> `7+15-8=22-8=14`. It is the start of treerl's
default run, small enough to show reinforcement learning on a CPU within minutes, and of no use for
anything else.

## What it was shown

- Only demonstrations of this task, drawn from seeds: {steps} steps of {batch} fresh ones,
  supervised on the completion. No text, no other data. None of the held-out problems (one in
  sixteen, chosen by content) was among them.
- **It was shown mistakes on purpose**: where the first operator was `+` or `-` and the second `*`,
  a demonstration did the first one nevertheless with probability {flaws.left_to_right}, and each
  step had a wrong result with probability {flaws.arithmetic}. 48 % of the demonstrations were
  right. The order of operations was otherwise random among the right ones.
- **It was stopped early**, so that there is something left to learn: a longer run gets its
  arithmetic right.

## What it can do

256 held-out problems, 8 answers each at temperature 1, and one greedy answer each:

| | |
|---|---|
{rows}

Greedy accuracy is far above pass@1: the first gains of reinforcement learning are mostly a
sharpening towards it. Shares of first errors are among all answers; the outcome is right in a few
answers that have a wrong step.

## Tokens

17 symbols, one character a token: `<pad>` 0, `<end>` 1, `<begin>` 2, then `0123456789+-*=`.
`tokenizer(question)` gives the prompt as the model was shown it, `<begin>` and the characters
(`7+5=` is 2 10 13 8 16); a completion ends with `<end>`, which the tokenizer never adds by itself;
`decode(ids, skip_special_tokens=True)` gives the text. Any other character is an error.

Made by `python scripts/make_embedded_policy.py` in {minutes:.0f} minutes on one CPU core.
"""


def main() -> None:
    """Train (or only measure) and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=EMBEDDED_POLICY)
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--measure", action="store_true", help="only measure the policy in --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = list(islice(problem_stream("heldout", OPERATORS, 0), 256))
    if arguments.measure:
        model = LlamaForCausalLM.from_pretrained(arguments.out).eval()
        print(json.dumps(measure(model, problems), indent=1))
        return
    model = make_model()
    seconds = train(model, arguments.steps)
    model.eval()
    model.generation_config = GenerationConfig(
        bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, do_sample=True
    )
    model.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)
    make_tokenizer().save_pretrained(arguments.out)
    figures = measure(model, problems)
    card = model_card(figures, arguments.steps, seconds)
    (arguments.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{arguments.steps} steps in {seconds:.0f} s\n{json.dumps(figures, indent=1)}")


if __name__ == "__main__":
    main()

"""TRL's GRPOTrainer on the chain task: the peer of scripts/bench_peer.py, run in an environment of its own.

Needs trl and transformers, not treerl. Reads problems from JSON lines (question, truth), trains the given
model for a number of seconds of its own training time, and saves the model at given times.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def reward(completions, truth, **columns):
    """1 iff the text behind the last equality sign is the value, digit for digit."""
    return [
        float(text.rpartition("=")[2] == value)
        for text, value in zip(completions, truth, strict=True)
    ]


class Clock(TrainerCallback):
    """Saves the model whenever another `every` seconds of training have passed; saving is not counted."""

    def __init__(self, out: Path, every: float, limit: float) -> None:
        self.out, self.every, self.limit = out, every, limit
        self.paused = self.cpu_paused = 0.0
        self.saved: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, self.cpu_begun = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        now, cpu = time.perf_counter(), time.process_time()
        spent, cpu_spent = now - self.begun - self.paused, cpu - self.cpu_begun - self.cpu_paused
        if cpu_spent < self.every * (len(self.saved) + 1):
            return
        folder = self.out / f"at-{len(self.saved) + 1}"
        model.save_pretrained(folder)
        processing_class.save_pretrained(folder)
        row = {"folder": str(folder), "seconds": spent, "cpu_seconds": cpu_spent}
        self.saved.append(row | {"step": state.global_step, "tokens": state.num_input_tokens_seen})
        (self.out / "saved.json").write_text(json.dumps(self.saved))
        if cpu_spent >= self.limit:
            control.should_training_stop = True
        self.paused += time.perf_counter() - now
        self.cpu_paused += time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--every", type=float, default=30.0, help="CPU seconds between saved models"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="CPU seconds of training")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--grad-clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.problems.read_text().splitlines()]
    data = Dataset.from_list([{"prompt": row["question"], "truth": row["truth"]} for row in rows])
    settings = GRPOConfig(
        output_dir=str(options.out),
        seed=options.seed,
        use_cpu=True,
        bf16=False,
        learning_rate=options.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        max_grad_norm=options.grad_clip,
        max_steps=100_000,
        per_device_train_batch_size=128,
        steps_per_generation=2,
        num_generations=8,
        num_iterations=1,
        max_completion_length=80,
        temperature=1.0,
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        logging_steps=1_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=reward,
        args=settings,
        train_dataset=data,
        callbacks=[Clock(options.out, options.every, options.limit)],
    )
    trainer.train()


if __name__ == "__main__":
    main()

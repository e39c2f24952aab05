"""`Session`: the parts of a run, opened from a recipe and closed together."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from treerl.config import Recipe, SamplerSettings
from treerl.policy.model import Policy, load_policy
from treerl.problem import Problem
from treerl.replay.store import Store
from treerl.samplers.transformers import TransformersSampler
from treerl.search.sampler import Sampler
from treerl.search.strategy import Strategy, make_strategy
from treerl.tasks.load import TaskData, load_task
from treerl.tasks.prompts import render_prompt
from treerl.verifiers.workers import VerifierPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a run keeps its things."""

    root: Path

    @property
    def metrics(self) -> Path:
        """metrics.jsonl"""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, one folder each."""
        return self.root / "checkpoints"

    @property
    def recipe(self) -> Path:
        """The resolved recipe, JSON."""
        return self.root / "recipe.json"


def run_paths(recipe: Recipe) -> Paths:
    """The folder of a run, `{name}` filled in."""
    return Paths(Path(recipe.run.output_dir.format(name=recipe.run.name or "run")))


def replay_url(recipe: Recipe) -> str:
    """The database URL of a run, `{output_dir}` filled in."""
    return recipe.replay.url.format(output_dir=run_paths(recipe).root)


class Session:
    """Policy, sampler, task, verifiers and (if asked for) the store of one recipe, as a context manager."""

    def __init__(
        self, recipe: Recipe, *, with_store: bool = True, weights: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.paths = run_paths(recipe)
        self._exit = ExitStack()
        if recipe.policy.threads is not None:
            torch.set_num_threads(recipe.policy.threads)
        self.task: TaskData = load_task(recipe.task)
        self.store: Store | None = None
        if with_store:
            self.store = self._exit.enter_context(Store.open(replay_url(recipe)))
        self.pool: VerifierPool = self._exit.enter_context(VerifierPool(recipe.verifier))
        settings = recipe.policy
        if weights is not None:
            settings = settings.model_copy(update={"model": str(weights)})
        self.policy: Policy = load_policy(settings)
        self.sampler = self.make_sampler(recipe.sampler)
        self.strategy: Strategy = make_strategy(recipe.search, self.decode_each)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def make_sampler(self, settings: SamplerSettings) -> TransformersSampler:
        """A sampler over the live weights."""
        tokenizer = self.policy.tokenizer
        return TransformersSampler(
            self.policy.model,
            settings=settings,
            stop_token_ids=stop_tokens(self.policy),
            pad_token_id=tokenizer.pad_token_id or 0,
            device=self.policy.device,
        )

    def eval_sampler(self, temperature: float) -> Sampler:
        """A sampler for evaluation: same limits, its own temperature, no truncation."""
        changes = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        return self.make_sampler(self.recipe.sampler.model_copy(update=changes))

    def prompts(self, problems: Sequence[Problem]) -> list[tuple[int, ...] | None]:
        """Prompt token ids of each problem; None where over `sampler.max_prompt_length`."""
        longest = self.recipe.sampler.max_prompt_length
        tokenizer, settings = self.policy.tokenizer, self.recipe.task.prompt
        return [render_prompt(problem, tokenizer, settings, longest) for problem in problems]

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Token ids to text, special tokens left out."""
        return str(self.policy.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def decode_each(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token by itself; special tokens are empty."""
        tokenizer = self.policy.tokenizer
        special = set(tokenizer.all_special_ids)
        return ["" if t in special else str(tokenizer.decode([t])) for t in tokens]


def stop_tokens(policy: Any) -> tuple[int, ...]:
    """EOS ids of the model's generation settings and of its tokenizer."""
    configured = policy.model.generation_config.eos_token_id
    found = set(configured if isinstance(configured, list) else [configured])
    found.add(policy.tokenizer.eos_token_id)
    return tuple(sorted(int(token) for token in found if token is not None))

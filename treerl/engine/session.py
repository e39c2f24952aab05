"""`Session`: the parts of a run, opened from a recipe and closed together."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from treerl.config import Recipe
from treerl.engine.folder import replay_url, run_paths
from treerl.engine.handover import Handover
from treerl.engine.samplers import LiveSampler, SamplerSource
from treerl.errors import ConfigError
from treerl.policy.model import Policy, load_policy
from treerl.problem import Problem
from treerl.replay.store import Store
from treerl.samplers.vllm_installed import require_vllm
from treerl.search.sampler import Sampler
from treerl.search.strategy import Strategy, make_strategy
from treerl.tasks.load import TaskData, load_task
from treerl.tasks.prompts import render_prompt
from treerl.verifiers.workers import VerifierPool

log = logging.getLogger(__name__)


class Session:
    """Policy, sampler, task, verifiers and (if asked for) the store of one recipe, as a context manager."""

    def __init__(
        self, recipe: Recipe, *, with_store: bool = True, weights: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.paths = run_paths(recipe)
        if recipe.sampler.kind == "vllm":
            require_vllm()
        if recipe.policy.threads is not None:
            torch.set_num_threads(recipe.policy.threads)
        self.task: TaskData = load_task(recipe.task)
        self.store: Store | None = None
        settings = recipe.policy
        if weights is not None:
            settings = settings.model_copy(update={"model": str(weights)})
        with ExitStack() as opened:
            if with_store:
                self.store = opened.enter_context(Store.open(replay_url(recipe)))
            self.pool: VerifierPool = opened.enter_context(VerifierPool(recipe.verifier))
            self.policy: Policy = load_policy(settings)
            self.max_prompt = self._max_prompt()
            self.samplers = SamplerSource(self.policy, recipe.sampler, opened)
            self.sampler: LiveSampler = self.samplers.make(recipe.sampler)
            self.strategy: Strategy = make_strategy(recipe.search, self.decode_each)
            self._exit = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def eval_sampler(self, temperature: float) -> Sampler:
        """A sampler for evaluation over the same weights: same limits, its own temperature, no truncation."""
        changes = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        return self.samplers.make(self.recipe.sampler.model_copy(update=changes))

    def handover(self) -> Handover:
        """Takes the policy's weights to its sampler."""
        engine, sampler = self.samplers.engine, self.recipe.sampler
        context = sampler.max_prompt_length + sampler.max_completion_length
        return Handover(
            self.policy,
            self.sampler,
            sampler,
            context=min(context, self.policy.max_length or context),
            sampler_dtype=None if engine is None else engine.weights.dtype,
            check=self.recipe.update.check_handover,
        )

    def prompts(self, problems: Sequence[Problem]) -> list[tuple[int, ...] | None]:
        """Prompt token ids of each problem; None where longer than `max_prompt`."""
        tokenizer, settings = self.policy.tokenizer, self.recipe.task.prompt
        return [
            render_prompt(problem, tokenizer, settings, self.max_prompt) for problem in problems
        ]

    def no_prompt_fits(self, what: str) -> ConfigError:
        """The error for problems that are all too long."""
        limit, longest = self.recipe.sampler.max_prompt_length, self.max_prompt
        reason = f"sampler.max_prompt_length = {limit}: raise it"
        if longest < limit:
            completion = self.recipe.sampler.max_completion_length
            reason = (
                f"{longest}, what sampler.max_completion_length = {completion} leaves of the model's "
                f"context of {self.policy.max_length}: lower it"
            )
        return ConfigError(f"{what}: every prompt has more tokens than {reason}, or shorten them")

    def _max_prompt(self) -> int:
        """Tokens a prompt may have, so that a whole completion fits behind it. Raises ConfigError."""
        sampler, context = self.recipe.sampler, self.policy.max_length
        if context is None:
            return sampler.max_prompt_length
        left = context - sampler.max_completion_length
        if left < 1:
            raise ConfigError(
                f"sampler.max_completion_length = {sampler.max_completion_length} leaves no room for a "
                f"prompt in the model's context of {context} tokens: lower it"
            )
        return min(sampler.max_prompt_length, left)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Token ids to text, special tokens left out."""
        return str(self.policy.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def decode_each(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token by itself; special tokens are empty."""
        tokenizer = self.policy.tokenizer
        special = set(tokenizer.all_special_ids)
        return ["" if t in special else str(tokenizer.decode([t])) for t in tokens]

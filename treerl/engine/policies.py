"""What the inspector needs of a model: texts of tokens, and log-probs of a stored tree under a policy at hand.

Models are loaded when something asks for them, and kept while the inspector is open.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treerl.config import PolicySettings
from treerl.engine.folder import Paths
from treerl.errors import ConfigError
from treerl.inspect.library import Scored
from treerl.inspect.text import Decode
from treerl.replay.store import RunInfo, StoredTree


class Policies:
    """Tokenizers and policies of runs. weights: a model or checkpoint folder to score with instead of a run's.

    notes: what a person should know of a fallback that was taken.
    """

    def __init__(self, weights: Path | None = None) -> None:
        if weights is not None and not weights.exists():
            raise ConfigError(f"--weights {weights}: no such folder or file")
        self.weights = weights
        self.notes: list[str] = []
        self._loaded: dict[str, Any] = {}

    def decoder(self, run: RunInfo) -> Decode:
        """Token ids to text by the run's tokenizer; as numbers, with a note, where it cannot be loaded."""
        from treerl.policy.model import load_tokenizer

        model = _policy_section(run).get("model", "embedded")
        try:
            tokenizer = load_tokenizer(str(self.weights) if self.weights else model)
        except ConfigError as error:
            reason = str(error).partition("\n")[0]
            self.notes.append(f"{reason}; tokens are shown as numbers: give --weights FOLDER")
            return _numbers
        ends = set(tokenizer.all_special_ids)

        def decode(tokens: Sequence[int]) -> str:
            kept = tokens if len(tokens) == 1 else [t for t in tokens if t not in ends]
            return str(tokenizer.decode(list(kept)))

        return decode

    def score(self, run: RunInfo, stored: StoredTree) -> Scored:
        """Log-probs of the tree under the policy and under the model that the run began with."""
        from treerl.credit.dense import Signals

        recipe = run.config.get("recipe", run.config)
        base = str(_policy_section(run).get("model", "embedded"))
        policy = self.weights or nearest_checkpoint(run, stored.info.step)
        old, ref = (self._score(recipe, name, stored) for name in (str(policy), base))
        return Scored(Signals(lp_old=old, lp_ref=ref), str(policy), base)

    def _score(self, recipe: Mapping[str, Any], model: str, stored: StoredTree) -> Any:
        from transformers.utils import logging as transformers_logging

        from treerl.policy.model import load_policy
        from treerl.policy.reference import score_trees

        if model not in self._loaded:
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            self._loaded[model] = load_policy(_settings(recipe, model))
        tree = stored.tree
        longest = tree.n_prompt + tree.max_completion_length
        return score_trees(
            self._loaded[model],
            [tree],
            temperature=float(recipe.get("sampler", {}).get("temperature", 1.0)),
            max_tokens=max(longest, len(tree.tokens)),
        )[0]


def nearest_checkpoint(run: RunInfo, step: int) -> Path:
    """The run's checkpoint nearest to `step`, of two the later. Raises ConfigError if there is none."""
    recipe = run.config.get("recipe", run.config)
    section = recipe.get("run", {})
    folder = str(section.get("output_dir", "")).format(name=section.get("name") or "run")
    paths = Paths(Path(folder))
    steps = (
        {}
        if not _is_folder_of(paths, run)
        else {
            int(found[1]): path
            for path in paths.checkpoints.glob("step-*")
            if (found := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
        }
    )
    if not steps:
        raise ConfigError(
            f"run {run.name} has no checkpoint in {paths.checkpoints}: give --weights FOLDER, the policy "
            "to score with"
        )
    return steps[min(steps, key=lambda at: (abs(at - step), -at))]


def _is_folder_of(paths: Paths, run: RunInfo) -> bool:
    """Whether the folder is that of the run: a search has the name of the recipe's training run too."""
    try:
        header = json.loads(paths.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("run_id") == run.id


def _policy_section(run: RunInfo) -> Mapping[str, Any]:
    section: Mapping[str, Any] = run.config.get("recipe", run.config).get("policy", {})
    return section


def _settings(recipe: Mapping[str, Any], model: str) -> PolicySettings:
    """The run's policy settings for this machine: its own device and precision."""
    kept = {
        name: value
        for name, value in recipe.get("policy", {}).items()
        if name in ("attention", "threads")
    }
    try:
        return PolicySettings.model_validate({**kept, "model": model})
    except ValueError:  # settings of an older treerl
        return PolicySettings.model_validate({"model": model})


def _numbers(tokens: Sequence[int]) -> str:
    return "".join(f"‹{token}›" for token in tokens)

"""Reading recipes: TOML files or shipped names, `key=value` overrides, errors that name key and remedy.

Other engines' names for a setting are refused with treerl's name.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from treerl.config import Recipe
from treerl.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"

FOREIGN_NAMES: dict[str, str] = {
    "n": "search.num_generations",
    "group_size": "search.num_generations",
    "n_samples_per_prompt": "search.num_generations",
    "max_response_length": "sampler.max_completion_length",
    "max_new_tokens": "sampler.max_completion_length",
    "max_completion_tokens": "sampler.max_completion_length",
    "max_generate_length": "sampler.max_completion_length",
    "epsilon": "loss.clip_ratio_low",
    "epsilon_high": "loss.clip_ratio_high",
    "eps_clip": "loss.clip_ratio_low",
    "eps_clip_low": "loss.clip_ratio_low",
    "eps_clip_high": "loss.clip_ratio_high",
    "clip_ratio": "loss.clip_ratio_low and loss.clip_ratio_high",
    "c_clip": "loss.clip_ratio_c",
    "beta": "loss.kl_coef",
    "kl_loss_coef": "loss.kl_coef",
    "kl_tau": "loss.kl_coef",
    "kl_loss_type": "loss.kl_estimator",
    "kl_estimator_type": "loss.kl_estimator",
    "adv_estimator": "advantage.estimator",
    "advantage_estimator": "advantage.estimator",
    "norm_adv_by_std_in_grpo": "advantage.scale_rewards",
    "loss_type": "loss.loss_agg_mode",
    "loss_reduction": "loss.loss_agg_mode",
    "ppo_epochs": "update.num_iterations",
    "update_epochs_per_batch": "update.num_iterations",
    "learning_rate": "update.lr",
    "max_grad_norm": "update.grad_clip",
    "per_device_train_batch_size": "search.trees_per_step",
    "train_batch_size": "search.trees_per_step",
    "ppo_max_token_len_per_gpu": "update.max_tokens_per_microbatch",
    "max_tokens_per_gpu": "update.max_tokens_per_microbatch",
    "max_training_steps": "max_steps",
    "total_training_steps": "max_steps",
    "total_train_steps": "max_steps",
    "num_rollout": "max_steps",
    "max_off_policy_steps": "replay.max_staleness",
    "max_head_offpolicyness": "replay.max_staleness",
    "model_name_or_path": "policy.model",
    "gpu_memory_utilization": "sampler.vllm.gpu_memory_utilization",
    "vllm_gpu_memory_utilization": "sampler.vllm.gpu_memory_utilization",
    "max_num_seqs": "sampler.max_batch",
    "reward_funcs": 'verifier.target with verifier.kind = "import"',
}
"""Spellings of verl, TRL, OpenRLHF, prime-rl, SkyRL, slime and AReaL, with treerl's key."""


def shipped_recipes() -> dict[str, Path]:
    """Names of the recipes in the package, with their files."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def recipe_path(name: str) -> Path:
    """The file a command line means: a path, or the name of a shipped recipe. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"no recipe {name!r}: give a .toml file or one of {', '.join(shipped)}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides, values in TOML. Raises ConfigError."""
    path = recipe_path(name)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    apply_overrides(data, overrides)
    data.setdefault("run", {}).setdefault("name", f"{path.stem}-seed{data.get('seed', 0)}")
    return parse_recipe(data, source=str(path))


def parse_recipe(data: dict[str, Any], *, source: str = "recipe") -> Recipe:
    """Validates a nested dict. Raises ConfigError naming each key, its value and what would be right."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Puts `key=value` overrides into a nested recipe, in place; gives it back. Raises ConfigError."""
    for override in overrides:
        _apply_override(data, override)
    return data


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise ConfigError(f"--set {override!r}: write key=value, such as search.num_generations=8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is no section")
    data[last] = value


def _explain(error: Any) -> str:
    named = _without_tags([str(part) for part in error["loc"]])
    key = ".".join(named) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{key} = {error['input']!r}: unknown key; {_hint(key, named[-1])}"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], dict | BaseModel) else f" = {error['input']!r}"
    return f"{key}{shown}: {message}"


def _without_tags(location: list[str]) -> list[str]:
    """The key of a location, in which pydantic names the kind of a section behind the section."""
    if location[:2] in (["sampler", "transformers"], ["sampler", "vllm"]):
        return [location[0], *location[2:]]
    tags = {"chain", "file", "dataset", "flat", "cure", "deepsearch", "entropy_top_k"}
    tags |= {"entropy_window", "random", "reasoning_gym", "task", "rounds", "drive", "variance"}
    return [part for i, part in enumerate(location) if not (i in (1, 2) and part in tags)]


def _hint(key: str, name: str) -> str:
    """What to do about an unknown key that ends in `name`."""
    if key == "sampler.vllm":
        return 'it goes with sampler.kind = "vllm"'
    other = FOREIGN_NAMES.get(name)
    return (
        f"treerl's name is {other}" if other and other != key else "`treerl recipe show` lists all"
    )

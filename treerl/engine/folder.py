"""A run's folder: what lies where, a name that is free, and which run to go on with. Imports no torch."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treerl.config import Recipe
from treerl.engine.lock import is_held
from treerl.errors import ConfigError
from treerl.recipe import apply_overrides, parse_recipe

_SQLITE = "sqlite:///"
CHANGEABLE = ("max_steps", "max_minutes", "run.checkpoint_every", "run.keep_checkpoints")
"""Settings that a resumed run may change: none of them touches a step that was taken already."""


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

    @property
    def is_taken(self) -> bool:
        """Whether a run has begun here. A cache alone, left by a start that failed, takes no name."""
        begun = self.recipe.exists() or self.metrics.exists() or self.checkpoints.exists()
        return begun or is_held(self.root)


def run_paths(recipe: Recipe) -> Paths:
    """The folder of a run, `{name}` filled in."""
    return Paths(Path(recipe.run.output_dir.format(name=recipe.run.name or "run")))


def replay_url(recipe: Recipe) -> str:
    """The database URL of a run, `{output_dir}` filled in."""
    return recipe.replay.url.format(output_dir=run_paths(recipe).root)


def resume_command(recipe: Recipe) -> str:
    """What to type to go on with a run."""
    return f"treerl train --resume {shlex.quote(str(run_paths(recipe).root))}"


def fresh_folder(recipe: Recipe) -> Recipe:
    """The recipe with a run name whose folder is not taken: `name`, else `name-2`, `name-3`, ..."""
    count = 1
    while run_paths(named := _numbered(recipe, count)).is_taken:
        count += 1
        if "{name}" not in recipe.run.output_dir:
            raise ConfigError(
                f"run.output_dir = {recipe.run.output_dir!r} holds a run: go on with it "
                f"(`{resume_command(recipe)}`), choose another folder, or put {{name}} into it"
            )
    return named


def folder_to_resume(recipe: Recipe) -> Path:
    """The newest folder that runs of this name have: `latest` of the command line. Raises ConfigError."""
    found, count = None, 1
    while run_paths(named := _numbered(recipe, count)).is_taken:
        found, count = run_paths(named).root, count + 1
        if "{name}" not in recipe.run.output_dir:
            break
    if found is None:
        raise ConfigError(
            f"--resume latest: there is no run in {run_paths(recipe).root}; start one without --resume, "
            "or name its folder"
        )
    return found


def resumed_recipe(root: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The stored recipe of the run in `root`, with what `--set` may change (CHANGEABLE).

    Raises ConfigError if there is no such run, or if an override changes anything else.
    """
    header = Paths(root).recipe
    try:
        begun = json.loads(header.read_text(encoding="utf-8"))
        stored = begun["recipe"]
        # The folder may have been moved, or named from another working folder.
        stored["run"]["output_dir"] = str(root).replace("{", "{{").replace("}", "}}")
        if "replay" in stored:
            stored["replay"]["url"] = _found_again(stored["replay"]["url"], begun.get("cwd"))
    except FileNotFoundError:
        raise ConfigError(
            f"--resume {root}: {header} is missing, so there is no run to go on with"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--resume {root}: {header} cannot be read: {error}") from None
    before = parse_recipe(stored, source=str(header))
    recipe = parse_recipe(
        apply_overrides(before.model_dump(mode="json"), overrides), source="--set"
    )
    old, new = _flat(before.model_dump()), _flat(recipe.model_dump())
    changed = sorted(key for key in old | new if old.get(key) != new.get(key))
    if refused := [key for key in changed if key not in CHANGEABLE]:
        raise ConfigError(
            f"--resume goes on with the recipe in {header}: --set {refused[0]} would make it another run. "
            f"Only {', '.join(CHANGEABLE)} may change; for the rest start a new run with "
            'policy.model = "CHECKPOINT FOLDER"'
        )
    return recipe


def _found_again(url: str, begun_in: str | None) -> str:
    """The URL of a relative SQLite file that is not here but in the working folder the run began in."""
    relative = url.removeprefix(_SQLITE)
    if begun_in is None or relative == url or "{" in url or Path(relative).exists():
        return url
    there = Path(begun_in, relative)
    return f"{_SQLITE}{there}" if there.exists() else url


def _numbered(recipe: Recipe, count: int) -> Recipe:
    """The recipe with its run named `name` (count 1) or `name-count`."""
    base = recipe.run.name or "run"
    name = base if count == 1 else f"{base}-{count}"
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"name": name})})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as `section.key`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out

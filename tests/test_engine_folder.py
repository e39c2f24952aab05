"""Names and folders of runs: which is free, which is the latest, what a resumed run may change."""

import json
from pathlib import Path

import pytest

from treerl.config import Recipe
from treerl.engine.folder import (
    folder_to_resume,
    fresh_folder,
    resume_command,
    resumed_recipe,
    run_paths,
)
from treerl.engine.lock import held
from treerl.errors import ConfigError
from treerl.recipe import parse_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def named(name: str = "a", **run: object) -> Recipe:
    return parse_recipe({"run": {"name": name, **run}})


def begin(recipe: Recipe) -> Path:
    """The header of a run, as `train` writes it."""
    paths = run_paths(recipe)
    paths.root.mkdir(parents=True)
    paths.recipe.write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    return paths.root


def test_the_first_free_name_is_taken():
    assert fresh_folder(named()).run.name == "a"
    begin(named("a"))
    assert fresh_folder(named()).run.name == "a-2"
    begin(named("a-2"))
    assert fresh_folder(named()).run.name == "a-3"


def test_a_folder_without_a_run_in_it_is_free():
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/replay.db").touch()
    assert fresh_folder(named()).run.name == "a"


def test_a_folder_that_another_process_holds_is_taken_and_cannot_be_held_twice():
    with held(Path("runs/a")):
        assert fresh_folder(named()).run.name == "a-2"
        with (
            pytest.raises(ConfigError, match="another process trains in runs/a"),
            held(Path("runs/a")),
        ):
            pass
    assert fresh_folder(named()).run.name == "a"


def test_a_relative_cache_is_found_again_from_another_working_folder(tmp_path, monkeypatch):
    root = begin(
        parse_recipe({"run": {"name": "a"}, "replay": {"url": "sqlite:///shared/replay.db"}})
    )
    header = json.loads((root / "recipe.json").read_text())
    (root / "recipe.json").write_text(json.dumps({**header, "cwd": str(tmp_path)}))
    Path("shared").mkdir()
    Path("shared/replay.db").touch()
    assert resumed_recipe(root).replay.url == "sqlite:///shared/replay.db"
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = resumed_recipe(tmp_path / root)
    assert found.replay.url == f"sqlite:///{tmp_path}/shared/replay.db"


def test_latest_is_the_newest_folder_of_the_name():
    with pytest.raises(ConfigError, match="there is no run in runs/a"):
        folder_to_resume(named())
    begin(named("a"))
    assert folder_to_resume(named()) == Path("runs/a")
    begin(named("a-2"))
    begin(named("ab"))
    assert folder_to_resume(named()) == Path("runs/a-2")


def test_a_fixed_folder_holds_one_run():
    recipe = named(output_dir="out")
    assert run_paths(fresh_folder(recipe)).root == Path("out")
    begin(recipe)
    with pytest.raises(ConfigError, match="treerl train --resume out"):
        fresh_folder(recipe)
    assert folder_to_resume(recipe) == Path("out")


def test_the_stored_recipe_counts_also_from_a_folder_that_was_moved():
    root = begin(parse_recipe({"run": {"name": "a"}, "max_steps": 7, "update": {"lr": 1e-4}}))
    moved = root.rename("moved {x}")
    recipe = resumed_recipe(moved)
    assert (recipe.max_steps, recipe.update.lr) == (7, 1e-4)
    assert run_paths(recipe).root == moved
    assert resume_command(recipe) == "treerl train --resume 'moved {x}'"


def test_only_the_end_and_the_checkpoints_of_a_run_may_change():
    root = begin(parse_recipe({"run": {"name": "a"}, "max_steps": 7}))
    changed = resumed_recipe(root, ["max_steps=9", "run.checkpoint_every=2", "max_minutes=3"])
    assert (changed.max_steps, changed.run.checkpoint_every, changed.max_minutes) == (9, 2, 3)
    assert resumed_recipe(root, ["seed=0", "search.kind='cure'"]).max_steps == 7  # as it was
    for other in ("seed=1", "update.lr=0.5", "search.trees_per_step=1"):
        with pytest.raises(ConfigError, match=rf"--set {other.partition('=')[0]} would make it"):
            resumed_recipe(root, [other])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "x"}', '{"recipe": 3}'])
def test_a_header_that_cannot_be_read_is_named(content):
    Path("a").mkdir()
    Path("a/recipe.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a/recipe\.json cannot be read"):
        resumed_recipe(Path("a"))


def test_a_stored_recipe_of_another_version_names_the_key():
    Path("a").mkdir()
    recipe = {"run": {"name": "a"}, "update": {"momentum": 1}}
    Path("a/recipe.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(ConfigError, match=r"update\.momentum"):
        resumed_recipe(Path("a"))

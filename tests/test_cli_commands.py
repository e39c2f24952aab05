"""Every command on one small trained run: exit codes, JSON, and what is left on disk."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support_engine import Outcome, sets, treerl
from treerl.metrics import METRICS, is_documented, read_metrics
from treerl.replay.store import Store
from treerl.tasks import chain

URL = "sqlite:///runs/replay.db"


class World:
    """A folder with one finished run, and the outcome of the command that made it."""

    def __init__(self, folder: Path, trained: Outcome) -> None:
        self.folder, self.trained = folder, trained
        self.run = folder / "runs" / "quickstart-seed0"
        self.checkpoint = self.run / "checkpoints" / "step-00000003"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = treerl("train", "quickstart", *sets("eval.every=2"), "--json")
        yield World(folder, trained)


# train


def test_train_ends_with_a_summary(world):
    assert world.trained.exit_code == 0
    summary = world.trained.json
    assert summary["steps"] == 3
    assert summary["run"] == "quickstart-seed0"
    assert summary["folder"] == "runs/quickstart-seed0"
    assert summary["url"] == URL
    assert summary["before"].keys() == summary["after"].keys()
    assert {"eval/avg@2", "eval/pass@1", "eval/pass@2", "eval/maj@2", "eval/greedy"} <= set(
        summary["after"]
    )
    assert summary["gain"] == pytest.approx(
        summary["after"]["eval/avg@2"] - summary["before"]["eval/avg@2"]
    )
    assert summary["generated_tokens"] > summary["trained_tokens"] > 0
    assert {"treerl", "torch", "transformers", "device", "git_commit"} <= summary.keys()


def test_metrics_have_a_row_a_step_and_documented_names_only(world):
    rows = read_metrics(world.run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert {name for row in rows for name in row if not is_documented(name)} == set()
    assert "eval/avg@2" in rows[0]
    assert "eval/avg@2" in rows[2]
    assert "eval/avg@2" not in rows[1]


def test_metrics_tell_what_the_summary_tells(world):
    rows = read_metrics(world.run / "metrics.jsonl")
    summary = world.trained.json
    assert sum(row.get("search/generated_tokens", 0) for row in rows) == rows[-1]["num_tokens"]
    assert rows[-1]["num_tokens"] == summary["generated_tokens"]
    assert rows[-1]["train/total_tokens_trained"] == summary["trained_tokens"]


def test_no_documented_name_is_unused(world):
    """Names that need a setting which the small run lacks are listed here."""
    elsewhere = (
        "kl",
        "replay/trained_tokens",
        "replay/is_",
        "replay/capped_frac",
        "replay/ess",
        "replay/age_",
        "replay/imit",
        "replay/pool_",
    )
    elsewhere += (
        "mismatch/rejected_frac",
        "mismatch/ess_leaves",
        "curriculum/",
        "handover/",
        "time/handover",
    )
    rows = read_metrics(world.run / "metrics.jsonl")
    found = {name for row in rows for name in row}
    unused = {
        key
        for key in METRICS
        if not key.startswith(elsewhere)
        and not any(name == key or (key[-1] == "*" and name.startswith(key[:-1])) for name in found)
    }
    assert unused == set()


def test_trees_are_in_the_store(world):
    with Store.open(URL, create=False) as store:
        infos = store.trees()
        assert [info.step for info in infos] == [0] * 3 + [1] * 3 + [2] * 3
        assert sum(info.generated for info in infos) == world.trained.json["generated_tokens"]


def test_the_checkpoint_is_a_model_folder(world):
    model = AutoModelForCausalLM.from_pretrained(world.checkpoint)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.isfinite(model(tokens).logits).all()


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["search"], ["sft", "--from-replay"]):
        name, *rest = command
        done = treerl(name, "quickstart", *rest, "--set", "max_steps=7", "--dry-run")
        assert (done.exit_code, done.json["max_steps"]) == (0, 7)
    assert list(tmp_path.iterdir()) == []


# inspect and replay


def test_inspect_lists_trees_and_opens_one(world):
    rows = treerl("inspect", "--json").json
    assert len(rows) == 9
    tree = treerl("inspect", str(rows[0]["tree"]), "--json")
    assert tree.exit_code == 0
    assert tree.json
    shown = treerl("inspect", str(rows[0]["tree"]))
    assert shown.exit_code == 0
    assert rows[0]["question"] in shown.stdout


@pytest.mark.parametrize("heat", ["entropy", "logprob", "advantage"])
def test_inspect_shows_a_span_as_heat(world, heat):
    tree = treerl("inspect", "--json").json[0]["tree"]
    found = treerl("inspect", str(tree), "--node", "1", "--heat", heat, "--json").json
    assert len(found["tokens"]) == len(found[heat]) > 0


@pytest.mark.parametrize("ending", ["svg", "html", "graphml", "dot", "json"])
def test_export_writes_a_tree_in_each_format(world, tmp_path, ending):
    tree = treerl("inspect", "--trees", "--json").json[0]
    file = tmp_path / f"tree.{ending}"
    done = treerl("export", str(tree["tree"]), str(file), "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["estimator"] == "sibling_rloo"
    assert done.json["bytes"] == file.stat().st_size
    assert tree["question"] in file.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [file]


def test_a_watched_search_has_a_line_a_tree_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = treerl("search", "quickstart", *sets(), "-n", "2", "--watch")
    assert done.exit_code == 0
    for number in (1, 2):
        assert f"tree {number}/2: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["export", "99", "x.svg"], 1, "no tree 99"),
        (["export", "1", "x.pdf"], 2, "choose an ending of .svg, .html"),
        (["export", "1", "x.svg", "--colour", "warm"], 2, "--colour warm"),
        (["export", "1", "x.svg", "--paper", "red"], 2, "--paper red"),
        (["export", "1", "x.svg", "--estimator", "luck"], 2, "estimator luck"),
        (["export", "1", "absent/x.svg"], 1, "cannot write absent/x.svg"),
        (["inspect", "99"], 1, "no tree 99"),
        (["inspect", "1", "--node", "99"], 2, "--node 99"),
        (["inspect", "1", "--node", "1", "--heat", "warm"], 2, "--heat warm"),
        (["inspect", "--run", "nobody"], 2, "no such run"),
        (["inspect", "--url", "sqlite:///absent.db"], 1, "absent.db"),
        (["replay", "ls", "cats"], 2, "runs, trees, problems"),
        (["replay", "show", "zzzz"], 2, "0 problems begin so"),
        (["replay", "import", "absent.jsonl"], 2, "no such file"),
        (["replay", "stats", "--url", "sqlite:///absent.db"], 1, "absent.db"),
        (["recipe", "show", "nobody"], 2, "no recipe 'nobody'"),
        (["train", "quickstart", "--set", "search.width=3"], 2, "search.width"),
        (["train", "quickstart", "--set", "update.learning_rate=1"], 2, "update.lr"),
        (["train"], 2, "give a recipe"),
        (["train", "--resume", "absent"], 2, "no run to go on with"),
        (["train", "quickstart", "--set", "seed=77", "--resume", "latest"], 2, "there is no run"),
        (["search", "quickstart", "--truth", "3"], 2, "--truth goes with --prompt"),
        (["sft", "quickstart"], 2, "--data FILE or --from-replay"),
        (["eval", "quickstart", "--weights", "absent"], 2, "absent"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_misuse_and_failure_have_a_line_and_a_code(world, arguments, code, said):
    done = treerl(*arguments)
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_replay_stats_and_lists(world):
    stats = treerl("replay", "stats", "--json").json
    assert (stats["trees"], len(stats["runs"])) == (9, 1)
    assert treerl("replay", "ls", "--json").json[0]["run"] == "quickstart-seed0"
    assert len(treerl("replay", "ls", "trees", "--json").json) == 9
    problems = treerl("replay", "ls", "problems", "--json").json
    shown = treerl("replay", "show", problems[0]["key"], "--json").json
    assert shown["question"] == problems[0]["question"]
    assert len(shown["solutions"]) == problems[0]["leaves"]
    for command in (["stats"], ["ls"], ["ls", "trees"], ["ls", "problems"]):
        assert treerl("replay", *command).exit_code == 0


def test_export_goes_into_another_cache_and_comes_out_the_same(world):
    assert treerl("replay", "export", "all.jsonl", "--json").json["solutions"] > 0
    other = "sqlite:///other.db"
    dry = treerl("replay", "import", "all.jsonl", "--url", other, "--dry-run", "--json")
    assert not Path("other.db").exists()
    assert treerl("replay", "import", "all.jsonl", "--url", other, "--json").json == dry.json
    treerl("replay", "export", "again.jsonl", "--url", other)
    assert Path("again.jsonl").read_bytes() == Path("all.jsonl").read_bytes()


def test_check_and_upgrade_find_nothing_to_do(world):
    assert treerl("replay", "check", "--json").json == {"problems": []}
    assert "is current" in treerl("replay", "upgrade", URL, "--json").json["done"]


def test_check_names_what_does_not_match(world):
    shutil.copy("runs/replay.db", "harmed.db")
    with sqlite3.connect("harmed.db") as harmed:
        harmed.execute("UPDATE problem SET question = question || '!' WHERE id = 1")
    harmed.close()
    done = treerl("replay", "check", "--url", "sqlite:///harmed.db", "--json")
    assert done.exit_code == 1
    assert len(done.json["problems"]) >= 1


# search, eval, sft


def test_search_of_one_prompt_shows_its_tree(world):
    problem = next(chain.problem_stream("heldout", (5, 7), 0))
    arguments = ["search", "quickstart", *sets("replay.url='sqlite:///s.db'")]
    arguments += ["--prompt", problem.question]
    done = treerl(*arguments, "--truth", problem.truth)
    assert done.exit_code == 0
    assert problem.question in done.stdout
    found = treerl(*arguments, "--json").json
    assert len(found["trees"]) == 1
    assert found["search/generated_tokens"] > 0


def test_search_of_the_task_stores_its_trees(world):
    url = "sqlite:///s2.db"
    done = treerl("search", "quickstart", *sets(f"replay.url='{url}'"), "-n", "2", "--json")
    assert len(done.json["trees"]) == 2
    assert len(treerl("inspect", "--url", url, "--json").json) == 2


def test_eval_of_a_checkpoint_repeats_the_figures_of_its_run(world):
    done = treerl("eval", "quickstart", *sets(), "--weights", str(world.checkpoint), "--json").json
    after = world.trained.json["after"]
    assert done["avg@2"] == after["eval/avg@2"]
    assert done["greedy"] == after["eval/greedy"]
    start = treerl("eval", "quickstart", *sets(), "--json").json
    assert start["avg@2"] == world.trained.json["before"]["eval/avg@2"]


def test_sft_learns_from_a_file_and_its_model_can_be_evaluated(world):
    rng = np.random.default_rng(0)
    shown = [chain.draw_demonstration(rng, chain.Flaws()) for _ in range(8)]
    rows = [
        {"question": d.problem.question, "answer": d.problem.truth, "solution": d.completion}
        for d in shown
    ]
    Path("worked.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["sft", "quickstart", *sets(), "--data", "worked.jsonl", "--output", "warm"]
    arguments += ["--steps", "3", "--batch", "4", "--lr", "1e-3", "--json"]
    done = treerl(*arguments)
    assert done.exit_code == 0
    assert done.json["steps"] == 3
    assert done.json["last_loss"] < done.json["first_loss"]
    evaluated = treerl("eval", "quickstart", *sets("policy.model='warm'"), "--json").json
    assert evaluated["avg@2"] == done.json["after avg@2"]
    assert treerl(*arguments).exit_code == 2  # the folder holds a model now


def test_sft_from_the_cache_trains_on_right_solutions_only(world):
    right = sum(row["right"] for row in treerl("inspect", "--json").json)
    arguments = ["sft", "quickstart", *sets(), "--from-replay", "--output", "warm2"]
    done = treerl(*arguments, "--steps", "2", "--batch", "2", "--json")
    assert done.exit_code == 0
    assert 0 < done.json["examples"] <= right


# recipe, doctor


def test_recipes_are_listed_shown_checked_and_copied(world):
    names = [row["name"] for row in treerl("recipe", "ls", "--json").json]
    assert "quickstart" in names
    for name in names:
        assert treerl("recipe", "check", name, "--json").json["ok"]
    assert "[task]" in treerl("recipe", "show", "quickstart").stdout
    assert treerl("recipe", "show", "quickstart", "--json").json["task"]["kind"] == "chain"
    assert treerl("recipe", "copy", "quickstart", "mine.toml", "--json").exit_code == 0
    assert treerl("recipe", "copy", "quickstart", "mine.toml").exit_code == 2
    assert treerl("recipe", "copy", "quickstart", "mine.toml", "--force").exit_code == 0
    assert treerl("recipe", "check", "mine.toml").exit_code == 0


def test_doctor_says_what_is_there(world):
    found = treerl("doctor", "--json").json
    assert {"treerl", "python", "torch", "device", "sqlite"} <= found.keys()
    assert treerl("doctor").exit_code == 0

"""`treerl inspect` on a small trained run: lists, trees, spans, credit under a checkpoint, pipes, misuse."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support_engine import ROOT, sets, treerl
from treerl.replay.store import Store

URL = "sqlite:///runs/replay.db"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of three steps, its cache and its checkpoint."""
    folder = tmp_path_factory.mktemp("inspected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = treerl("train", "quickstart", *sets(), "--json")
        assert done.exit_code == 0
        yield folder


def mixed_tree():
    """Id of a tree with right and wrong leaves."""
    rows = treerl("inspect", "--trees", "--json").json
    return next(row["tree"] for row in rows if 0 < row["right"] < row["leaves"])


def test_problems_and_trees_are_listed_with_their_figures(run):
    problems = treerl("inspect", "--json").json
    trees = treerl("inspect", "--trees", "--json").json
    assert sum(row["trees"] for row in problems) == len(trees) == 9
    for row in trees:
        assert row["pass_rate"] == row["right"] / row["leaves"]
        assert 0 < row["entropy"] < 2
    assert [row["tree"] for row in trees] == sorted((row["tree"] for row in trees), reverse=True)


def test_lists_are_filtered_sorted_and_cut(run):
    where = treerl("inspect", "--trees", "--where", "step=1 rate<=1", "--json").json
    assert {row["step"] for row in where} == {1}
    rates = [row["pass_rate"] for row in treerl("inspect", "--sort", "pass rate", "--json").json]
    assert rates == sorted(rates)
    cut = treerl("inspect", "--limit", "2")
    assert "the first 2 problems; --limit shows more" in cut.stdout


def test_a_tree_has_its_advantages_in_json(run):
    tree = str(mixed_tree())
    found = treerl("inspect", tree, "--compare", "tree_value,grpo", "--json").json
    paid = [node["advantage"] for node in found["nodes"] if node["parent"] >= 0]
    assert {name for both in paid for name in both} == {"tree_value", "grpo"}
    assert any(both["grpo"] for both in paid)
    assert found["compare"]["spans"] == len(paid)
    one = treerl("inspect", tree, "--colour", "advantage", "--estimator", "rloo", "--json").json
    assert one["nodes"][1]["advantage"].keys() == {"rloo"}
    own = treerl("inspect", tree, "--colour", "advantage", "--json").json
    assert own["nodes"][1]["advantage"].keys() == {"sibling_rloo"}  # what quickstart trains with


def test_log_prob_estimators_and_ratios_use_the_runs_checkpoint(run):
    tree = str(mixed_tree())
    shown = treerl("inspect", tree, "--compare", "grpo,prl")
    assert shown.exit_code == 0
    assert "step-00000003; reference embedded" in " ".join(shown.stdout.split())
    found = treerl("inspect", tree, "--node", "1", "--heat", "ratio", "--json").json
    ratios = np.array([value for value in found["ratio"] if value is not None])
    assert (ratios > 0).all()
    assert np.median(ratios) == pytest.approx(1, abs=0.05)  # most tokens are certain
    assert np.abs(np.log(ratios)).max() > 0.01  # yet the weights have moved


def test_the_ratio_under_the_weights_that_drew_a_tree_is_one(run):
    """Step 0 was drawn by the embedded policy, which --weights names here."""
    weights = Path(ROOT) / "treerl" / "assets" / "chain-0.4m"
    rows = treerl("inspect", "--trees", "--where", "step=0", "--json").json
    first = ["inspect", str(rows[0]["tree"]), "--node", "1", "--heat", "ratio", "--json"]
    found = treerl(*first, "--weights", str(weights)).json
    known = [value for value in found["ratio"] if value is not None]
    assert known == pytest.approx([1.0] * len(known), abs=1e-4)


def test_siblings_are_shown_side_by_side(run):
    tree = str(mixed_tree())
    found = treerl("inspect", tree, "--node", "1", "--siblings", "--json").json
    assert len(found["continuations"]) > 1
    assert str(found["best_sibling"]) in found["continuations"]
    shown = treerl("inspect", tree, "--node", "1", "--siblings").stdout
    assert "in common" in shown
    assert f"span {found['best_sibling']}" in shown


def test_a_run_without_a_checkpoint_says_what_to_give(run):
    made = treerl("search", "quickstart", *sets("replay.url='sqlite:///s.db'"), "-n", "1", "--json")
    tree = str(made.json["trees"][0])
    done = treerl("inspect", tree, "--url", "sqlite:///s.db", "--compare", "grpo,prl")
    assert done.exit_code == 2
    assert "has no checkpoint in" in done.stderr
    assert "--weights FOLDER" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["99"], 1, "no tree 99"),
        (["1", "--siblings"], 2, "--siblings goes with a tree and --node"),
        (["1", "--node", "0", "--siblings"], 2, "has no sibling"),
        (["1", "--colour", "mood"], 2, "--colour mood: choose one of q, visits"),
        (["1", "--compare", "grpo"], 2, "give two estimators"),
        (["1", "--compare", "grpo,nonsense"], 2, "estimator nonsense: choose one of"),
        (["1", "--weights", "absent"], 2, "--weights absent"),
        (["--where", "rate<x"], 2, "filter 'rate<x'"),
        (["--sort", "mood"], 2, "--sort mood"),
        (["-i"], 2, "-i needs a terminal"),
        (["-i", "--json"], 2, "give one of them"),
    ],
)
def test_misuse_says_what_to_do(run, arguments, code, said):
    done = treerl("inspect", *arguments)
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr


def test_an_empty_cache_says_what_fills_it(run):
    with Store.open("sqlite:///empty.db"):
        pass
    done = treerl("inspect", "--url", "sqlite:///empty.db")
    assert done.exit_code == 0
    assert (
        "no trees in sqlite:///empty.db yet: `treerl search quickstart` grows some" in done.stdout
    )
    assert treerl("inspect", "--url", "sqlite:///empty.db", "--json").json == []


def test_a_cache_of_another_version_says_the_command(run):
    with Store.open("sqlite:///old.db"):
        pass
    changed = sqlite3.connect("old.db")
    changed.execute("UPDATE alembic_version SET version_num = '0001'")
    changed.commit()
    changed.close()
    done = treerl("inspect", "--url", "sqlite:///old.db")
    assert done.exit_code == 1
    assert "treerl replay upgrade sqlite:///old.db" in done.stderr


def child(arguments, **options):
    code = f"from treerl.cli import app; app({['inspect', *arguments]!r})"
    paths = os.pathsep.join([ROOT, *filter(None, sys.path)])
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_pipe_gets_plain_lines_and_may_close_early(run):
    reader = child([str(mixed_tree()), "--all"])
    out, err = reader.communicate(timeout=120)
    assert reader.returncode == 0, err
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 112
    closed = child(["--limit", "1000"])
    assert closed.stdout is not None
    closed.stdout.close()
    _, err = closed.communicate(timeout=120)
    assert "Traceback" not in err

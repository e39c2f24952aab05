"""Bad input, full disks, broken weights and Ctrl-C: a clear line, the right exit code, nothing lost."""

import itertools
import json
import resource
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch

from tests.support_engine import sets, signal_at, treerl, treerl_child
from treerl.errors import DoesNotFit, SamplerError, StoreError
from treerl.metrics import MetricsLog, read_metrics
from treerl.policy.model import EMBEDDED
from treerl.replay.store import Store
from treerl.samplers.transformers import TransformersSampler
from treerl.tasks import chain

RUN = "runs/quickstart-seed0"
SMALL = sets("search.trees_per_step=2", "max_steps=2", "run.checkpoint_every=1", "eval.problems=2")


def chain_lines(count: int) -> list[str]:
    stream = chain.problem_stream("train", (5, 7), 0, 0)
    return [
        json.dumps({"question": p.question, "answer": p.truth})
        for p in (next(stream) for _ in range(count))
    ]


def file_task(*overrides: str) -> list[str]:
    """Arguments to train on problems.jsonl in the working folder, two problems held out."""
    recipe = Path("file.toml")
    recipe.write_text(
        'max_steps = 1\n[task]\nkind = "file"\npath = "problems.jsonl"\nheldout = 2\n'
        'judge = "exact"\n[verifier]\nanswer_format = "last_segment"\n'
        "[sampler]\nmax_prompt_length = 32\nmax_completion_length = 80\n"
        "[search]\nkind = 'flat'\ntrees_per_step = 3\nnum_generations = 2\n"
        "[update]\nlr = 1e-4\n[eval]\nnum_samples = 2\nk = [1]\n"
    )
    return ["train", "file.toml", *(part for o in overrides for part in ("--set", o))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Files of problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no problem found"),
        ('{"question": "1+1=", "answer": "2"}\n{"question": "1+', "line 2"),
        ('{"prompt_text": "1+1=", "result": "2"}', "task.question and task.answer"),
        ('{"question": "1+1="}', "task.question and task.answer"),
        ('["1+1=", "2"]', "line 1"),
        ("\n".join(chain_lines(2)), "leaves none of its 2 problems"),
    ],
)
def test_a_bad_file_is_named_with_its_line(folder, content, said):
    Path("problems.jsonl").write_text(content)
    done = treerl(*file_task())
    assert done.exit_code == 2
    assert "problems.jsonl" in done.stderr
    assert said in done.stderr
    assert not Path("runs").exists()


def test_a_missing_file_is_named(folder):
    done = treerl(*file_task())
    assert done.exit_code == 2
    assert "problems.jsonl: no such file" in done.stderr


def test_long_prompts_are_dropped_and_counted_and_the_rest_is_trained_on(folder):
    long = json.dumps({"question": "1+" * 40 + "1=", "answer": "41"})
    Path("problems.jsonl").write_text("\n".join([long, *chain_lines(4)]))
    done = treerl(*file_task(), "--json")
    assert done.exit_code == 0, done.stderr
    rows = read_metrics(Path(done.json["folder"]) / "metrics.jsonl")
    assert (rows[1]["search/dropped_prompts"], rows[1]["search/trees"]) == (1, 2)


def test_prompts_that_are_all_too_long_are_an_error_that_says_which_limit(folder):
    Path("problems.jsonl").write_text("\n".join(chain_lines(5)))
    done = treerl(*file_task("sampler.max_prompt_length=4"))
    assert done.exit_code == 2
    assert "sampler.max_prompt_length = 4" in done.stderr
    done = treerl("search", "quickstart", *sets(), "--prompt", "1+" * 40 + "1=")
    assert done.exit_code == 2
    assert "sampler.max_prompt_length = 32" in done.stderr


def test_a_prompt_that_leaves_no_room_in_the_context_is_dropped_not_cut(folder):
    model = json.loads((EMBEDDED / "config.json").read_text())
    context = model["max_position_embeddings"]
    Path("problems.jsonl").write_text("\n".join(chain_lines(5)))
    done = treerl(*file_task(f"sampler.max_completion_length={context - 4}"))
    assert done.exit_code == 2
    assert f"context of {context}" in done.stderr
    done = treerl(*file_task(f"sampler.max_completion_length={context}"))
    assert done.exit_code == 2
    assert "leaves no room for a prompt" in done.stderr


def test_a_problem_that_comes_twice_in_a_step_gets_two_different_trees(folder):
    Path("problems.jsonl").write_text("\n".join(chain_lines(4)))
    done = treerl(*file_task("max_steps=2"), "--json")
    assert done.exit_code == 0, done.stderr
    with Store.open(done.json["url"], create=False) as store:
        infos = store.trees()
        trees = [store.load_tree(info.id).tree for info in infos]
    assert [info.step for info in infos] == [0, 0, 0, 1, 1, 1]
    assert sorted(info.number for info in infos) == [0, 0, 0, 0, 1, 1]
    assert len({tree.seed for tree in trees}) == 6


def test_a_step_without_gradient_goes_on(folder):
    """Truths that no answer can match: all leaves wrong, all trees uniform."""
    rows = [json.loads(line) | {"answer": "none"} for line in chain_lines(5)]
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = treerl(*file_task("max_steps=2"))
    assert done.exit_code == 0, done.stderr
    assert "nothing to learn from" in done.stdout
    rows = read_metrics(Path("runs/file-seed0/metrics.jsonl"))
    assert [row["train/optimizer_steps"] for row in rows[1:]] == [0, 0]


# The cache


def test_a_cache_of_another_schema_is_refused_with_the_remedy(folder):
    with Store.open("sqlite:///other.db"):
        pass
    database = sqlite3.connect("other.db")
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    done = treerl("train", "quickstart", *sets("replay.url='sqlite:///other.db'"))
    assert done.exit_code == 1
    assert "pip install --upgrade treerl" in done.stderr
    assert not Path("runs").exists()


def test_a_file_that_is_no_cache_is_refused(folder):
    Path("other.db").write_text("hello")
    done = treerl("train", "quickstart", *sets("replay.url='sqlite:///other.db'"))
    assert done.exit_code == 1
    assert "other.db" in done.stderr


# Folders


def test_an_occupied_folder_without_a_name_in_it_is_refused(folder):
    Path("out").mkdir()
    Path("out/recipe.json").write_text("{")
    done = treerl("train", "quickstart", *sets("run.output_dir='out'"))
    assert done.exit_code == 2
    assert "treerl train --resume out" in done.stderr
    done = treerl("train", "--resume", "out")
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr


def test_a_model_that_cannot_be_loaded_leaves_the_name_free(folder):
    Path("hollow").mkdir()
    done = treerl("train", "quickstart", *sets("policy.model='hollow'"))
    assert done.exit_code == 2
    assert "policy.model = 'hollow'" in done.stderr
    assert not Path(RUN).exists()


def test_the_time_limit_ends_a_run_and_reports(folder):
    done = treerl("train", "quickstart", *SMALL, "--set", "max_minutes=0.00001", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["steps"] == 1


# Weights


def test_nan_weights_stop_the_run_with_a_message(folder):
    shutil.copytree(EMBEDDED, "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file("broken/model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, "broken/model.safetensors", metadata={"format": "pt"})
    done = treerl("train", "quickstart", *SMALL, "--set", "policy.model='broken'")
    assert done.exit_code == 1
    assert "log-probs are NaN: its weights are broken" in done.stderr
    done = treerl("eval", "quickstart", *SMALL, "--weights", "broken")
    assert done.exit_code == 1
    assert "logits are NaN" in done.stderr


# The sampler


def lose_the_engine(call: int) -> None:
    """The `call`-th step of the sampler raises what a lost engine raises."""
    step, calls = TransformersSampler.step, itertools.count(1)

    def failing(self):
        if next(calls) == call:
            raise SamplerError("the engine died")
        return step(self)

    TransformersSampler.step = failing


def test_a_lost_engine_stops_the_run_which_goes_on_where_it_was(tmp_path):
    arguments = ("train", "quickstart", *SMALL, "--set", "eval.every=0")
    given = (12,)
    done = treerl_child(tmp_path, *arguments, prepare=lose_the_engine, given=given)
    assert done.exit_code == 1, done.stdout
    assert "the engine died" in done.stderr
    assert f"treerl train --resume {RUN}" in done.stderr
    resumed = treerl_child(tmp_path, "train", "--resume", RUN, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.json["steps"] == 2


def refuse_the_first() -> None:
    """The first continuation of the first search does not fit; two evaluations come before it."""
    submit, calls = TransformersSampler.submit, itertools.count()

    def refusing(self, ticket, work):
        if ticket == 0 and next(calls) == 2:
            raise DoesNotFit("a prefix of 9 tokens does not fit")
        submit(self, ticket, work)

    TransformersSampler.submit = refusing


def test_a_step_goes_on_without_the_tree_whose_continuations_do_not_fit(tmp_path):
    arguments = ("train", "quickstart", *SMALL, "--json")
    done = treerl_child(tmp_path, *arguments, prepare=refuse_the_first)
    assert done.exit_code == 0, done.stderr
    assert "does not fit" in done.stderr
    rows = read_metrics(tmp_path / RUN / "metrics.jsonl")
    assert [row.get("search/exit/too_long", 0) for row in rows[1:]] == [1, 0]
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db", create=False) as store:
        assert len(store.trees()) == 4


def hang_in_the_engine(call: int) -> None:
    """The `call`-th step of the sampler never comes back, and nothing can interrupt it."""
    step, calls = TransformersSampler.step, itertools.count(1)

    def hanging(self):
        if next(calls) == call:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            threading.Event().wait(600)
        return step(self)

    TransformersSampler.step = hanging


@pytest.mark.parametrize(("call", "where"), [(2, "evaluation"), (12, "search")])
def test_an_engine_that_hangs_ends_the_run_with_the_reason(tmp_path, call, where):
    limit = ("--set", "sampler.request_timeout_s=10")
    arguments = ("train", "quickstart", *SMALL, *limit)
    done = treerl_child(tmp_path, *arguments, prepare=hang_in_the_engine, given=(call,))
    assert done.exit_code == 1, where
    assert "has not come back for 10 s (sampler.request_timeout_s)" in done.stderr
    assert f"treerl train --resume {RUN}" in done.stderr
    resumed = treerl_child(tmp_path, "train", "--resume", RUN, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.json["steps"] == 2


# Ctrl-C and other polite signals

PHASES = {
    "evaluation": ("treerl.samplers.transformers:TransformersSampler.step", 1, signal.SIGINT),
    "search": ("treerl.search.scheduler:_Run.sample", 3, signal.SIGINT),
    "search, by a job scheduler": ("treerl.search.scheduler:_Run.sample", 4, signal.SIGTERM),
    "search, by a closed terminal": ("treerl.search.scheduler:_Run.sample", 5, signal.SIGHUP),
    "update": ("treerl.policy.update:token_logprobs", 2, signal.SIGINT),
    "checkpoint": ("treerl.policy.checkpoint:_sync", 3, signal.SIGTERM),
}


def test_ctrl_c_in_each_phase_keeps_the_store_and_says_how_to_go_on(tmp_path):
    """One run, interrupted in one phase after the other, each time resumed as the message says."""
    arguments = ["train", "quickstart", *SMALL]
    for phase, given in PHASES.items():
        done = treerl_child(tmp_path, *arguments, prepare=signal_at, given=given)
        assert done.exit_code == 1, f"{phase}: {done.stderr}"
        assert f"treerl train --resume {RUN}" in done.stderr, phase
        assert "Traceback" not in done.stderr, phase
        database = sqlite3.connect(tmp_path / "runs" / "replay.db")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
        arguments = ["train", "--resume", RUN]
    done = treerl_child(tmp_path, *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    assert done.json["steps"] == 2
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db", create=False) as store:
        assert len(store.trees()) == 4
        assert len(store.runs()) == 1


def test_ctrl_c_in_a_search_keeps_the_trees_that_were_finished(tmp_path):
    given = ("treerl.engine.tickets:Worker._put", 3, signal.SIGINT)
    done = treerl_child(
        tmp_path, "search", "quickstart", *SMALL, "-n", "4", prepare=signal_at, given=given
    )
    assert done.exit_code == 1
    assert "interrupted" in done.stderr
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db", create=False) as store:
        assert len(store.trees()) == 2


# Full disks


def limit_database(pages: int) -> None:
    """SQLite says "database or disk is full" once the file has so many pages of 4 KiB."""
    sa.event.listen(
        sa.Engine,
        "connect",
        lambda connection, record: connection.execute(f"PRAGMA max_page_count = {pages}"),
    )


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_under_the_metrics_is_an_error_that_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(StoreError, match=r"m\.jsonl"):
            log.write({"step": 1, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_under_the_store_stops_the_run_and_keeps_what_is_there(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/empty.db") as store, store.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    done = treerl_child(
        tmp_path, "train", "quickstart", *SMALL, prepare=limit_database, given=(pages,)
    )
    assert done.exit_code == 1, done.stdout
    assert "the disk is full" in done.stderr
    assert f"treerl train --resume {RUN}" in done.stderr
    with Store.open(f"sqlite:///{tmp_path}/runs/replay.db", create=False) as store:
        for info in store.trees():
            assert len(store.load_tree(info.id).tree) > 1
    resumed = treerl_child(tmp_path, "train", "--resume", RUN, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.json["steps"] == 2


def test_a_full_disk_under_the_checkpoints_stops_the_run_and_keeps_the_earlier_one(tmp_path):
    arguments = ["train", "quickstart", *SMALL]
    one = treerl_child(tmp_path, *arguments, "--set", "max_steps=1")
    assert one.exit_code == 0, one.stderr
    size = (EMBEDDED / "model.safetensors").stat().st_size
    further = ["train", "--resume", RUN, "--set", "max_steps=2"]
    done = treerl_child(tmp_path, *further, prepare=limit_files, given=(size // 2,))
    assert done.exit_code == 1, done.stdout
    assert "cannot write the checkpoint of step 2" in done.stderr
    assert "is intact" in done.stderr
    assert [p.name for p in (tmp_path / RUN / "checkpoints").iterdir()] == ["step-00000001"]
    resumed = treerl_child(tmp_path, *further, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert read_metrics(tmp_path / RUN / "metrics.jsonl")[-1]["search/adopted_trees"] == 2

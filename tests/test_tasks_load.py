import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from treerl.config import ChainTask, DatasetTask, FileTask
from treerl.errors import ConfigError, DataError
from treerl.tasks import load_task


def write(path, count, first=0):
    rows = ({"question": f"q{i}", "answer": str(i)} for i in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_chain_problems_of_a_step_do_not_depend_on_earlier_steps():
    task = ChainTask(seed=7, heldout=20)
    first = load_task(task)
    for step in range(3):
        first.problems_for_step(step, 5)
    assert first.problems_for_step(3, 5) == load_task(task).problems_for_step(3, 5)
    assert first.problems_for_step(3, 5) != load_task(ChainTask(seed=8)).problems_for_step(3, 5)
    assert first.train is None


def test_chain_heldout_problems_are_the_same_for_every_seed():
    assert load_task(ChainTask(seed=1)).heldout == load_task(ChainTask(seed=2)).heldout
    assert len({p.question for p in load_task(ChainTask(heldout=300)).heldout}) == 300


def test_chain_training_and_heldout_problems_never_overlap():
    heldout = {p.key for p in load_task(ChainTask()).heldout}
    for seed in range(5):
        data = load_task(ChainTask(seed=seed, heldout=1))
        trained = {p.key for step in range(4) for p in data.problems_for_step(step, 32)}
        assert len(trained) == 128
        assert not trained & heldout


def test_chain_refuses_impossible_settings():
    with pytest.raises(ConfigError, match="min_operators"):
        load_task(ChainTask(min_operators=9))


def test_every_epoch_has_each_problem_once_in_another_order(tmp_path):
    data = load_task(FileTask(path=write(tmp_path / "a.jsonl", 6), seed=1))
    epochs = [
        [p.truth for step in (2 * e, 2 * e + 1) for p in data.problems_for_step(step, 3)]
        for e in range(4)
    ]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_steps_run_over_the_end_of_an_epoch(tmp_path):
    data = load_task(FileTask(path=write(tmp_path / "a.jsonl", 3)))
    drawn = Counter(p.truth for step in range(3) for p in data.problems_for_step(step, 4))
    assert drawn == Counter({"0": 4, "1": 4, "2": 4})


def test_file_order_is_a_function_of_seed_and_step(tmp_path):
    path = write(tmp_path / "a.jsonl", 50)
    one, two = load_task(FileTask(path=path, seed=1)), load_task(FileTask(path=path, seed=2))
    one.problems_for_step(0, 8)
    assert one.problems_for_step(9, 8) == load_task(FileTask(path=path, seed=1)).problems_for_step(
        9, 8
    )
    assert one.problems_for_step(9, 8) != two.problems_for_step(9, 8)


def test_last_lines_are_held_out(tmp_path):
    data = load_task(FileTask(path=write(tmp_path / "a.jsonl", 10), heldout=3, limit=5))
    assert data.train is not None
    assert [p.truth for p in data.heldout] == ["7", "8", "9"]
    assert [p.truth for p in data.train] == ["0", "1", "2", "3", "4"]


def test_heldout_questions_leave_the_training_set(tmp_path):
    task = FileTask(
        path=write(tmp_path / "a.jsonl", 10),
        heldout_path=write(tmp_path / "b.jsonl", 4, first=8),
    )
    data = load_task(task)
    assert data.train is not None
    assert data.overlapping == 2
    assert not {p.question for p in data.train} & {p.question for p in data.heldout}
    assert len(data.heldout) == 4


def test_more_held_out_than_there_is(tmp_path):
    with pytest.raises(DataError, match="leaves none of its 4 problems"):
        load_task(FileTask(path=write(tmp_path / "a.jsonl", 4), heldout=4))


def test_everything_held_out(tmp_path):
    path = write(tmp_path / "a.jsonl", 4)
    with pytest.raises(DataError, match="every training problem is also held out"):
        load_task(FileTask(path=path, heldout_path=path))


def test_skipped_lines_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 3)
    path.write_text(path.read_text() + "{\n")
    assert load_task(FileTask(path=str(path), skip_malformed=True)).skipped == 1


def test_data_set_without_the_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_task(DatasetTask(name="openai/gsm8k", subset="main"))


def test_data_set_splits_are_mapped_like_files(monkeypatch):
    splits = {
        "train": [{"question": f"q{i}", "answer": f"so\n#### {i}"} for i in range(4)],
        "test": [{"question": "q3", "answer": "#### 3"}],
    }
    package = SimpleNamespace(load_dataset=lambda name, subset, split: splits[split])
    monkeypatch.setitem(sys.modules, "datasets", package)
    data = load_task(DatasetTask(name="openai/gsm8k", subset="main"))
    assert data.train is not None
    assert [p.truth for p in data.train] == ["0", "1", "2"]
    assert [p.truth for p in data.heldout] == ["3"]
    assert data.mapping.startswith("GSM8K")

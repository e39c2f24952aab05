"""vLLM dies for real: its worker process or the whole run is killed with -9, in the middle of a search."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from tests.support_engine import sets, signal_at, steady_rows, treerl_child
from tests.support_search import PROBLEM, check_invariants, decode_tokens, judge_with
from tests.support_vllm import NEEDS_VLLM, VOCABULARY, make_engine, make_vllm_sampler, tiny_llama
from treerl.config import CureSearch, EntropyTopK
from treerl.errors import SamplerError
from treerl.metrics import read_metrics
from treerl.replay import schema
from treerl.replay.store import Store
from treerl.samplers.vllm_installed import installed_vllm
from treerl.search.scheduler import Counts, Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import Tree

pytestmark = NEEDS_VLLM

WORKER = {"distributed_executor_backend": "mp", "weight_transfer_config": None}
"""A worker process of vLLM's own; it takes no weights, for those go over within one process."""


def kill_worker_at(engine: Any, call: int) -> int:
    """Arranges that the engine's worker process is killed before its `call`-th step; returns its number."""
    executor = engine.model_executor
    pid = executor.workers[0].proc.pid
    execute, calls = executor.execute_model, 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(pid, signal.SIGKILL)
        return execute(*args, **kwargs)

    executor.execute_model = counting
    return int(pid)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # vLLM leaves sockets open behind a dead worker
)
def test_a_killed_worker_stops_the_search_within_seconds_and_keeps_what_was_drawn(tmp_path):
    model = tiny_llama()
    cure = CureSearch(num_branches=1, num_generations=8, cut=EntropyTopK(min_characters=1))
    strategy = make_strategy(cure, lambda ids: ["x"] * len(ids))
    prompts = np.random.default_rng(0).integers(2, VOCABULARY, (4, 20), dtype=np.int32)
    trees = [
        Growth(Tree(tokens, seed=seed, max_completion_length=60), strategy, PROBLEM)
        for seed, tokens in enumerate(prompts)
    ]
    with make_engine(model, tmp_path, **WORKER) as engine:
        pid = kill_worker_at(engine.llm_engine.engine_core.engine_core, 40)
        assert pid != os.getpid()
        begun = time.monotonic()
        with pytest.raises(SamplerError, match="vLLM's engine failed"):
            list(
                grow(
                    trees,
                    make_vllm_sampler(engine, model),
                    judge_with(),
                    lambda ids: "".join(decode_tokens([i % 12 for i in ids])),
                    Counts(),
                )
            )
        assert time.monotonic() - begun < 60
    assert "interrupted" in {one.tree.meta["exit"] for one in trees}
    assert sum(one.tree.n_generated for one in trees) > 100
    for one in trees:
        check_invariants(one.tree)


# The command

RUN = "runs/quickstart-seed0"
TRAIN = (
    "train",
    "quickstart",
    *sets(
        "sampler.kind=vllm",
        "sampler.vllm.kv_cache_gib=0.02",
        "sampler.max_batch=32",
        "eval.greedy=false",
        "run.checkpoint_every=1",
        "max_steps=2",
    ),
)
RESUME = ("train", "--resume", RUN, "--json")


def kill_worker_in_search(step: int) -> None:
    """The run's engine has a worker process, which dies at this pass.

    It serves what it read from disk, the policy that the run starts from: nothing is handed to it.
    """
    from treerl.engine.handover import Handover
    from treerl.samplers import vllm_engine

    start = vllm_engine._start

    def start_with_worker(settings: Any, dtype: Any, options: Any, lora_rank: Any) -> Any:
        engine = start(settings, dtype, options | WORKER, lora_rank)
        kill_worker_at(engine.engine_core.engine_core, step)
        return engine

    vllm_engine._start = start_with_worker
    Handover.publish = lambda *_: {}  # type: ignore[method-assign]


def drawn(folder: Path) -> list[tuple[int, int, str, bytes]]:
    """Every stored tree: step, number, question, tokens."""
    with Store.open(f"sqlite:///{folder}/runs/replay.db", create=False) as store:
        rows = [
            (
                i.step,
                i.number,
                i.problem.question,
                store.load_tree(i.id).tree.tokens.token.tobytes(),
            )
            for i in store.trees()
        ]
    return sorted(rows)


def steps_of(folder: Path) -> list[int]:
    """Steps whose metrics are there; 0: the first evaluation."""
    return [row["step"] for row in read_metrics(folder / RUN / "metrics.jsonl")]


def engines(folder: Path) -> list[str]:
    """What drew, by the sampler rows of the cache."""
    url = f"sqlite:///{folder}/runs/replay.db"
    with Store.open(url, create=False) as store, store.read() as connection:
        params = connection.execute(sa.select(schema.sampler.c.params)).scalars().all()
    return [json.loads(text)["engine"] for text in params]


def test_a_run_whose_engine_and_then_itself_is_killed_ends_as_the_unbroken_one(tmp_path):
    """The worker dies in the search of the first step; then, resumed, the run in that of the second."""
    whole = tmp_path / "whole"
    whole.mkdir()
    done = treerl_child(whole, *TRAIN)
    assert done.exit_code == 0, done.stderr

    folder = tmp_path / "killed"
    folder.mkdir()
    done = treerl_child(folder, *TRAIN, prepare=kill_worker_in_search, given=(60,))
    assert done.exit_code == 1, done.stderr
    assert "vLLM's engine failed" in done.stderr
    assert f"treerl train --resume {RUN}" in done.stderr
    assert "Traceback" not in done.stderr
    assert steps_of(folder) == [0]
    at = ("treerl.samplers.vllm_engine:VllmEngine.step", 230, signal.SIGKILL)
    done = treerl_child(folder, *RESUME, prepare=signal_at, given=at)
    assert done.exit_code == -signal.SIGKILL, done.stderr
    assert steps_of(folder) == [0, 1]
    assert {step for step, *_ in drawn(folder)} <= {0, 1}
    done = treerl_child(folder, *RESUME)
    assert done.exit_code == 0, done.stderr
    assert done.json["steps"] == 2

    assert drawn(folder) == drawn(whole)
    found = installed_vllm()
    assert engines(folder) == [f"{found.name}@{found.version}"]
    for ours, theirs in zip(steady_rows(folder / RUN), steady_rows(whole / RUN), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)

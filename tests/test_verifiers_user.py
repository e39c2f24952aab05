"""Reward functions of users: both published shapes, unmodified, and what becomes of their failures."""

import os
import signal
import textwrap

import pytest

from tests.support_verifiers import settings
from treerl.errors import ConfigError
from treerl.problem import Problem
from treerl.verifiers import user
from treerl.verifiers.identity import verifier_identity
from treerl.verifiers.verdict import Completion
from treerl.verifiers.workers import VerifierPool

SOURCE = """
import asyncio, time
from helper_of_rewards import BONUS

def accuracy(prompts, completions, solution, **kwargs):
    return [BONUS if text == truth else 0.0 for text, truth in zip(completions, solution)]

async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [len(text) for text in completions]

def chat(prompts, completions, log_extra=None, log_metric=None, **kwargs):
    assert prompts[0][0]["role"] == "user"
    log_extra("seen", [c[0]["content"] for c in completions])
    log_metric("mean", 0.5)
    return [float(c[0]["content"] == "hi") for c in completions]

def everything(prompts, completions, completion_ids, trainer_state=None, **columns):
    assert completion_ids == [[1, 2], [3], []] and trainer_state is None
    return [len(completions), None, float("nan")]

def short(completions): return [1.0]
def broken(completions): raise KeyError("no such column")
def slow(completions): time.sleep(60)

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "raise": raise ValueError("cannot parse")
    if solution_str == "hang": time.sleep(60)
    if solution_str == "none": return None
    if solution_str == "dict": return {"score": 0.5, "acc": True, "source": data_source, "info": extra_info}
    return float(solution_str == ground_truth)

def openrlhf(queries, prompts, labels): return {}
def areal(prompt, completions, prompt_ids, completion_ids, **data): return 0.0
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rewards.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "helper_of_rewards.py").write_text("BONUS = 2.0\n")
    return tmp_path


@pytest.fixture
def loaded(folder, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return lambda name: user.load(f"{folder / 'rewards.py'}:{name}")


def problems(count=3, **columns):
    return [Problem(f"q{index}", "7", "math", columns) for index in range(count)]


THREE = [Completion("7", token_ids=(1, 2)), Completion("dict", token_ids=(3,)), Completion("none")]


def test_batch_function_gets_texts_and_columns(loaded):
    verdicts = loaded("accuracy").judge(problems(solution="dict"), THREE)
    assert [verdict.reward for verdict in verdicts] == [0.0, 2.0, 0.0]


def test_batch_function_without_the_column_gets_the_truth(loaded):
    assert [v.reward for v in loaded("accuracy").judge(problems(), THREE)] == [2.0, 0.0, 0.0]


def test_async_batch_function(loaded):
    assert [v.reward for v in loaded("later").judge(problems(), THREE)] == [1.0, 4.0, 4.0]


def test_conversational_prompts_give_conversational_completions(loaded):
    messages = [{"role": "user", "content": "say hi"}]
    (verdict,) = loaded("chat").judge(problems(1, prompt=messages), [Completion("hi")])
    assert verdict.reward == 1.0
    assert verdict.detail == {"extra": {"seen": "hi"}, "metrics": {"mean": 0.5}}


def test_none_is_skipped_and_nan_is_an_error(loaded):
    verdicts = loaded("everything").judge(problems(), THREE)
    assert [verdict.outcome for verdict in verdicts] == ["scored", "skipped", "error"]
    assert [verdict.reward for verdict in verdicts] == [3.0, None, None]
    assert "nan" in verdicts[2].detail["reason"]


@pytest.mark.parametrize(
    ("name", "word"), [("short", "expected a list of 3"), ("broken", "no such column")]
)
def test_a_failing_batch_function_is_an_error_for_all(loaded, name, word):
    verdicts = loaded(name).judge(problems(), THREE)
    assert [verdict.outcome for verdict in verdicts] == ["error"] * 3
    assert word in verdicts[0].detail["reason"]


def test_compute_score_is_called_for_each_sample(loaded):
    texts = ["7", "8", "none", "raise"]
    verdicts = loaded("compute_score").judge(problems(4), [Completion(text) for text in texts])
    assert [verdict.outcome for verdict in verdicts] == ["scored", "scored", "skipped", "error"]
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, None, None]


def test_compute_score_gets_verls_columns_and_may_return_a_dict(loaded):
    columns = {"data_source": "gsm8k", "reward_model": {"ground_truth": "8"}, "extra_info": "x"}
    verdicts = loaded("compute_score").judge(
        problems(2, **columns), [Completion("8"), Completion("dict")]
    )
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.5]
    assert verdicts[1].detail == {"acc": True, "source": "gsm8k", "info": "x"}


@pytest.mark.parametrize("name", ["openrlhf", "areal"])
def test_an_unknown_signature_names_the_shapes_accepted(loaded, name):
    with pytest.raises(ConfigError, match=r"TRL: f\(prompts.*verl: f\(data_source"):
        loaded(name)


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("nowhere.py:f", "no file"),
        ("no.such.module:f", "No module"),
        ("json:nothing", "no function"),
        ("x", "write"),
    ],
)
def test_a_target_that_cannot_be_loaded_says_why(target, word):
    with pytest.raises(ConfigError, match=word):
        user.load(target)


def test_the_pool_refuses_a_bad_target_when_it_is_made(folder):
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        VerifierPool(settings(kind="import", target=f"{folder / 'rewards.py'}:nothing"))


def test_the_pool_calls_a_batch_function_once_with_everything(folder):
    target = f"{folder / 'rewards.py'}:everything"
    with VerifierPool(settings(kind="import", target=target, workers=2)) as pool:
        assert pool.verify(problems(), THREE)[0].reward == 3.0


def test_a_batch_function_that_hangs_times_out_as_a_whole(folder):
    target = f"{folder / 'rewards.py'}:slow"
    with VerifierPool(settings(kind="import", target=target, timeout_s=0.3)) as pool:
        assert {verdict.outcome for verdict in pool.verify(problems(), THREE)} == {"timeout"}


def test_one_sample_that_hangs_times_out_alone(folder):
    target = f"{folder / 'rewards.py'}:compute_score"
    texts = ["7", "hang", "8", "raise", "none"]
    with VerifierPool(settings(kind="import", target=target, timeout_s=0.3)) as pool:
        verdicts = pool.verify(problems(5), [Completion(text) for text in texts])
    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes == ["scored", "timeout", "scored", "error", "skipped"]


def test_a_nursery_that_hangs_is_replaced_by_another(folder):
    target = f"{folder / 'rewards.py'}:compute_score"
    with VerifierPool(settings(kind="import", target=target, timeout_s=2.0)) as pool:
        first = pool._nursery.pid
        assert pool._nursery._control.gettimeout() == 120.0
        pool._nursery._control.settimeout(0.5)
        os.kill(first, signal.SIGSTOP)
        verdicts = pool.verify(problems(3), [Completion(text) for text in ("7", "hang", "8")])
        assert [verdict.outcome for verdict in verdicts] == ["scored", "timeout", "scored"]
        assert pool._nursery.pid != first


def test_identity_changes_with_the_users_file_and_not_with_limits(folder):
    target = f"{folder / 'rewards.py'}:accuracy"
    before = verifier_identity(settings(kind="import", target=target))
    assert verifier_identity(settings(kind="import", target=target, timeout_s=1.0)) == before
    (folder / "rewards.py").write_text(
        "def accuracy(completions): return [0.0] * len(completions)\n"
    )
    after = verifier_identity(settings(kind="import", target=target))
    assert after.version != before.version
    assert after.config_key == before.config_key


def test_identity_names_the_distributions_that_decide():
    identity = verifier_identity(settings())
    assert identity.name == "treerl/auto"
    assert "math-verify-0" in identity.version
    assert "reasoning-gym-0" in identity.version
    assert "math-verify" not in verifier_identity(settings(kind="number")).version


def test_identity_changes_with_the_answer_format():
    keys = {
        verifier_identity(settings(answer_format=name)).config_key for name in ("boxed", "hash")
    }
    assert len(keys) == 2

"""The search of a step: what reaches the sampler, and when."""

from collections import Counter

from tests.support_engine import TINY
from treerl.engine.session import Session
from treerl.engine.step import search_step
from treerl.recipe import load_recipe

SLOW_ONCE = """
import pathlib, time

def reward(data_source, solution_str, ground_truth):
    plan = pathlib.Path("delays.txt")
    waits = plan.read_text().split()
    plan.write_text(" ".join(waits[1:]))
    time.sleep(float(waits[0]) if waits else 0.0)
    return float(len(solution_str) % 2)
"""


def asked(session, monkeypatch):
    """What the sampler is told in one search: "step", or the seed of a continuation."""
    told = []
    submit, step = session.sampler.submit, session.sampler.step
    monkeypatch.setattr(
        session.sampler,
        "submit",
        lambda ticket, work: (told.append(work.seed), submit(ticket, work)),
    )
    monkeypatch.setattr(session.sampler, "step", lambda: (told.append("step"), step())[1])
    search_step(session, session.task.problems_for_step(0, 3), step=0)
    return told


def test_a_deterministic_search_asks_the_same_whatever_the_speed_of_verdicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(SLOW_ONCE)
    user = ("verifier.kind='import'", "verifier.target='rewards.py:reward'")
    recipe = load_recipe("quickstart", (*TINY, *user))
    seen = []
    for delays in ("", "0.5", "0 0.3 0.3"):
        (tmp_path / "delays.txt").write_text(delays)
        with Session(recipe, with_store=False) as session, monkeypatch.context() as patch:
            seen.append(asked(session, patch))
    assert Counter(seen[0])["step"] > 3
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]

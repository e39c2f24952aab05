"""The short form of scripts/soak_replay.py: killed workers lose nothing, tear nothing, double nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak_replay.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module that forked workers can find."""
    spec = importlib.util.spec_from_file_location("soak_replay", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak_replay"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak_replay"]


@pytest.mark.slow
# The forked workers of this test use neither torch nor any other thread of the parent.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_workers_lose_nothing(script, kept_url):
    outcome = script.soak(kept_url, seconds=20, kill_every=2, writers=4, readers=2, pause_s=0.1)
    assert outcome.wrong == []
    assert outcome.acknowledged > 0
    assert outcome.reads > 0
    assert outcome.kills > 0
    assert outcome.stored >= outcome.acknowledged

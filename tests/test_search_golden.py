"""Whole searches against recorded trees; `scripts/record_golden.py` records them anew."""

import json
from pathlib import Path

import pytest

from tests.support_search import GOLDEN, golden_record

FOLDER = Path(__file__).parent / "golden"


def flat(value, path=""):
    """(path, leaf) pairs of nested JSON."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from flat(value[key], f"{path}.{key}")
    elif isinstance(value, list):
        yield path, len(value)
        for i, item in enumerate(value):
            yield from flat(item, f"{path}[{i}]")
    else:
        yield path, value


@pytest.mark.parametrize("name", GOLDEN)
def test_search_grows_the_recorded_trees(name):
    recorded = json.loads((FOLDER / f"search_{name}.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(golden_record(name)))
    assert recorded["settings"] == now["settings"]
    for (path, expected), (where, value) in zip(
        flat(recorded["trees"]), flat(now["trees"]), strict=False
    ):
        assert path == where
        if isinstance(expected, float):
            assert value == pytest.approx(expected, abs=2e-6), path
        else:
            assert value == expected, path


def test_the_recorded_trees_show_what_they_are_for():
    for name in GOLDEN:
        trees = json.loads((FOLDER / f"search_{name}.json").read_text(encoding="utf-8"))["trees"]
        origins = {node["origin"] for tree in trees for node in tree["nodes"]}
        expected = {"flat": 1, "cure": 3, "cure_window": 4}.get(name, 5)
        assert expected in origins, name

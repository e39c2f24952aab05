"""metrics.jsonl: whole lines, no NaN, cut back on a resume."""

import json
import math

from treerl.metrics import MetricsLog, is_documented, read_metrics


def test_nan_becomes_null(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"step": 1, "reward": math.nan})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "reward": None}


def test_resume_drops_later_lines_and_torn_ones(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "rew')
    with MetricsLog(path, keep_until=2) as log:
        log.write({"step": 3, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_documented_names():
    assert is_documented("search/exit/done")
    assert is_documented("eval/pass@8")
    assert not is_documented("search/typo")

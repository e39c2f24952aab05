"""No hot query reads a whole table, on either database."""

import importlib.util
from pathlib import Path

import pytest

from tests.support_plans import table_scans
from treerl.replay.rates import Rate, policy_rates
from treerl.replay.store import Store

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_replay.py"
SMALL = {"meta", "run", "policy", "sampler", "verifier", "pool"}


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_replay", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hot_queries_read_no_large_table_whole(bench, kept_url):
    with Store.open(kept_url) as store:
        grown = bench.Grown(store)
        grown.grow(2000)
        for name, query in bench.hot_queries(grown).items():
            with table_scans(store) as scans:
                query()
            assert [(name, *scan) for scan in scans if scan[0] not in SMALL] == []


def test_scans_are_noticed(bench, kept_url):
    with Store.open(kept_url) as store, table_scans(store) as scans, store.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM draw WHERE finish = 'stop'").scalar()
    assert [table for table, _ in scans] == ["draw"]


def test_pass_rates_of_policies(bench, kept_url):
    with Store.open(kept_url) as store:
        bench.Grown(store).grow(2000)
        keys = [bench.SOURCE.policy.key(block) for block in range(3)]
        found = policy_rates(store, keys, verifier=bench.VERIFIER)
        assert found == dict.fromkeys(keys[:2], Rate(right=500, count=1000))

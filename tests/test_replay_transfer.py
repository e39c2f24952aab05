import io
import json

import numpy as np
import pytest

from tests.support_replay import (
    PROBLEM,
    VERIFIER,
    branched_tree,
    fill_two_runs,
    provenance,
    star_tree,
)
from treerl.errors import DataError
from treerl.problem import Problem
from treerl.replay.bound import ReadBound
from treerl.replay.keys import VerifierRef
from treerl.replay.parquet import write_records
from treerl.replay.reuse import Asked, cached_solutions
from treerl.replay.store import Store
from treerl.replay.transfer import (
    HEADER,
    Imported,
    export_parquet,
    export_solutions,
    import_solutions,
)


def exported(store):
    stream = io.StringIO()
    export_solutions(store, stream)
    return stream.getvalue()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def fill(store, name="a", seed=1):
    run = store.start_run(name, {})
    tree, texts = branched_tree(seed)
    store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts)
    star, texts = star_tree(
        seed=seed, leaves=([4, seed, 2], [4, seed, 2], [7, 2]), rewards=(1, 1, 0)
    )
    other = Problem("é?", "1", "chain")
    store.put_tree(
        run, star, step=0, problem=other, provenance=provenance(digest=name), texts=texts
    )


def test_export_import_export_is_byte_equal(new_url, tmp_path):
    with Store.open(new_url()) as store:
        fill(store)
        text = exported(store)
    path = write(tmp_path / "a.jsonl", text)
    with Store.open(new_url()) as store:
        assert import_solutions(store, path) == Imported(solutions=6, draws=8, new_draws=8)
        assert exported(store) == text


def test_parquet_export_import_export_is_byte_equal_and_as_good_as_lines(new_url, tmp_path):
    pytest.importorskip("pyarrow")
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    with Store.open(new_url()) as store:
        fill(store)
        assert export_parquet(store, first) == 6
        text = exported(store)
    with Store.open(new_url()) as store:
        assert import_solutions(store, first) == Imported(solutions=6, draws=8, new_draws=8)
        export_parquet(store, second)
        assert exported(store) == text
    assert first.read_bytes() == second.read_bytes()


def test_parquet_of_a_foreign_hash_scheme_and_foreign_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    with Store.open("sqlite://") as store:
        write_records(path, {**HEADER, "hash_scheme": "md5"}, [])
        with pytest.raises(DataError, match="hash scheme md5"):
            import_solutions(store, path)
        write(path, "text")
        with pytest.raises(DataError, match="not a Parquet file"):
            import_solutions(store, path)


@pytest.mark.postgres
def test_sqlite_and_postgresql_export_the_same_run_alike(pg_urls, tmp_path):
    pytest.importorskip("pyarrow")
    texts, files = [], []
    for number, url in enumerate((f"sqlite:///{tmp_path}/r.db", pg_urls())):
        with Store.open(url) as store:
            fill_two_runs(store)
            texts.append(exported(store))
            export_parquet(store, tmp_path / f"{number}.parquet")
        files.append((tmp_path / f"{number}.parquet").read_bytes())
    assert texts[0] == texts[1]
    assert files[0] == files[1]


def test_lines_are_sorted_and_self_contained(new_url, tmp_path):
    with Store.open(new_url()) as store:
        fill(store)
        lines = exported(store).splitlines()
    records = [json.loads(line) for line in lines[1:]]
    assert json.loads(lines[0])["hash_scheme"] == "blake2b-128/lp1"
    assert [r["path_key"] for r in records] == sorted(r["path_key"] for r in records)
    (twice,) = [r for r in records if r["tokens"] == [4, 1, 2]]
    assert len(twice["draws"]) == 2
    assert twice["problem"]["question"] == "é?"
    assert twice["verdicts"][0]["verifier"]["name"] == "chain"


def test_importing_twice_changes_nothing(new_url, tmp_path):
    with Store.open(new_url()) as store:
        fill(store)
        text = exported(store)
        path = write(tmp_path / "a.jsonl", text)
        assert import_solutions(store, path).new_draws == 0
        assert exported(store) == text
        assert len(store.runs()) == 1


def test_files_of_two_caches_merge_in_either_order(new_url, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 5)):
        with Store.open(new_url()) as store:
            fill(store, name, seed)
            texts.append(exported(store))
    merged = []
    for order in (texts, texts[::-1]):
        with Store.open(new_url()) as store:
            for number, text in enumerate(order):
                import_solutions(store, write(tmp_path / f"{number}.jsonl", text))
            merged.append(exported(store))
    assert merged[0] == merged[1]
    assert len(merged[0].splitlines()) > len(texts[0].splitlines())


def test_imported_solutions_can_be_used(new_url, tmp_path):
    asked = [Asked(PROBLEM, np.array([1, 9, 3], np.int32))]
    options = {"tokenizer": "chars", "verifier": VERIFIER, "max_per_problem": 9}
    found = []
    with Store.open(new_url()) as store:
        fill(store)
        found += cached_solutions(store, asked, bound=ReadBound("x", store.position()), **options)
        path = write(tmp_path / "a.jsonl", exported(store))
    with Store.open(new_url()) as store:
        import_solutions(store, path)
        found += cached_solutions(store, asked, bound=ReadBound("x", store.position()), **options)
    ours, theirs = found
    assert len(ours) == len(theirs) == 1
    np.testing.assert_array_equal(ours[0].tokens, theirs[0].tokens)
    assert ours[0].verdict == theirs[0].verdict


def test_foreign_hash_scheme_and_foreign_files_are_refused(new_url, tmp_path):
    with Store.open(new_url()) as store:
        fill(store)
        text = exported(store)
        foreign = text.replace("blake2b-128/lp1", "sha256/x", 1)
        with pytest.raises(DataError, match="hash scheme sha256/x"):
            import_solutions(store, write(tmp_path / "a.jsonl", foreign))
        with pytest.raises(DataError, match="not a file of `treerl replay export`"):
            import_solutions(store, write(tmp_path / "b.jsonl", '{"question": 1}\n'))
        with pytest.raises(DataError, match="not a file of"):
            import_solutions(store, write(tmp_path / "c.jsonl", ""))
        with pytest.raises(DataError, match="format 99"):
            import_solutions(
                store, write(tmp_path / "d.jsonl", text.replace('"format":1', '"format":99'))
            )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tokens":[7,2]', '"tokens":[7,3]', "the line is damaged"),
        ('"tokens":[7,2]', '"tokens":[7]', "length of its tokens"),
        ('"draws":', '"drawn":', "not a solution"),
        ('"finish":"stop"', '"finish":"never"', "not a solution"),
    ],
)
def test_damaged_line_is_named(new_url, tmp_path, old, new, message):
    with Store.open(new_url()) as store:
        fill(store)
        header, *lines = exported(store).splitlines(keepends=True)
    line = next(line for line in lines if '"tokens":[7,2]' in line)
    assert old in line
    path = write(tmp_path / "a.jsonl", header + lines[0] + line.replace(old, new))
    with (
        Store.open(new_url()) as store,
        pytest.raises(DataError, match=rf"a.jsonl:3: .*{message}"),
    ):
        import_solutions(store, path)


def test_imported_verdicts_are_not_read_by_a_run_that_started_before(new_url, tmp_path):
    asked = [Asked(PROBLEM, np.array([1, 9, 3], np.int32))]
    later = VerifierRef("chain", "2")
    with Store.open(new_url()) as store:
        tree, texts = star_tree()
        run = store.start_run("a", {})
        source = provenance(verifier=later)
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=source, texts=texts)
        path = write(tmp_path / "a.jsonl", exported(store))
    with Store.open(new_url()) as store:
        run = store.start_run("a", {})
        tree, texts = star_tree()
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance(), texts=texts)
        before = store.position()
        import_solutions(store, path)
        for position, expected in ((before, 0), (store.position(), 1)):
            (found,) = cached_solutions(
                store,
                asked,
                tokenizer="chars",
                verifier=later,
                bound=ReadBound("x", position),
                max_per_problem=9,
            )
            assert len(found) == expected

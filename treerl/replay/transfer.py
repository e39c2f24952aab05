"""Solutions in and out as JSON lines or Parquet, so that caches can be merged and carried about.

The first line names format and hash scheme. Every other line is one solution, self-contained: problem,
prompt, tokens, text, each draw that gave it (behaviour log-probs and entropies as base64 of little-endian
float32), each verdict; no ids of this database. Lines are sorted by path key and everything in a line is
sorted too, so that equal sets of solutions give equal files. Trees do not travel, nor do copies that a
tree took from the cache.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from treerl.canon import HASH_SCHEME, canonical_json, derive_seed
from treerl.errors import DataError
from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.entry import chunks, fact_ids, put_verdicts, verifier_row
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef, path_key, problem_key, prompt_key
from treerl.replay.parquet import Record, read_header, read_records, write_records
from treerl.replay.paths import Arrays, chain, draw_arrays, join, tree_shapes
from treerl.replay.position import tick
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree

FORMAT = 1
_BATCH = 1000
HEADER = {"treerl": "solutions", "format": FORMAT, "hash_scheme": HASH_SCHEME}


@dataclass(frozen=True)
class Imported:
    """What an import found in the file, and what of it was new."""

    solutions: int
    draws: int
    new_draws: int


# Out -----------------------------------------------------------------------------------------------------


def export_solutions(store: Store, stream: IO[str]) -> int:
    """Writes every solution that was drawn here or imported as JSON lines; returns how many."""
    stream.write(canonical_json(HEADER) + "\n")
    count = 0
    for record in solution_records(store):
        stream.write(canonical_json(record) + "\n")
        count += 1
    return count


def export_parquet(store: Store, path: Path) -> int:
    """Writes the same solutions as one Parquet file; returns how many."""
    return write_records(path, HEADER, solution_records(store))


def solution_records(store: Store) -> Iterator[Record]:
    """Every solution that was drawn here or imported, by path key; all of one state of the store."""
    with store.read() as connection:
        keys = connection.execute(
            sa.select(schema.solution.c.path_key).order_by(schema.solution.c.path_key)
        ).scalars()
        for some in chunks(keys):
            records = _records(connection, some)
            yield from (records[key] for key in some if records[key]["draws"])


def _records(connection: sa.Connection, keys: Sequence[bytes]) -> dict[bytes, Record]:
    """The lines of these solutions (at most CHUNK), as dicts; absent ones are left out."""
    records: dict[bytes, Record] = {}
    for row in connection.execute(_HEADS, {"b_keys": keys}):
        problem = {"question": row.question, "truth": row.truth, "kind": row.kind}
        problem["columns"] = json.loads(row.columns)
        prompt = {"tokenizer": row.tokenizer, "tokens": np.frombuffer(row.tokens, "<i4").tolist()}
        records[row.path_key] = {
            "path_key": row.path_key.hex(),
            "problem": problem,
            "prompt": prompt,
            "text": row.text,
            "tokens": [],
            "draws": [],
            "verdicts": [],
        }
    for row in connection.execute(_VERDICTS, {"b_keys": keys}):
        records[row.path_key]["verdicts"].append(_verdict_record(row))
    ends = connection.execute(_ENDS, {"b_keys": keys}).all()
    shapes = tree_shapes(connection, {row.tree_id for row in ends})
    paths = {row.id: chain(shapes[row.tree_id], row.row) for row in ends}
    arrays = draw_arrays(connection, {draw.id for path in paths.values() for draw in path})
    for row in ends:
        joined = join(paths[row.id], arrays)
        records[row.path_key]["tokens"] = joined["tokens"].tolist()
        records[row.path_key]["draws"].append(_draw_record(row, joined))
    for record in records.values():
        record["draws"].sort(key=canonical_json)
        record["verdicts"].sort(key=canonical_json)
    return records


def _draw_record(row: Any, arrays: Arrays) -> Record:
    return {
        "finish": row.finish,
        "policy": {"name": row.name, "digest": row.digest},
        "sampler": json.loads(row.params),
        "versions": arrays["versions"].tolist(),
        "mask": None if arrays["mask"].all() else arrays["mask"].astype(int).tolist(),
        "logprobs": _text(arrays["logprobs"]),
        "entropies": _text(arrays["entropies"]),
    }


def _verdict_record(row: Any) -> Record:
    return {
        "verifier": {"name": row.name, "version": row.version, "config": json.loads(row.config)},
        "outcome": row.outcome,
        "reward": row.reward,
        "answer": row.answer,
        "detail": None if row.detail is None else json.loads(row.detail),
        "seconds": row.seconds,
    }


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def _floats(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


_some = schema.solution.c.path_key.in_(sa.bindparam("b_keys", expanding=True))
_HEADS = (
    sa.select(
        schema.solution.c.path_key,
        schema.solution.c.text,
        schema.prompt.c.tokenizer,
        schema.prompt.c.tokens,
        *(schema.problem.c[name] for name in ("question", "truth", "kind", "columns")),
    )
    .join(schema.prompt, schema.prompt.c.id == schema.solution.c.prompt_id)
    .join(schema.problem, schema.problem.c.id == schema.prompt.c.problem_id)
    .where(_some)
)
_VERDICTS = (
    sa.select(
        schema.solution.c.path_key,
        *(schema.verdict.c[n] for n in ("outcome", "reward", "answer", "detail", "seconds")),
        *(schema.verifier.c[name] for name in ("name", "version", "config")),
    )
    .join(schema.verdict, schema.verdict.c.solution_id == schema.solution.c.id)
    .join(schema.verifier, schema.verifier.c.id == schema.verdict.c.verifier_id)
    .where(_some)
)
_ENDS = (
    sa.select(
        schema.solution.c.path_key,
        *(schema.draw.c[name] for name in ("id", "tree_id", "row", "finish")),
        *(schema.policy.c[name] for name in ("name", "digest")),
        schema.sampler.c.params,
    )
    .join(schema.draw, schema.draw.c.solution_id == schema.solution.c.id)
    .join(schema.policy, schema.policy.c.id == schema.draw.c.policy_id)
    .join(schema.sampler, schema.sampler.c.id == schema.draw.c.sampler_id)
    .where(_some, schema.draw.c.source == 0)
)

# In ------------------------------------------------------------------------------------------------------


def import_solutions(store: Store, path: Path) -> Imported:
    """Adds what a file of `export_solutions` has and the store has not; doing it twice changes nothing.

    New draws are kept in trees of a run `import FILE`, one a prompt and origin. Raises DataError for a line
    that cannot be used, naming it; batches before it are stored.
    """
    run_id: str | None = None
    solutions = draws = new = 0
    numbers: dict[bytes, int] = {}
    records = read_file(path)
    while batch := list(islice(records, _BATCH)):
        solutions += len(batch)
        draws += sum(len(record["draws"]) for record in batch)
        fresh = _without_known(store, batch)
        if run_id is None and any(record["draws"] for record in fresh):
            run_id = store.start_run(f"import {path.name}", {"import": path.name})
        if run_id is not None:
            new += _put_draws(store, run_id, fresh, numbers)
        _put_verdicts(store, batch)
    return Imported(solutions, draws, new)


def read_file(path: Path) -> Iterator[Record]:
    """The records of an exported file, each checked against its key. Raises DataError."""
    if path.suffix == ".parquet":
        _check_header(path, read_header(path))
        for number, record in enumerate(read_records(path), start=1):
            yield _checked(f"{path}, row {number}", record)
        return
    with path.open(encoding="utf-8") as lines:
        try:
            header = json.loads(lines.readline())
        except ValueError:
            header = None
        _check_header(path, header)
        for number, line in enumerate(lines, start=2):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not a solution: {error}") from None
            yield _checked(f"{path}:{number}", record)


def _check_header(path: Path, header: Any) -> None:
    if not isinstance(header, dict) or header.get("treerl") != "solutions":
        raise DataError(f"{path}: not a file of `treerl replay export`")
    if header.get("format") != FORMAT:
        raise DataError(f"{path}: format {header.get('format')}, this treerl reads {FORMAT}")
    if header.get("hash_scheme") != HASH_SCHEME:
        raise DataError(
            f"{path}: its keys use hash scheme {header.get('hash_scheme')}, this treerl {HASH_SCHEME}: "
            "they cannot be merged"
        )


def _checked(where: str, record: Record) -> Record:
    """The record, keys checked against content."""
    try:
        length = len(record["tokens"])
        for draw in record["draws"]:
            columns = (draw["versions"], _floats(draw["logprobs"]), _floats(draw["entropies"]))
            if any(len(column) != length for column in columns):
                raise ValueError("a draw's columns have not the length of its tokens")
            PolicyRef(**draw["policy"])
            Finish[draw["finish"].upper()]
        for verdict in record["verdicts"]:
            VerifierRef(**verdict["verifier"])
        found = path_key(_prompt_key(record), np.asarray(record["tokens"], np.int32)).hex()
        claimed = record["path_key"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a solution: {error}") from None
    if found != claimed:
        raise DataError(f"{where}: content and path_key differ: the line is damaged")
    return record


def _problem(record: Record) -> Problem:
    return Problem(**record["problem"])


def _prompt_key(record: Record) -> bytes:
    prompt = record["prompt"]
    tokens = np.asarray(prompt["tokens"], np.int32)
    return prompt_key(problem_key(_problem(record)), prompt["tokenizer"], tokens)


def _without_known(store: Store, batch: Sequence[Record]) -> list[Record]:
    """The records with the draws that the store does not have."""
    known: dict[bytes, Record] = {}
    with store.read() as connection:
        for keys in chunks(bytes.fromhex(record["path_key"]) for record in batch):
            known |= _records(connection, keys)
    fresh = []
    for record in batch:
        left = [
            canonical_json(d)
            for d in known.get(bytes.fromhex(record["path_key"]), {}).get("draws", ())
        ]
        draws = []
        for draw in record["draws"]:
            text = canonical_json(draw)
            # Equal draws are counted, not collapsed: a policy may draw one path twice.
            if text in left:
                left.remove(text)
            else:
                draws.append(draw)
        fresh.append(record | {"draws": draws})
    return fresh


def _put_draws(
    store: Store, run_id: str, batch: Sequence[Record], numbers: dict[bytes, int]
) -> int:
    groups: dict[str, list[tuple[Record, Record]]] = {}
    for record in batch:
        for draw in record["draws"]:
            name = canonical_json(
                [record["problem"], record["prompt"], draw["policy"], draw["sampler"]]
            )
            groups.setdefault(name, []).append((record, draw))
    for name, members in sorted(groups.items()):
        first, draw = members[0]
        tree, texts = _star(name, members)
        key = problem_key(_problem(first))
        numbers[key] = numbers.get(key, -1) + 1
        provenance = Provenance(
            first["prompt"]["tokenizer"],
            PolicyRef(**draw["policy"]),
            draw["sampler"],
            VerifierRef("none", "0"),
        )
        store.put_tree(
            run_id,
            tree,
            step=0,
            number=numbers[key],
            problem=_problem(first),
            provenance=provenance,
            texts=texts,
        )
    return sum(len(members) for members in groups.values())


def _star(name: str, members: Sequence[tuple[Record, Record]]) -> tuple[Tree, dict[int, str]]:
    """A tree of the prompt and one child a draw, unjudged; texts by row."""
    prompt = members[0][0]["prompt"]["tokens"]
    longest = max(len(record["tokens"]) for record, _ in members)
    tree = Tree(prompt, seed=derive_seed("import", name), max_completion_length=longest)
    texts: dict[int, str] = {}
    request = tree.request(ROOT, len(members))
    for k, (record, draw) in enumerate(members):
        tokens = np.asarray(record["tokens"], np.int32)
        span = Span(
            tokens,
            _floats(draw["logprobs"]),
            _floats(draw["entropies"]),
            min(draw["versions"]),
            Finish[draw["finish"].upper()],
        )
        row = tree.append(request, k, span)
        columns = slice(int(tree.nodes.start[row]), int(tree.nodes.stop[row]))
        tree.tokens.policy_version[columns] = draw["versions"]
        if draw["mask"] is not None:
            tree.tokens.mask[columns] = draw["mask"]
        if record["text"] is not None:
            texts[row] = record["text"]
    return tree, texts


def _put_verdicts(store: Store, batch: Sequence[Record]) -> None:
    judges = {
        (judge := VerifierRef(**verdict["verifier"])).key: judge
        for record in batch
        for verdict in record["verdicts"]
    }
    if not judges:
        return
    with store.write() as connection:
        ids = _solution_ids(connection, [bytes.fromhex(record["path_key"]) for record in batch])
        position = tick(connection)
        verifiers = fact_ids(
            connection, schema.verifier, {key: verifier_row(j) for key, j in judges.items()}
        )
        entered = [
            (
                ids[bytes.fromhex(record["path_key"])],
                verifiers[VerifierRef(**verdict["verifier"]).key],
                *(verdict[name] for name in ("outcome", "reward", "answer")),
                None if verdict["detail"] is None else canonical_json(verdict["detail"]),
                verdict["seconds"],
                position,
            )
            for record in batch
            for verdict in record["verdicts"]
        ]
        put_verdicts(connection, entered)


def _solution_ids(connection: sa.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    solution = schema.solution
    query = sa.select(solution.c.path_key, solution.c.id)
    return {
        row.path_key: row.id
        for some in chunks(keys)
        for row in connection.execute(query.where(solution.c.path_key.in_(some)))
    }

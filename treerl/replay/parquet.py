"""The records of treerl.replay.transfer as one Parquet file, for tools that read columns.

One row a solution, in the order of the records, in row groups of one size: equal sets of solutions give
equal files (of one version of pyarrow). Arrays are lists and binaries, free-form settings are JSON text;
format and hash scheme stand in the metadata.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from treerl.canon import canonical_json
from treerl.errors import ConfigError, DataError

GROUP = 1000
"""Rows in one row group."""

Record = dict[str, Any]


def write_records(path: Path, header: Mapping[str, Any], records: Iterable[Record]) -> int:
    """Writes all records; returns how many."""
    arrow, parquet = _pyarrow()
    schema = _schema(arrow).with_metadata({b"treerl": canonical_json(dict(header)).encode()})
    count = 0
    rows = iter(records)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP)):
            count += len(group)
            table = arrow.Table.from_pylist([_row(record) for record in group], schema=schema)
            writer.write_table(table, row_group_size=GROUP)
    return count


def read_header(path: Path) -> Any:
    """What `write_records` was given as header; None if it is not such a file."""
    arrow, parquet = _pyarrow()
    try:
        metadata = parquet.read_schema(path).metadata or {}
        return json.loads(metadata.get(b"treerl", b"null"))
    except (arrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file of `treerl replay export`: {error}") from None


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in its order."""
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                for row in batch.to_pylist():
                    yield _record(row)
    except (arrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "Parquet files need pyarrow: run `pip install 'treerl[parquet]'`"
        ) from None
    return arrow, parquet


def _schema(arrow: Any) -> Any:
    text, integers = arrow.string(), arrow.list_(arrow.int32())
    problem = arrow.struct([(n, text) for n in ("question", "truth", "kind", "columns")])
    draw = arrow.struct(
        [
            ("finish", text),
            ("policy", arrow.struct([("name", text), ("digest", text)])),
            ("sampler", text),
            ("versions", integers),
            ("mask", integers),
            ("logprobs", arrow.binary()),
            ("entropies", arrow.binary()),
        ]
    )
    verdict = arrow.struct(
        [
            ("verifier", arrow.struct([(n, text) for n in ("name", "version", "config")])),
            ("outcome", text),
            ("reward", arrow.float64()),
            ("answer", text),
            ("detail", text),
            ("seconds", arrow.float64()),
        ]
    )
    return arrow.schema(
        [
            ("path_key", text),
            ("problem", problem),
            ("prompt", arrow.struct([("tokenizer", text), ("tokens", integers)])),
            ("text", text),
            ("tokens", integers),
            ("draws", arrow.list_(draw)),
            ("verdicts", arrow.list_(verdict)),
        ]
    )


def _row(record: Record) -> Record:
    return record | {
        "problem": record["problem"] | {"columns": canonical_json(record["problem"]["columns"])},
        "draws": [
            draw
            | {
                "sampler": canonical_json(draw["sampler"]),
                "logprobs": base64.b64decode(draw["logprobs"]),
                "entropies": base64.b64decode(draw["entropies"]),
            }
            for draw in record["draws"]
        ],
        "verdicts": [
            verdict
            | {
                "verifier": verdict["verifier"]
                | {"config": canonical_json(verdict["verifier"]["config"])},
                "detail": None if verdict["detail"] is None else canonical_json(verdict["detail"]),
            }
            for verdict in record["verdicts"]
        ],
    }


def _record(row: Record) -> Record:
    return row | {
        "problem": row["problem"] | {"columns": json.loads(row["problem"]["columns"])},
        "draws": [
            draw
            | {
                "sampler": json.loads(draw["sampler"]),
                "logprobs": base64.b64encode(draw["logprobs"]).decode("ascii"),
                "entropies": base64.b64encode(draw["entropies"]).decode("ascii"),
            }
            for draw in row["draws"]
        ],
        "verdicts": [
            verdict
            | {
                "verifier": verdict["verifier"]
                | {"config": json.loads(verdict["verifier"]["config"])},
                "detail": None if verdict["detail"] is None else json.loads(verdict["detail"]),
            }
            for verdict in row["verdicts"]
        ],
    }

"""Problems from files: JSONL, JSON, CSV, and Parquet where `pyarrow` is installed.

Every malformed line is an error that names file, line, column and finding, unless `skip_malformed` asks to
count and skip it. Columns are mapped by treerl.tasks.columns. Nothing is downloaded here (treerl.tasks.hub).
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treerl.errors import DataError
from treerl.problem import Problem
from treerl.tasks import columns

MAX_CSV_FIELD = 1 << 24


@dataclass(frozen=True, slots=True)
class Line:
    """One row as read: where it stands, and its columns or what is wrong with it."""

    place: str
    row: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The problems of one source, the mapping that was chosen, and how many rows were skipped."""

    problems: tuple[Problem, ...]
    mapping: columns.Mapping
    skipped: int = 0


def load_file(
    path: Path,
    *,
    judge: str = "math",
    question: str | None = None,
    answer: str | None = None,
    skip_malformed: bool = False,
) -> Loaded:
    """All problems of a file, in its order. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return collect(
            read_lines(path),
            str(path),
            judge=judge,
            question=question,
            answer=answer,
            skip_malformed=skip_malformed,
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def collect(
    lines: Iterator[Line],
    source: str,
    *,
    judge: str,
    question: str | None,
    answer: str | None,
    skip_malformed: bool,
) -> Loaded:
    """Problems from rows: the first readable row decides the mapping. Raises DataError."""
    problems: list[Problem] = []
    mapping: columns.Mapping | None = None
    skipped = 0
    for line in lines:
        try:
            if line.row is None:
                raise columns.MalformedRow(line.problem)
            if mapping is None:
                mapping = _mapping(line, source, question, answer)
            problems.append(columns.to_problem(line.row, mapping, judge))
        except columns.MalformedRow as error:
            if not skip_malformed:
                raise DataError(
                    f"{source}, {line.place}: {error}; correct it, or set "
                    "task.skip_malformed = true to count and skip such lines"
                ) from None
            skipped += 1
    if mapping is None or not problems:
        raise DataError(
            f"{source}: no problem found ({skipped} malformed lines); is it the right file?"
        )
    return Loaded(tuple(problems), mapping, skipped)


def _mapping(line: Line, source: str, question: str | None, answer: str | None) -> columns.Mapping:
    assert line.row is not None
    mapping = columns.detect_mapping(line.row, question, answer)
    if mapping is None:
        raise DataError(
            f"{source}, {line.place}: cannot tell which columns hold question and answer; found "
            f"{', '.join(map(str, line.row)) or 'none'}; set task.question and task.answer"
        )
    return mapping


def read_lines(path: Path) -> Iterator[Line]:
    """Rows of a file, by its suffix. Raises DataError for an unknown suffix or an unreadable file."""
    readers: dict[str, Callable[[Path], Iterator[Line]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(readers)}")
    return reader(path)


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as stream:
        for number, data in enumerate(stream, start=1):
            data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
            if data.strip():
                yield _parsed(data, f"line {number}")


def _parsed(data: bytes, place: str) -> Line:
    try:
        row = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return Line(place, None, f"not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        return Line(place, None, f"not valid JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Line(place, None, f"not valid JSON: {error}")
    return _object(row, place)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _object(row: Any, place: str) -> Line:
    if isinstance(row, dict):
        return Line(place, row)
    return Line(place, None, f"should be an object with columns, found {type(row).__name__}")


def _json(path: Path) -> Iterator[Line]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON: {error}; for one object a line use .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: should be a list of objects, found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"item {number}")


def _csv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(MAX_CSV_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or ())
                    yield Line(place, None, f"should have {expected} fields as the header has")
                else:
                    yield Line(place, row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, after line {reader.line_num}: not valid CSV: {error}"
            ) from None


def _parquet(path: Path) -> Iterator[Line]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs pyarrow: pip install 'treerl[parquet]', or convert it to JSONL"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Line(f"row {number}", row)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None

"""Problems from a Hugging Face data set, where the `datasets` package is installed."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from treerl.errors import DataError
from treerl.tasks.files import Line, Loaded, collect


def load_hub(
    name: str,
    split: str,
    *,
    subset: str | None = None,
    judge: str = "math",
    question: str | None = None,
    answer: str | None = None,
) -> Loaded:
    """All problems of one split, in its order. Raises DataError."""
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise DataError(
            f"data set {name}: needs the datasets package: pip install datasets, or give a file "
            '(task.kind = "file")'
        ) from None
    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"data set {name}, split {split}: cannot be loaded: {error}") from error
    source = f"data set {name}, split {split}"
    return collect(
        _lines(rows), source, judge=judge, question=question, answer=answer, skip_malformed=False
    )


def _lines(rows: Any) -> Iterator[Line]:
    for number, row in enumerate(rows, start=1):
        yield Line(f"row {number}", row)

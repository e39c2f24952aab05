"""A tree in one file: its columns as safetensors, everything else as JSON in the file's metadata.

The round trip is exact, NaN included. Files are written beside their place and moved there, so that a reader
never sees half a tree. Many trees with their provenance belong in the replay cache, not here.
"""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from treerl.errors import DataError
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Verdict

FORMAT = "treerl-tree/1"


def save_tree(tree: Tree, path: str | Path) -> None:
    """Writes `tree` to `path`, whole or not at all. `tree.meta` must be JSON."""
    target = Path(path)
    header = {
        "format": FORMAT,
        "seed": tree.seed,
        "max_completion_length": tree.max_completion_length,
        "meta": tree.meta,
        "verdicts": {
            str(row): asdict(verdict) | {"detail": dict(verdict.detail)}
            for row, verdict in tree.verdicts.items()
        },
    }
    arrays = {
        f"{part}.{name}": column
        for part, columns in (("nodes", tree.nodes), ("draws", tree.draws), ("tokens", tree.tokens))
        for name, column in columns.arrays().items()
    }
    # One entry: safetensors writes several in no fixed order, and equal trees should be equal files.
    data = save(arrays, metadata={"tree": json.dumps(header)})
    _write_whole(target, data)


def load_tree(path: str | Path) -> Tree:
    """Reads what `save_tree` wrote. Raises DataError for a file that is broken or of another kind."""
    source = Path(path)
    data = source.read_bytes()
    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        header = json.loads(metadata.get("tree", "{}"))
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{source}: not a whole tree file ({error}); write it again") from error
    if header.get("format") != FORMAT:
        raise DataError(
            f"{source}: format {header.get('format')!r}, expected {FORMAT!r}; "
            "it was made by another program or version"
        )
    parts: dict[str, dict[str, NDArray[Any]]] = {"nodes": {}, "draws": {}, "tokens": {}}
    for key, column in arrays.items():
        part, name = key.split(".", 1)
        parts[part][name] = np.asarray(column)
    tree = Tree.from_columns(
        **parts,
        seed=header["seed"],
        max_completion_length=header["max_completion_length"],
    )
    tree.meta = header["meta"]
    tree.verdicts = {int(row): Verdict(**verdict) for row, verdict in header["verdicts"].items()}
    return tree


def _write_whole(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise

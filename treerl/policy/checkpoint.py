"""Checkpoints: a folder that is whole or does not count, and resume to the bit.

A checkpoint is written to `tmp-*`, every file and the folder are synced, a manifest with sizes and SHA-256
comes last, and one rename to `step-<step>` publishes it. Nothing that was published is ever written to. The
weights lie as safetensors beside config and tokenizer, so that transformers loads the folder as it is; with
LoRA the adapter does, in peft's format, which names its base model. What a trainer must remember beyond
weights, optimizer and random numbers (data order, replay position, counters) is JSON that the engine supplies.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from treerl.errors import StoreError
from treerl.policy.lora import ADAPTER_WEIGHTS, has_adapter, restore_adapter
from treerl.policy.model import Policy
from treerl.policy.optimizer import PolicyOptimizer

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
TRAINER = "trainer.json"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint whose manifest verified."""

    path: Path
    step: int


def save_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: PolicyOptimizer,
    *,
    step: int,
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Writes the checkpoint of `step` under `folder` and removes all but the newest `keep`; returns its path.

    state: JSON that `load_checkpoint` gives back. Raises StoreError if it cannot be written (disk full, no
    permission); earlier checkpoints are then as they were.
    """
    with _store_errors(folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("tmp-*"):
            shutil.rmtree(rest)
        work = folder / f"tmp-{step:08d}"
        work.mkdir()
        _write_contents(work, policy, optimizer, step, state)
        _seal(work, step)
        path = _free_name(folder, step)
        work.rename(path)
        _sync(folder)
    _prune(folder, path, keep)
    return path


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under `folder` whose manifest verifies; None if there is none.

    Warns about unfinished and damaged ones that it passes over.
    """
    for rest in sorted(folder.glob("tmp-[0-9]*")):
        log.warning("%s: a checkpoint that was never finished; ignored", rest)
    for path in _published(folder):
        if fault := verify(path):
            log.warning("%s: damaged checkpoint (%s); looking for an earlier one", path, fault)
            continue
        return Checkpoint(path, _number(path)[0])
    return None


def verify(path: Path, *, sizes_only: bool = False) -> str | None:
    """What is wrong with the checkpoint at `path`, by sizes and SHA-256 of its manifest; None: nothing."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        listed = {
            name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest unreadable: {error}"
    for name, (size, digest) in listed.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if not sizes_only and _sha256(file) != digest:
            return f"{name} has another SHA-256"
    return None


def load_checkpoint(
    path: Path, policy: Policy, optimizer: PolicyOptimizer | None = None
) -> dict[str, Any]:
    """Restores weights, optimizer and the random number generators of torch, numpy and Python, in place.

    Returns the `state` that was saved. Raises StoreError if a file cannot be read, ConfigError if the
    optimizer's state does not fit this model.
    """
    try:
        trainer = json.loads((path / TRAINER).read_text())
        _restore_weights(path, policy)
        if optimizer is not None:
            optimizer.load_state_dict(load_file(path / OPTIMIZER))
        _restore_random(trainer["random"], load_file(path / RANDOM))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise StoreError(f"cannot resume from checkpoint {path}: {error}") from error
    state: dict[str, Any] = trainer["state"]
    return state


def _restore_weights(path: Path, policy: Policy) -> None:
    """The model's weights, or those of its adapter where it has one: the base model is loaded already."""
    if has_adapter(policy.model):
        restore_adapter(policy.model, load_file(path / ADAPTER_WEIGHTS))
        return
    with _no_progress_bars():
        loaded = type(policy.model).from_pretrained(path, dtype=policy.dtype, local_files_only=True)
    policy.model.load_state_dict(loaded.state_dict())


# Writing ---------------------------------------------------------------------------------------------------


@contextmanager
def _store_errors(folder: Path, step: int) -> Iterator[None]:
    """Turns a failed write into a StoreError that says what is left, and removes what was half written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        for rest in folder.glob("tmp-*"):
            shutil.rmtree(rest, ignore_errors=True)
        whole = _published(folder)
        left = f"the last one, {whole[0]}, is intact" if whole else "there is no earlier one"
        raise StoreError(
            f"cannot write the checkpoint of step {step} in {folder}: {error}; {left}. "
            "Free some space or set run.output_dir to another disk, then resume"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars over the live display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _write_contents(
    work: Path, policy: Policy, optimizer: PolicyOptimizer, step: int, state: Mapping[str, Any]
) -> None:
    with _no_progress_bars():
        policy.model.save_pretrained(work)
    policy.tokenizer.save_pretrained(work)
    save_file(
        {name: t.contiguous() for name, t in optimizer.state_dict().items()}, work / OPTIMIZER
    )
    generators, tensors = _random_state()
    save_file(tensors, work / RANDOM)
    trainer = {"format": FORMAT, "step": step, "state": dict(state), "random": generators}
    (work / TRAINER).write_text(json.dumps(trainer, indent=1))


def _seal(work: Path, step: int) -> None:
    """Syncs every file, then writes and syncs the manifest, then the folder."""
    files = sorted(file for file in work.rglob("*") if file.is_file())
    entries = {}
    for file in files:
        _sync(file)
        name = file.relative_to(work).as_posix()
        entries[name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    for inner in sorted(entry for entry in work.rglob("*") if entry.is_dir()):
        _sync(inner)
    manifest = {"format": FORMAT, "step": step, "files": entries}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(work / MANIFEST)
    _sync(work)


def _sync(path: Path) -> None:
    """Makes a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Names -----------------------------------------------------------------------------------------------------


def _published(folder: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    return sorted(folder.glob("step-[0-9]*"), key=_number, reverse=True)


def _number(path: Path) -> tuple[int, int]:
    """(step, attempt) from a published name."""
    step, _, again = path.name.removeprefix("step-").partition(".")
    return int(step), int(again or 0)


def _free_name(folder: Path, step: int) -> Path:
    """`step-<step>`, or with `.1`, `.2`, ... if that step was published before: nothing is overwritten."""
    name, again = f"step-{step:08d}", 0
    while (folder / name).exists():
        again += 1
        name = f"step-{step:08d}.{again}"
    return folder / name


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Removes checkpoints beyond `keep`, counting whole ones only; `newest`, just written, always stays.

    Each is renamed first, so that a kill leaves no published name on half a folder.
    """
    kept = 1
    for path in _published(folder):
        if path == newest:
            continue
        if kept < keep and verify(path, sizes_only=True) is None:
            kept += 1
            continue
        grave = folder / f"tmp-removed-{path.name}"
        try:
            path.rename(grave)
            shutil.rmtree(grave)
        except OSError as error:
            log.warning("could not remove the old checkpoint %s: %s", path, error)


# Random numbers --------------------------------------------------------------------------------------------


def _random_state() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State of Python's and numpy's global generators as JSON, of torch's as tensors (one a device)."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    generators = {
        "python": [version, list(words), gauss],
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in legacy],
    }
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda:{i}"] = state
    return generators, tensors


def _restore_random(generators: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    version, words, gauss = generators["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = generators["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{i}"], i)

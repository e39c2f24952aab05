"""What identifies a training run: its header, where its draws come from, its progress."""

import dataclasses
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from treerl import __version__
from treerl.canon import digest_hex
from treerl.config import Recipe
from treerl.engine.folder import Paths
from treerl.engine.session import Session
from treerl.errors import StoreError
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef, descent
from treerl.verifiers.identity import verifier_identity

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Progress:
    """Counters of a run that a checkpoint keeps; a resumed run goes on from them.

    replay_position: newest tree in the store when the run began; it reads nothing newer of other runs.
    group_means: of the last groups, where self-imitation compares with them.
    """

    run_id: str
    replay_position: int
    step: int = 0
    num_tokens: int = 0
    trained_tokens: int = 0
    cached_leaves: int = 0
    train_time: float = 0.0
    train_cpu_time: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)
    group_means: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def write_header(paths: Paths, recipe: Recipe, run_id: str, position: int) -> None:
    """recipe.json: the resolved recipe and the versions that made the run."""
    header = {
        "run_id": run_id,
        "replay_position": position,
        "cwd": str(Path.cwd()),
        "recipe": recipe.model_dump(mode="json"),
        "made_by": made_by(),
    }
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        draft = paths.recipe.with_suffix(".tmp")
        draft.write_text(json.dumps(header, indent=1), encoding="utf-8")
        os.replace(draft, paths.recipe)
    except OSError as error:
        raise StoreError(
            f"cannot write {paths.recipe}: {error.strerror}; choose another run.output_dir"
        ) from error


def made_by() -> dict[str, Any]:
    """Versions, device and git commit: the header of everything a run writes."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "treerl": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": gpu or "cpu",
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """Commit of the working folder, `+dirty` behind it if files differ; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def provenance(session: Session, base_weights: str, run_id: str) -> Provenance:
    """Where this run's draws come from."""
    recipe, tokenizer = session.recipe, session.policy.tokenizer
    name, version, config = verifier_identity(recipe.verifier)
    sampler = recipe.sampler
    return Provenance(
        tokenizer=digest_hex(
            json.dumps(sorted(tokenizer.get_vocab().items())), tokenizer.chat_template or ""
        ),
        policy=PolicyRef(recipe.policy.model, descent(base_weights, run_id)),
        sampler={
            **session.samplers.identity,
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "top_k": sampler.top_k,
        },
        verifier=VerifierRef(name, version, {"key": config}),
    )


def weights_digest(model: nn.Module) -> str:
    """BLAKE2b over names and bytes of all parameters, as loaded."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        hasher.update(flat.numpy().tobytes())
    return hasher.hexdigest()

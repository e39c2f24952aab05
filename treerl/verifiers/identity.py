"""Which verifier said it: name, version and settings, for the replay cache.

Two verdicts are comparable when all three are equal. The version moves when a distribution that decides
(math-verify, sympy's LaTeX grammar, reasoning-gym) or a user's file changes; limits and the number of
workers are no part of it.
"""

import hashlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from treerl.canon import canonical_json, digest_hex
from treerl.errors import ConfigError
from treerl.verifiers.judge import Rules, Settings, rules_of
from treerl.verifiers.user import split_target

LAYER = "1"
"""Raised by hand when extraction or a judgement of this package changes what it pays."""

_DISTRIBUTIONS = {
    "math": ("math-verify", "latex2sympy2_extended", "sympy"),
    "reasoning_gym": ("reasoning-gym",),
}


class VerifierIdentity(NamedTuple):
    """Columns of the replay cache's verifier row."""

    name: str
    version: str
    config_key: str


def verifier_identity(settings: Settings) -> VerifierIdentity:
    """Name, version and digest of the deciding settings. Raises ConfigError for a missing target."""
    rules = rules_of(settings)
    config = {
        "kind": rules.kind,
        "answer_format": rules.answer_format,
        "target": rules.target and split_target(rules.target)[1],
        "parts": [[part.kind, part.weight] for part in rules.parts],
    }
    key = digest_hex("verifier", canonical_json(config))
    return VerifierIdentity(f"treerl/{rules.kind}", _version(rules), key)


def _version(rules: Rules) -> str:
    if rules.kind == "import":
        return f"{LAYER}+{_target_version(rules.target or '')}"
    kinds = {part.kind for part in rules.parts} | {rules.kind}
    used = [
        name
        for kind in _DISTRIBUTIONS
        if kind in kinds or "auto" in kinds
        for name in _DISTRIBUTIONS[kind]
    ]
    return "+".join([LAYER, *(f"{name}-{_installed(name)}" for name in used)])


def _target_version(target: str) -> str:
    """Digest of the source file; for a module of a distribution also its version."""
    place, _ = split_target(target)
    if place.endswith(".py"):
        return _file_digest(Path(place))
    try:
        spec = importlib.util.find_spec(place)
    except ImportError as error:
        raise ConfigError(f"verifier.target {target}: {error}") from error
    if spec is None:
        raise ConfigError(f"verifier.target {target}: no module {place}")
    parts = [_installed(place.partition(".")[0])]
    if spec.origin is not None and Path(spec.origin).is_file():
        parts.append(_file_digest(Path(spec.origin)))
    return "-".join(parts)


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _file_digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

"""Canonical bytes: JSON, digests and seeds that are the same on every machine and in every process.

Identity in treerl is content: equal parts give equal keys, whoever computed them. Digests are BLAKE2b-128
over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_SCHEME = "blake2b-128/lp1"
"""Names the digest below; stored with every database and export, and compared on import."""

Part = str | bytes | int | float | NDArray[Any] | None


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, UTF-8 and no NaN. Raises ValueError on NaN or infinity."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def token_bytes(tokens: NDArray[Any]) -> bytes:
    """Token ids as int32 little endian, the form in which tokens enter digests and the database."""
    return np.ascontiguousarray(tokens, dtype="<i4").tobytes()


def _part_bytes(part: Part) -> bytes:
    match part:
        case bytes():
            return b"b" + part
        case str():
            return b"s" + part.encode("utf-8", "surrogatepass")
        case bool() | int() | np.integer():
            return b"i" + str(int(part)).encode()
        case float() | np.floating():
            return b"f" + float(part).hex().encode()
        case np.ndarray():
            return b"t" + token_bytes(part)
        case None:
            return b"n"
    raise TypeError(f"cannot digest {type(part).__name__}")


def _framed(part: Part) -> bytes:
    data = b"i%d" % part if type(part) is int else _part_bytes(part)
    return len(data).to_bytes(8, "little") + data


def digest(*parts: Part) -> bytes:
    """16 bytes that name this sequence of parts (arrays enter as int32 tokens)."""
    return hashlib.blake2b(b"".join(map(_framed, parts)), digest_size=16).digest()


def digest_hex(*parts: Part) -> str:
    """`digest` as 32 hexadecimal characters."""
    return digest(*parts).hex()


def derive_seed(*parts: Part) -> int:
    """A seed in [0, 2**63) from any parts; never `seed + i`, which correlates neighbouring streams."""
    return int.from_bytes(digest(*parts)[:8], "little") >> 1


def derive_seeds(*parts: Part, numbers: Iterable[int]) -> tuple[int, ...]:
    """`derive_seed(*parts, number)` for each number; what they share is digested once."""
    shared = hashlib.blake2b(b"".join(map(_framed, parts)), digest_size=16)
    seeds = []
    for number in numbers:
        hasher = shared.copy()
        hasher.update(_framed(number))
        seeds.append(int.from_bytes(hasher.digest()[:8], "little") >> 1)
    return tuple(seeds)


def generator(*parts: Part) -> np.random.Generator:
    """A numpy generator seeded by `derive_seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))

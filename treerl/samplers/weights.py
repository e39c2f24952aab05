"""`Weights`: what a hand-over sends to a sampler; and fingerprints of weights, sent or served.

A fingerprint is exact where it looks, and cheap: of each matrix some columns, drawn anew for every version,
bit by bit in the dtype that serves. A column of a weight that lies repacked for its kernel is what the layer
gives for a one-hot input: 1 * w + 0 * ... is w, without rounding.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treerl.canon import generator

COLUMNS = 8
"""Columns of a matrix that a fingerprint reads, at most."""

Named = Iterable[tuple[str, Tensor]]
"""Names of the transformers model, and tensors."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in peft's format: `adapter_config.json` and the tensors of its file.

    base: gives the weights it stands on, by the names of the model without it.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    base: Callable[[], Iterator[tuple[str, Tensor]]]

    @property
    def scaling(self) -> float:
        """What B A counts."""
        return float(self.config["lora_alpha"]) / float(self.config["r"])


@dataclass(frozen=True, slots=True)
class Weights:
    """The trainer's weights.

    named: gives all of them, an adapter merged, each tied tensor once; may be called again. tied: name of a
    tensor that is another one -> that one. adapter: None where the whole model is trained.
    """

    named: Callable[[], Iterator[tuple[str, Tensor]]]
    tied: Mapping[str, str]
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of the part of one tensor that was looked at: digest of its bits, and Euclidean norm."""

    digest: str
    norm: float


Fingerprints = dict[str, Fingerprint]
"""By name of the tensor in the transformers model, or in the adapter's file."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Fingerprints of what was sent and of what is served. `sent` names what `served` could be read of."""

    sent: Fingerprints
    served: Fingerprints

    @property
    def differing(self) -> list[str]:
        """Names of tensors that are served otherwise than they were sent."""
        return [name for name, mark in self.sent.items() if self.served[name].digest != mark.digest]


def columns_of(name: str, width: int, version: int) -> list[int]:
    """The columns of matrix `name` that fingerprints of this version read, in order."""
    chosen = generator("fingerprint", name, version).choice(width, min(COLUMNS, width), False)
    return sorted(int(column) for column in chosen)


def fingerprint(part: Tensor, dtype: torch.dtype) -> Fingerprint:
    """Of a vector, or of columns of a matrix float[rows, c], after rounding to `dtype`."""
    # Adding 0 turns -0 into 0: a sum of products does the same.
    value = part.detach().to(dtype).to("cpu").contiguous() + 0.0
    bits = value.view(torch.uint8).numpy() if value.ndim else value[None].view(torch.uint8).numpy()
    digest = hashlib.blake2b(bits.tobytes(), digest_size=16).hexdigest()
    return Fingerprint(digest, float(value.float().norm()))


def fingerprints_of(named: Named, version: int, dtype: torch.dtype) -> Fingerprints:
    """Of all vectors and matrices in `named`; tensors of more dimensions are passed over."""
    found = {}
    for name, tensor in named:
        if tensor.ndim == 2:
            columns = columns_of(name, tensor.shape[1], version)
            found[name] = fingerprint(tensor[:, columns], dtype)
        elif tensor.ndim == 1:
            found[name] = fingerprint(tensor, dtype)
    return found


def compare(
    named: Named,
    served: Fingerprints,
    version: int,
    dtype: torch.dtype,
    tied: Mapping[str, str] | None = None,
) -> Compared:
    """Fingerprints of `named`, and of the tensors `tied` to one of them, beside those of what is served.

    What only one side could read is passed over.
    """
    tensors = dict(named)
    for name, other in (tied or {}).items():
        tensors[name] = tensors[other]
    wanted = {name: tensor for name, tensor in tensors.items() if name in served}
    sent = fingerprints_of(wanted.items(), version, dtype)
    return Compared(sent, {name: served[name] for name in sent})

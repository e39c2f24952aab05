"""`PolicyOptimizer`: AdamW with warm-up, gradient clipping and fp32 master weights for bf16 parameters.

bf16 has 8 bits of mantissa: an update below 1/256 of a weight is lost in it. So half-precision parameters
(bfloat16, float16) have an fp32 copy that AdamW updates, gradients are added up in fp32 as the micro-batches
come, and the parameter is the copy rounded. fp32 and fp64 parameters are updated in place. The losses are in
treerl.policy.losses, files in treerl.policy.checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from treerl.config import UpdateSettings
from treerl.errors import ConfigError, UpdateError

Schedule = Callable[[int], float]
"""Factor on the learning rate of optimizer step 0, 1, 2, ..."""

HALF = (torch.bfloat16, torch.float16)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def linear_warmup(steps: int) -> Schedule:
    """1/steps, 2/steps, ..., 1, 1, ...; `steps` 0: always 1."""
    return lambda step: min(1.0, (step + 1) / steps) if steps else 1.0


def warmup_linear(steps: int, total: int) -> Schedule:
    """Linear warm-up over `steps`, then down to 0 in a straight line, reached behind the last of `total`."""
    warm = linear_warmup(steps)
    return lambda step: min(warm(step), max(0.0, (total - step) / max(1, total - steps)))


def warmup_cosine(steps: int, total: int, floor: float = 0.0) -> Schedule:
    """Linear warm-up over `steps`, then half a cosine down to `floor`, reached at the last of `total` steps."""
    warm = linear_warmup(steps)

    def factor(step: int) -> float:
        if step < steps:
            return warm(step)
        done = min(1.0, (step + 1 - steps) / max(1, total - steps))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One optimizer step: gradient norm before clipping, and the learning rate used."""

    grad_norm: float
    lr: float


class PolicyOptimizer:
    """Owns AdamW's state and the master weights of one model.

    Matrices are decayed by `weight_decay`; norms, biases and other vectors are not. `steps` counts the steps
    taken. The schedule defaults to linear warm-up over `warmup_steps`.
    """

    def __init__(
        self, model: nn.Module, settings: UpdateSettings, *, schedule: Schedule | None = None
    ) -> None:
        self.steps = 0
        self._settings = settings
        self._schedule = schedule or linear_warmup(settings.warmup_steps)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        # AdamW numbers its parameters group by group, so that the same order must hold here.
        named.sort(key=lambda item: item[1].ndim < 2)
        self._names = [name for name, _ in named]
        self._params: list[nn.Parameter] = [param for _, param in named]
        self._masters: list[Tensor] = [_master(param) for param in self._params]
        decayed = [m for m in self._masters if m.ndim >= 2]
        plain = [m for m in self._masters if m.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for param, master in zip(self._params, self._masters, strict=True):
            param.grad = None
            master.grad = None

    def collect(self) -> None:
        """Moves gradients of half-precision parameters into fp32; call it after each backward pass."""
        for param, master in zip(self._params, self._masters, strict=True):
            if master is param or param.grad is None:
                continue
            if master.grad is None:
                master.grad = param.grad.float()
            else:
                master.grad += param.grad
            param.grad = None

    def step(self) -> StepInfo:
        """Clips the gradients to `grad_clip`, takes one step and drops them.

        Raises UpdateError on a gradient that is not finite; weights and state are then as before.
        """
        self.collect()
        grads = [m.grad for m in self._masters if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        value = float(norm)
        if not math.isfinite(value):
            self.zero_grad()
            raise UpdateError(
                f"gradient norm is {value} at optimizer step {self.steps}; weights were not changed. "
                "Lower update.lr, or look for a wrong advantage or log-prob in this step's trees"
            )
        torch.nn.utils.clip_grads_with_norm_(self._masters, self._settings.grad_clip, norm)
        lr = self._settings.lr * self._schedule(self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._publish()
        self.zero_grad()
        self.steps += 1
        return StepInfo(value, lr)

    def _publish(self) -> None:
        """Rounds the master weights into the half-precision parameters."""
        with torch.no_grad():
            for param, master in zip(self._params, self._masters, strict=True):
                if master is not param:
                    param.copy_(master)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat and by parameter name: `steps`, `<moment>/<name>` and, for half precision, `master/<name>`."""
        state = {"steps": torch.tensor(self.steps)}
        for name, param, master in zip(self._names, self._params, self._masters, strict=True):
            if master is not param:
                state[f"master/{name}"] = master.detach()
            for moment, value in self._adamw.state.get(master, {}).items():
                state[f"{moment}/{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores `state_dict()` to the bit. The settings (lr, betas, decay) stay those of this object.

        Raises ConfigError if the state belongs to other parameters.
        """
        moments: dict[int, dict[str, Tensor]] = {}
        known = {"steps"}
        for i, (name, param, master) in enumerate(
            zip(self._names, self._params, self._masters, strict=True)
        ):
            keys = {moment: f"{moment}/{name}" for moment in MOMENTS if f"{moment}/{name}" in state}
            wanted = list(keys.values())[1:] + ([f"master/{name}"] if master is not param else [])
            if any(key not in state or state[key].shape != param.shape for key in wanted):
                raise ConfigError(f"optimizer state does not fit parameter {name} of this model")
            known.update(wanted, keys.values())
            if keys:
                moments[i] = {moment: state[key].clone() for moment, key in keys.items()}
            if master is not param:
                master.data.copy_(state[f"master/{name}"])
        if strange := sorted(state.keys() - known):
            raise ConfigError(f"optimizer state has {strange[0]}, which this model has not")
        groups: list[Any] = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": moments, "param_groups": groups})
        self.steps = int(state["steps"])
        self.zero_grad()


def _master(param: nn.Parameter) -> Tensor:
    """The fp32 tensor that AdamW updates: the parameter itself unless it is half precision."""
    return param.detach().float() if param.dtype in HALF else param

"""Turns gradients into new weights: Muon for matrices inside layers, AdamW for the rest.

Takes a model and a `TrainConfig`; gives one object to step, and its state as flat named tensors.
The learning rate's course over a run is `schedule`, a pure function of the step.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backgpt.config import TrainConfig
from backgpt.errors import CorruptFileError

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_EPS = 1e-7
ADAMW_EPS = 1e-8


def schedule(
    step: int, *, max_steps: int, warmup_steps: int, decay_fraction: float, min_scale: float
) -> float:
    """Return what the learning rate is multiplied with at `step`, counted from 0.

    It rises linearly over `warmup_steps`, stays at 1, and falls linearly to `min_scale` over the
    last `decay_fraction` of the run (the trapezoid of Hägele et al., 2024).

        step   0 .. warmup_steps     ...    max_steps * (1 - decay_fraction)  ..  max_steps
        scale  rising to 1            1      falling from 1                        min_scale
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = round(max_steps * decay_fraction)
    left = max_steps - step
    if left >= decay_steps:
        return 1.0
    return min_scale + (1.0 - min_scale) * max(left, 0) / decay_steps


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; 0 means no limit.

    Returns the norm before, a float32 scalar on the parameters' device (not a float, as reading
    it would make a GPU wait).
    """
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)


class Optimizer:
    """Muon and AdamW over the named parameters of one model, stepped together."""

    def __init__(
        self,
        muon: Mapping[str, Tensor],
        adamw: Mapping[str, Tensor],
        config: TrainConfig,
    ) -> None:
        self._muon = dict(muon)
        self._momentum = {name: torch.zeros_like(p) for name, p in muon.items()}
        self._muon_lr = config.muon_lr
        self._weight_decay = config.weight_decay

        self._adamw_parameters = dict(adamw)
        self._lr = config.lr
        groups: list[dict[str, Any]] = [
            {"params": [p for p in adamw.values() if _decays(p)]},
            {"params": [p for p in adamw.values() if not _decays(p)], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=ADAMW_EPS,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for parameter in adamw.values():
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, scale: float) -> None:
        """Update the weights from their gradients with the learning rates times `scale`.

        A parameter without a gradient is left as it is.
        """
        for group in self._adamw.param_groups:
            group["lr"] = self._lr * scale
        self._adamw.step()
        self._step_muon(self._muon_lr * scale)

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        self._adamw.zero_grad()
        for parameter in self._muon.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return a copy of the whole state under stable names, such as
        `muon.model.layers.0.mlp.up_proj.weight.momentum`."""
        return {name: tensor.detach().clone() for name, tensor in self._state().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` gave, bit for bit.

        Raises CorruptFileError if a name or shape is not what this model and optimizer have.
        """
        own = self._state()
        if own.keys() != tensors.keys():
            name = min(own.keys() ^ tensors.keys())
            problem = "lacks" if name in own else "has an unexpected"
            raise CorruptFileError(
                f"the optimizer state {problem} {name!r}: it belongs to another model or optimizer"
            )
        for name, target in own.items():
            if target.shape != tensors[name].shape:
                raise CorruptFileError(
                    f"the optimizer state {name!r} has shape {tuple(tensors[name].shape)}, "
                    f"not {tuple(target.shape)}: it belongs to another model"
                )
        with torch.no_grad():
            for name, target in own.items():
                target.copy_(tensors[name])

    def _state(self) -> dict[str, Tensor]:
        state = {f"muon.{name}.momentum": tensor for name, tensor in self._momentum.items()}
        for name, parameter in self._adamw_parameters.items():
            for key, tensor in self._adamw.state[parameter].items():
                state[f"adamw.{name}.{key}"] = tensor
        return state

    @torch.no_grad()
    def _step_muon(self, lr: float) -> None:
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in self._muon.items():
            if parameter.grad is not None:
                by_shape[parameter.shape].append(name)
        for names in by_shape.values():
            muon_update(
                [self._muon[name] for name in names],
                [self._momentum[name] for name in names],
                lr=lr,
                weight_decay=self._weight_decay,
            )


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer that `config` asks for over all parameters of `model`.

    With `optimizer = "muon"`, the matrices inside layers go to Muon with `muon_lr`, embeddings and
    norms to AdamW with `lr`; with "adamw", all go to AdamW. Norms do not decay; the embedding
    does, as it is also the output matrix, whose logits would else grow without bound.
    """
    parameters = dict(model.named_parameters())
    if config.optimizer == "adamw":
        return Optimizer({}, parameters, config)
    inside = {name: p for name, p in parameters.items() if ".layers." in name and p.ndim == 2}
    outside = {name: p for name, p in parameters.items() if name not in inside}
    return Optimizer(inside, outside, config)


def muon_update(
    weights: list[Tensor], momenta: list[Tensor], *, lr: float, weight_decay: float
) -> None:
    """Make one step of Muon (Jordan et al., 2024) on matrices of one shape, in place.

    The step is that of `torch.optim.Muon` with its "original" scaling, sqrt(max(1, rows/columns)),
    under which a learning rate holds for any width. Matrices of one shape go through Newton-Schulz
    together.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    torch._foreach_lerp_(momenta, gradients, 1 - MUON_MOMENTUM)
    updates = torch._foreach_lerp(gradients, momenta, MUON_MOMENTUM)  # Nesterov's look ahead
    rows, columns = weights[0].shape
    orthogonal = orthogonalize(torch.stack([update.bfloat16() for update in updates]))
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    scale = lr * math.sqrt(max(1.0, rows / columns))
    for weight, update in zip(weights, orthogonal, strict=True):
        weight.add_(update, alpha=-scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each bfloat16 matrix, (n, rows, columns), near 1.

    Newton-Schulz iteration of fifth order, five times, on the wide side (Jordan et al., 2024).
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=NEWTON_SCHULZ_EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _decays(parameter: Tensor) -> bool:
    return parameter.ndim >= 2

"""Which device computes, in which precision, how fast it could be, and which of how many it is."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from backgpt.errors import UsageError
from backgpt.shape import ModelConfig

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations a second, by a part of the device's name (the vendor's data sheets)."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0


ALONE = Ranks()


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where there is one, each rank its own.

    Raises UsageError if the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", ranks.local_rank)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise UsageError(f"device = {name!r} cannot be used here: try 'cpu' or 'auto'") from None
    return device


def described(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return what computes: what of a machine the bits of a run on a CPU are known to depend on."""
    on_cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size,
    }


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return `array` as a tensor on `device`.

    To a GPU it goes by way of pinned memory, without waiting for what the GPU has yet to do.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what to run the model under: bf16 products with float32 weights, or plain float32.

    "auto" is bf16 wherever the device multiplies in it. On CUDA attention is torch's own kernels:
    cuDNN's, which a Hopper GPU would prefer, are planned anew for each of our many shapes.
    """
    if precision == "auto":
        able = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        )
        precision = "bf16" if able else "fp32"
    if precision == "fp32":
        return nullcontext
    if device.type == "cuda":
        return _bf16_on_cuda
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def _bf16_on_cuda() -> Iterator[None]:
    own = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.autocast("cuda", dtype=torch.bfloat16), sdpa_kernel(own):
        yield


def compiler(notice: Callable[[str], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what compiles a function; should that fail, `notice` is told once and all run plain.

    Shapes may vary from call to call without compiling anew.
    """
    failed = False

    def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
        fast = torch.compile(plain, dynamic=True)

        def call(*inputs: Any) -> Any:
            nonlocal failed
            if not failed:
                try:
                    return fast(*inputs)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # the compiler raises what it likes
                    failed = True
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    notice(f"torch.compile failed ({reason}): going on without it, slower")
            return plain(*inputs)

        return call

    return compiled


def flops_per_token(config: ModelConfig, context: float) -> float:
    """Return the operations of one training token, forward and backward (Kaplan et al. 2020).

    `context` is the mean number of ids attended to; norms and the like are left out.
    """
    heads = config.n_head * config.head_dim
    attention = config.n_embd * (2 * heads + 2 * config.n_kv_head * config.head_dim)
    mlp = 3 * config.n_embd * config.intermediate_size
    weights = config.n_layer * (attention + mlp) + config.n_embd * config.vocab_size
    return 6 * weights + 12 * config.n_layer * heads * context


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense bf16 peak in operations a second, or None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def any_rank(wish: bool, ranks: Ranks, device: torch.device) -> bool:
    """Return whether any rank wishes so."""
    if ranks.world_size == 1:
        return wish
    flag = torch.tensor(float(wish), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


class _StepLoss(nn.Module):
    """A model as the function that training calls: ids and targets to the summed loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss in nats over the targets of (B, T) ids."""
        return self.loss(ids, targets)


def spread(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    ranks: Ranks,
    device: torch.device,
) -> nn.Module:
    """Return `loss`, which works with the weights of `model`, as a module shared by all ranks."""
    step_loss = _StepLoss(model, loss)
    if ranks.world_size == 1:
        return step_loss
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(step_loss, device_ids=devices)


def gradients_averaged(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Average gradients over the ranks in the last micro-batch of a step, and only there."""
    if isinstance(module, DistributedDataParallel) and not last:
        no_sync: AbstractContextManager[None] = module.no_sync()
        return no_sync
    return nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own random numbers, which dropout draws from, and put them back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

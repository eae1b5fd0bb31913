"""How many processors this process may use: its affinity, within the container's quota."""

import os
from pathlib import Path


def count_threads() -> int:
    """Return how many hardware threads there are to use, at least 1."""
    return max(1, min(len(_affinity()), _quota()))


def count_cores() -> int:
    """Return how many cores there are to use, at least 1.

    Two hardware threads of one core share what a product needs, so they count as one.
    """
    return max(1, min(len({_siblings(cpu) for cpu in _affinity()}), _quota()))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """Return the hardware threads that share a core with `cpu`, as the system writes them."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Return how many whole cores the control group grants, at least 1; many if it sets none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 20

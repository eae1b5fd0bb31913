"""What the commands that train share: torch made ready for it, and whose settings win."""

import os
from collections.abc import Mapping
from typing import Any

from backgpt.errors import needs_extra

KEPT_PRODUCTS = "64"  # oneDNN's usual 1,024, for batches of many shapes, are gigabytes
LENGTHS = {"max_steps", "epochs"}
"""Settings of which a run has one."""


def load_torch() -> None:
    """Import torch so that training takes little memory. Raises MissingExtraError without it."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_PRODUCTS)
    with needs_extra("train", "training"):
        from backgpt.kernels import keep_freed_memory
    keep_freed_memory()


def overridden(settings: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with those in `by` in their place; a length there is in place of any."""
    replaced = LENGTHS if LENGTHS & by.keys() else set()
    return {**{key: value for key, value in settings.items() if key not in replaced}, **by}

"""Weights as int8 rows with a scale each: a quarter of the size, nearly the same model.

A matrix `X.weight`, (rows, columns), is kept as int8 of the same shape and `X.weight_scale`,
(rows,) float32, so that w = q * scale; vectors stay float32. Symmetric, by the largest absolute
value of a row. Takes and gives dictionaries of numpy arrays.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from backgpt.errors import CorruptFileError, UsageError

Arrays = Mapping[str, npt.NDArray[Any]]
Storage = Literal["float32", "int8"]
"""How a model folder keeps its matrices."""

SCALE = "_scale"  # after the name of a matrix
LARGEST = 127  # -128 is not used, so that -q always exists


def quantized(weights: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return float `weights` with matrices as int8 rows and their scales, the rest as it is.

    A weight comes back at most half a scale away. Raises UsageError for a weight that is not
    finite.
    """
    return dict(_quantized(weights))


def dequantized(weights: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Return `weights` with int8 rows multiplied by their scales: all float32, no scales left.

    Raises CorruptFileError as `check`.
    """
    check(weights)
    return {
        name: array * weights[name + SCALE][:, None] if array.ndim == 2 else array
        for name, array in weights.items()
        if not name.endswith(SCALE)
    }


def check(weights: Arrays) -> None:
    """Raise CorruptFileError, naming the array, unless `weights` are int8 rows and scales."""
    for name, array in weights.items():
        matrix = name.removesuffix(SCALE)
        if matrix != name:
            if getattr(weights.get(matrix), "ndim", 0) != 2:
                raise CorruptFileError(f"{name} has no matrix {matrix}: copy the model again")
        elif array.ndim == 2:
            _check_matrix(name, array, weights.get(name + SCALE))
        elif array.dtype != np.float32:
            raise CorruptFileError(f"{name} is {array.dtype}, not float32: copy the model again")


def count_parameters(weights: Arrays) -> int:
    """Return how many numbers the model has; scales are not counted."""
    return sum(array.size for name, array in weights.items() if not name.endswith(SCALE))


def _quantized(weights: Arrays) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{name} holds a value that is not a number: it cannot be stored")
        if array.ndim != 2:
            yield name, array.astype(np.float32)
            continue
        largest = np.abs(array).max(axis=1, initial=0.0)
        # A row of zeros, or of next to nothing, still has a scale to divide by.
        scale = np.maximum(largest / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
        rows = np.rint(array / scale[:, None]).clip(-LARGEST, LARGEST)
        yield name, rows.astype(np.int8)
        yield name + SCALE, scale


def _check_matrix(
    name: str, matrix: npt.NDArray[Any], scale: npt.NDArray[np.float32] | None
) -> None:
    if matrix.dtype != np.int8:
        raise CorruptFileError(f"{name} is {matrix.dtype}, not int8: copy the model again")
    if scale is None:
        raise CorruptFileError(f"{name} has no {name + SCALE}: copy the model again")
    if scale.dtype != np.float32 or scale.shape != matrix.shape[:1]:
        raise CorruptFileError(
            f"{name + SCALE} is {scale.dtype} of shape {scale.shape}, for {len(matrix)} rows of "
            f"{name}: copy the model again"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise CorruptFileError(
            f"{name + SCALE} holds a scale that is not a number above 0: copy the model again"
        )

"""Arrays by name in a safetensors file, as numpy has them; never a pickle."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from backgpt.errors import CorruptFileError, UsageError
from backgpt.quantize import Arrays


def serialized(arrays: Arrays) -> bytes:
    """Return the file that holds `arrays`."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(contiguous, metadata={"format": "pt"})


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of a file.

    Raises CorruptFileError if it cannot be read, UsageError for a type that numpy has not.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None
    except TypeError as error:  # numpy has no bfloat16
        raise UsageError(
            f"{path} holds numbers of another type: {error}; save it as float32"
        ) from None

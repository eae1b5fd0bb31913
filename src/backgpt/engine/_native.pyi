# What `native/bindings.cpp` gives. It checks for safety; `native_engine` checks for people.
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_TOKENS: int

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

def instruction_sets() -> list[str]: ...

class Model:
    def __init__(
        self,
        shape: Mapping[str, Any],
        weights: Mapping[str, npt.NDArray[Any]],
        *,
        dtype: str,
        isa: str,
        threads: int,
    ) -> None: ...
    def read(self, rows: Ids, ids: Ids, wanted: int) -> Floats: ...
    def score(self, rows: Ids, ids: Ids, targets: Ids) -> list[float]: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def release(self, row: int) -> None: ...
    def length(self, row: int) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

"""Tiny models for tests: random or scripted, with an engine that can be watched."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from backgpt.api import Model
from backgpt.engine import Engine, FloatArray
from backgpt.engine.torch_engine import TorchEngine
from backgpt.language import Language
from backgpt.model import Transformer
from backgpt.order import Direction, IdArray, Unit
from backgpt.shape import ModelConfig, preset
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 256, "intermediate_size": 96}


class Watched:
    """An engine whose rows are known, and that can be made to wait, to fail, or to like to end."""

    def __init__(self, engine: Engine, *, bias: float = 0.0) -> None:
        self.engine, self.bias = engine, bias
        self.vocab_size, self.block_size = engine.vocab_size, engine.block_size
        self.shares_beginnings = engine.shares_beginnings
        self.rows: set[int] = set()
        self.n_steps = 0
        self.fails_with: Exception | None = None
        self.before_step: Callable[[], None] = lambda: None

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows, logits = self.engine.prefill(ids, copies)
        self.rows |= set(rows)
        return rows, self._biased(logits)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        self.before_step()
        self.n_steps += 1
        if self.fails_with is not None:
            raise self.fails_with
        return self._biased(self.engine.step(rows, ids))

    def release(self, rows: Sequence[int]) -> None:
        self.rows -= set(rows)
        self.engine.release(rows)

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        return self.engine.score(sequences)

    def _biased(self, logits: FloatArray) -> FloatArray:
        logits = logits.copy()
        logits[..., : len(SPECIAL_TOKENS)] += self.bias
        return logits


class Scripted:
    """An engine that writes `ids` after whatever prompt, and any id after those."""

    shares_beginnings = False

    def __init__(self, ids: Sequence[int], vocab_size: int, block_size: int = 256) -> None:
        self.ids, self.vocab_size, self.block_size = list(ids), vocab_size, block_size
        self.written: dict[int, int] = {}

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows = [max(self.written, default=-1) + 1 + i for i in range(copies)]
        self.written |= dict.fromkeys(rows, 0)
        return rows, self._logits(0)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        for row in rows:
            self.written[row] += 1
        return np.stack([self._logits(self.written[row]) for row in rows])

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.written.pop(row, None)

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        return [np.full(len(ids) - 1, -1.0, dtype=np.float32) for ids in sequences]

    def _logits(self, place: int) -> FloatArray:
        row = np.zeros(self.vocab_size, dtype=np.float32)
        if place < len(self.ids):
            row[self.ids[place]] = 30
        return row


class BareRunner(NamedTuple):
    """An engine and a language, and nothing else."""

    engine: Engine
    language: Language


def config_of(tokenizer: Tokenizer, **shape: int) -> ModelConfig:
    return preset("nano", tokenizer.vocab_size, **{**SHAPE, **shape})


def network_of(model: Model) -> Transformer:
    """Return what the torch engine of a model runs."""
    assert isinstance(model.engine, TorchEngine)
    assert isinstance(model.engine.model, Transformer)
    return model.engine.model


def tiny_model(
    tokenizer: Tokenizer,
    *,
    direction: Direction = "backward",
    unit: Unit = "token",
    told: bool = True,
    hints: bool = True,
    bias: float = 2.0,
    seed: int = 3,
    **shape: int,
) -> Model:
    """Return a random model; `bias` makes it like to end. Its engine is watched."""
    config = config_of(tokenizer, **shape)
    weights = Transformer(config, generator=torch.Generator().manual_seed(seed))
    engine = Watched(TorchEngine(weights), bias=bias)
    return Model(config, Language(tokenizer, direction, unit, told=told), engine, hints, True)


def scripted_model(
    tokenizer: Tokenizer, text: str, *, direction: Direction = "backward", unit: Unit = "token"
) -> Model:
    """Return a model that writes `text` and ends, whatever it is given."""
    language = Language(tokenizer, direction, unit)
    written = language.order.to_model(tokenizer.encode(text)).tolist()
    engine = Scripted([*written, language.markers[1]], tokenizer.vocab_size)
    return Model(config_of(tokenizer), language, engine, takes_hints=True)

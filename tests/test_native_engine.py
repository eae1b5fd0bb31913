"""The native engine: the same numbers as torch, in every dtype, on every instruction set."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from backgpt.cores import count_cores
from backgpt.engine import Dtype
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import CorruptFileError, UsageError
from backgpt.model import Transformer
from backgpt.shape import PRESETS, ModelConfig, preset

native_engine = pytest.importorskip("backgpt.engine.native_engine", exc_type=ImportError)
NativeEngine = native_engine.NativeEngine
instruction_sets = native_engine.instruction_sets
DTYPES: list[str] = list(get_args(native_engine.Dtype))
Arrays = dict[str, npt.NDArray[Any]]

SMALL = ModelConfig(
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=64,
    vocab_size=96,
    block_size=256,
    intermediate_size=96,
    head_dim=16,
)
ODD_SHAPES = {
    "nothing is a multiple of 32": dict(n_embd=100, vocab_size=4099, intermediate_size=97),
    "one key head for all": dict(n_head=6, n_kv_head=1),
    "a key head for each": dict(n_head=3, n_kv_head=3),
    "the narrowest heads": dict(head_dim=2),
    "heads wider than two blocks": dict(head_dim=66),
    "heads wider than the stream": dict(n_embd=8, head_dim=64),
    "one of everything": dict(
        n_layer=1, n_head=1, n_kv_head=1, n_embd=1, vocab_size=1, intermediate_size=1
    ),
}


def changed(config: ModelConfig, **fields: Any) -> ModelConfig:
    return replace(config, **fields)


def random_weights(config: ModelConfig, *, std: float = 0.15) -> Arrays:
    """Weights under which attention, norms and feed-forward all matter."""
    generator = torch.Generator().manual_seed(1)
    model = Transformer(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def torch_engine(config: ModelConfig, weights: Arrays) -> TorchEngine:
    model = Transformer(config)
    model.load_arrays(weights)
    return TorchEngine(model)


def some_ids(config: ModelConfig, length: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length)


def read(engine: Any, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits after a prompt and after each of three steps, (4, V)."""
    (row,), logits = engine.prefill(ids[:-3])
    rows = [logits, *(engine.step([row], [int(new)])[0] for new in ids[-3:])]
    engine.release([row])
    return np.stack(rows)


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def rounded(weights: Arrays, levels: int, *, group: int | None = None) -> Arrays:
    """Round matrices to whole multiples of a scale by row or group; the largest is `levels`."""
    result = {}
    for name, array in weights.items():
        result[name] = array
        if array.ndim == 2:
            width = group or array.shape[1]
            parts = array.reshape(len(array), -1, width)
            scale = np.abs(parts).max(-1, keepdims=True) / levels
            scale = 2.0 ** np.round(np.log2(scale))  # exact in bfloat16
            whole = np.clip(np.round(parts / scale), -levels, levels - 1)
            whole[..., 0] = -levels  # so that the scale can be found again
            result[name] = (whole * scale).reshape(array.shape).astype(np.float32)
    return result


def int8_rows(weights: Arrays) -> Arrays:
    """The compact form of a model folder: int8 matrices with the scales of their rows."""
    result: Arrays = {}
    for name, array in weights.items():
        result[name] = array
        if array.ndim == 2:
            scale = np.abs(array).max(1) / 100  # not what rounding anew would choose
            result[name] = np.round(array / scale[:, None]).astype(np.int8)
            result[name + "_scale"] = scale.astype(np.float32)
    return result


def floats(weights: Arrays) -> Arrays:
    return {
        name: array * weights[name + "_scale"][:, None] if array.dtype == np.int8 else array
        for name, array in weights.items()
        if not name.endswith("_scale")
    }


@pytest.mark.slow
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "base" else ()) for n in PRESETS]
)
def test_float32_logits_are_torchs_for_every_preset(name: str, isa: str) -> None:
    config = preset(name, n_layer=2)
    weights = random_weights(config, std=0.02)
    ids = some_ids(config, 40)
    expected = read(torch_engine(config, weights), ids)
    np.testing.assert_allclose(
        read(NativeEngine(config, weights, isa=isa), ids), expected, atol=1e-4
    )


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_odd_shapes_are_right_on_every_instruction_set(shape: str, isa: str) -> None:
    config = changed(SMALL, **ODD_SHAPES[shape])
    weights = random_weights(config)
    ids = some_ids(config, 140)  # more than one block, more than two pages
    expected = read(torch_engine(config, weights), ids)
    for threads in (1, 2):
        engine = NativeEngine(config, weights, isa=isa, threads=threads)
        np.testing.assert_allclose(read(engine, ids), expected, atol=1e-4)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(
    ("dtype", "levels", "group", "tolerance"),
    [("bfloat16", 128, None, 0.02), ("int8", 127, None, 0.05), ("int4", 8, 32, 0.05)],
)
def test_weights_that_a_dtype_holds_exactly_give_nearly_torchs_logits(
    dtype: str, levels: int, group: int | None, tolerance: float, isa: str
) -> None:
    weights = rounded(random_weights(SMALL), levels, group=group)
    ids = some_ids(SMALL, 140)
    expected = read(torch_engine(SMALL, weights), ids)
    found = read(NativeEngine(SMALL, weights, dtype=dtype, isa=isa), ids)
    assert relative_error(found, expected) < tolerance  # what is left is the rounding of inputs


def same_bits(dtype: str) -> list[set[str]]:
    """Groups of instruction sets that compute the same: some round a float product and its sum."""
    every, twice = set(instruction_sets()), {"sse4", "plain"}
    return {"float32": [every - twice, every & twice], "bfloat16": []}.get(dtype, [every])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["nothing is a multiple of 32", "heads wider than two blocks"])
def test_instruction_sets_agree(shape: str, dtype: str) -> None:
    config = changed(SMALL, **ODD_SHAPES[shape])
    weights, ids = random_weights(config), some_ids(config, 140)
    found = {}
    for isa in instruction_sets():
        engine = NativeEngine(config, weights, dtype=dtype, isa=isa)
        found[isa] = np.concatenate((read(engine, ids).ravel(), *engine.score([ids])))
    for other in found.values():
        assert relative_error(other, found["plain"]) < (0.03 if dtype == "bfloat16" else 1e-5)
    for group in same_bits(dtype):
        assert len({found[isa].tobytes() for isa in group}) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_rows_are_taken_as_they_are(dtype: str) -> None:
    compact = int8_rows(random_weights(SMALL))
    ids = some_ids(SMALL, 30)
    expected = read(torch_engine(SMALL, floats(compact)), ids)
    found = read(NativeEngine(SMALL, compact, dtype=dtype), ids)
    limits = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05, "int4": 0.5}
    assert relative_error(found, expected) < limits[dtype]
    if dtype == "int8":
        compact["model.layers.0.mlp.up_proj.weight_scale"][3] *= 4
        assert relative_error(read(NativeEngine(SMALL, compact, dtype=dtype), ids), found) > 1e-4


def test_an_output_embedding_of_its_own_is_used() -> None:
    weights = random_weights(SMALL)
    tied = read(NativeEngine(SMALL, weights), some_ids(SMALL, 9))
    own = {**weights, "lm_head.weight": 2 * weights["model.embed_tokens.weight"]}
    np.testing.assert_allclose(
        read(NativeEngine(SMALL, own), some_ids(SMALL, 9)), 2 * tied, rtol=1e-5, atol=1e-5
    )
    same = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    np.testing.assert_array_equal(read(NativeEngine(SMALL, same), some_ids(SMALL, 9)), tied)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_together_get_what_each_gets_alone(dtype: str, isa: str) -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL), dtype=dtype, isa=isa)
    prompts = [some_ids(SMALL, length, seed=length) for length in range(3, 150, 8)]
    rows = [engine.prefill(ids)[0][0] for ids in prompts]
    steps = [[number % SMALL.vocab_size for number in range(len(rows))] for _ in range(3)]
    together = np.stack([engine.step(rows, ids) for ids in steps], axis=1)
    engine.release(rows)
    for number, ids in enumerate(prompts):
        (row,), _ = engine.prefill(ids)
        alone = np.stack([engine.step([row], [new[number]])[0] for new in steps])
        engine.release([row])
        error = relative_error(together[number], alone)
        assert error < (1e-5 if dtype == "float32" else 0.02)


@pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, marks=pytest.mark.slow if isa == "plain" else ())
        for isa in instruction_sets()
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_the_bits_are_the_same_whatever_is_read_beside(dtype: str, isa: str) -> None:
    config = preset("nano", 512, n_layer=2)
    engine = NativeEngine(config, random_weights(config), dtype=dtype, threads=2, isa=isa)
    prompt, ids = some_ids(config, 9), some_ids(config, 40, seed=1)
    _, alone = engine.prefill(np.concatenate((prompt, ids)))
    for others in (0, 1, 4, 11, 40):
        rows, _ = engine.prefill(prompt, 1 + others)
        for id_ in ids.tolist():
            logits = engine.step(rows, [id_, *[7] * others])
        assert np.array_equal(logits[0], alone), others
        engine.release(rows)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shape", ["one key head for all", "heads wider than two blocks"])
def test_queries_that_are_read_together_find_what_each_finds_alone(
    shape: str, dtype: str, isa: str
) -> None:
    config = changed(SMALL, **ODD_SHAPES[shape])
    engine = NativeEngine(config, random_weights(config), dtype=dtype, threads=2, isa=isa)
    ids = some_ids(config, 132).astype(np.int32)  # more than two pages
    rows = np.zeros_like(ids)
    read = engine._model.read
    alone = np.concatenate([read(rows[:1], ids[n : n + 1], 1) for n in range(len(ids))])
    for first in (4, 5, 6, 7):  # where queries stand in pages, in fours, and in pairs
        engine._model.release(0)
        read(rows[:first], ids[:first], 0)
        together = read(rows[first:], ids[first:], len(ids) - first)
        np.testing.assert_array_equal(together, alone[first:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_and_many_steps_give_the_same_log_probabilities(dtype: str) -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL), dtype=dtype)
    texts = [some_ids(SMALL, length, seed=length) for length in (150, 2, 77, 1, 256)]
    for ids, scores in zip(texts, engine.score(texts), strict=True):
        (row,), logits = engine.prefill(ids[:1])
        for new, score in zip(ids[1:], scores, strict=True):
            wide = logits.astype(np.float64)
            assert wide[new] - np.logaddexp.reduce(wide) == pytest.approx(score, abs=0.05)
            logits = engine.step([row], [int(new)])[0]
        engine.release([row])


class Counted:
    """The extension's model, and how many ids it was given to score."""

    def __init__(self, model: Any) -> None:
        self.model, self.scored = model, 0

    def score(self, rows: Any, ids: Any, targets: Any) -> list[float]:
        self.scored += len(ids)
        losses: list[float] = self.model.score(rows, ids, targets)
        return losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_texts_begin_with_is_read_once_and_their_scores_are_those_of_each_alone(
    dtype: str,
) -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL), dtype=dtype)
    long, other = some_ids(SMALL, 150), some_ids(SMALL, 90, seed=1)
    texts = [other[:20], long]
    for place in (20, 63, 64, 65, 66, 128, 129, 140):  # at the edges of a page and inside
        texts.append(np.concatenate((long[:place], other[:12])))
        texts.append(np.concatenate((long[:place], other[:9], long[:7])))
    texts += [long[:80], long[:30], long, other, np.concatenate((long[:4], other[:50]))]
    alone = [engine.score([ids])[0] for ids in texts]
    engine._model = counted = Counted(engine._model)
    found = engine.score(texts)
    for mine, its in zip(found, alone, strict=True):
        if dtype in ("int8", "int4"):
            np.testing.assert_array_equal(mine, its)
        else:
            np.testing.assert_allclose(mine, its, atol=2e-5 if dtype == "float32" else 0.05)
    assert counted.scored < 0.4 * sum(len(ids) - 1 for ids in texts)
    assert engine.score(texts[:1])[0] == pytest.approx(alone[0], abs=0.05)  # all rows are free


def test_texts_of_one_id_have_no_scores_wherever_they_stand() -> None:
    ids = some_ids(SMALL, 3)
    for texts in ([ids, ids[:1]], [ids[:1], ids], [ids[:1], ids, ids[:1], ids[:1]]):
        engine = NativeEngine(SMALL, random_weights(SMALL))
        assert [len(scores) for scores in engine.score(texts)] == [len(ids) - 1 for ids in texts]


def test_a_prefill_that_is_interrupted_at_once_keeps_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL))

    class Interrupted:
        release = staticmethod(engine._model.release)

        def read(self, *_: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_model", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(some_ids(SMALL, 3), copies=3)
    rows, _ = engine.prefill(some_ids(SMALL, 3), copies=3)
    assert rows == [0, 1, 2]


def test_greedy_choices_are_torchs_for_50_prompts_of_200_ids() -> None:
    weights = random_weights(SMALL)
    prompts = [some_ids(SMALL, 1 + number, seed=number) for number in range(50)]
    chosen = []
    for engine in (torch_engine(SMALL, weights), NativeEngine(SMALL, weights)):
        rows, best = [], []
        for ids in prompts:
            (row,), logits = engine.prefill(ids)
            rows.append(row)
            best.append(int(logits.argmax()))
        texts = [best]
        for _ in range(199):
            best = [int(i) for i in engine.step(rows, best).argmax(1)]
            texts.append(best)
        chosen.append(texts)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none_are_not_hidden(dtype: Dtype, number: float) -> None:
    weights = random_weights(SMALL)
    weights["model.layers.1.input_layernorm.weight"][5] = number
    for isa in instruction_sets():
        engine = NativeEngine(SMALL, weights, isa=isa, dtype=dtype)
        _, logits = engine.prefill(some_ids(SMALL, 4))
        assert np.isnan(logits).all()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("model.norm.weight", None, "model.norm.weight is missing"),
        ("model.norm.weight", np.ones(63, np.float32), r"has shape \(63,\), not \(64,\)"),
        (
            "model.layers.1.mlp.down_proj.weight",
            np.ones((96, 64), np.float32),
            r"has shape \(96, 64\), not \(64, 96\)",
        ),
        ("model.norm.weight", np.ones(64, np.int8), "is int8, not float32"),
        ("model.embed_tokens.weight", np.ones((96, 64), np.int32), "is int32, not float32"),
        ("model.embed_tokens.weight", np.ones((96, 64), np.int8), "weight_scale is missing"),
        ("lm_head.weight", np.ones((95, 64), np.float32), r"\(95, 64\), not \(96, 64\)"),
        ("model.layers.2.mlp.up_proj.weight", np.ones(1, np.float32), "is not known"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    name: str, array: npt.NDArray[Any] | None, message: str
) -> None:
    weights = random_weights(SMALL)
    weights.pop(name, None)
    if array is not None:
        weights[name] = array
    with pytest.raises(CorruptFileError, match=message) as caught:
        NativeEngine(SMALL, weights)
    assert "\n" not in str(caught.value)


def test_nothing_of_an_engine_runs_while_another_thread_is_in_it() -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL))
    ids = some_ids(SMALL, 3)
    [row], _ = engine.prefill(ids)
    asked: list[Callable[[], object]] = [
        lambda: engine.cache_bytes,
        lambda: engine.prefill(ids),
        lambda: engine.step([row], [1]),
        lambda: engine.score([ids]),
        lambda: engine.release([row]),
    ]
    with ThreadPoolExecutor(len(asked)) as threads, engine.lock:
        waiting = [threads.submit(one) for one in asked]
        done, _ = wait(waiting, timeout=0.2)
        assert not done


def test_truncated_scales_are_refused() -> None:
    weights = int8_rows(random_weights(SMALL))
    weights["model.embed_tokens.weight_scale"] = weights["model.embed_tokens.weight_scale"][:-1]
    with pytest.raises(CorruptFileError, match=r"weight_scale has shape \(95,\), not \(96,\)"):
        NativeEngine(SMALL, weights, dtype="int8")


def test_the_extension_itself_refuses_what_would_read_out_of_bounds() -> None:
    native = native_engine._native
    weights = random_weights(SMALL)
    keywords: Any = dict(dtype="float32", isa="plain", threads=1)
    short = {**weights, "model.norm.weight": weights["model.norm.weight"][:-1]}
    with pytest.raises(ValueError, match="another shape"):
        native.Model(asdict(SMALL), short, **keywords)
    model = native.Model(asdict(SMALL), weights, **keywords)
    zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
    for rows, ids, wanted in [
        (-one, zero, 1),
        (zero, -one, 1),
        (zero, one * 96, 1),
        (zero, zero, 2),
        (np.zeros(2, np.int32), zero, 1),
        (np.zeros(129, np.int32), np.zeros(129, np.int32), 1),
    ]:
        with pytest.raises(ValueError, match=r"."):
            model.read(rows, ids, wanted)
    with pytest.raises(ValueError, match="no such row"):
        model.release(-1)
    model.release(1 << 30)  # nothing was read there, so nothing is held
    with pytest.raises(ValueError, match="no such row"):
        model.length(0)
    with pytest.raises(ValueError, match="target"):
        model.score(zero, zero, one * 96)
    model.read(zero, zero, 1)
    for source, target, length in [(0, 0, 1), (1, 2, 0), (0, -1, 1), (0, 1, -1), (0, 1, 3)]:
        with pytest.raises(ValueError, match=r"."):
            model.copy(source, target, length)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(dtype="float16"), "dtype 'float16' is not to be had here: choose float32"),
        (dict(isa="sse"), "instruction set 'sse' is not to be had here"),
        (dict(threads=0), "threads = 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(keywords: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NativeEngine(SMALL, random_weights(SMALL), **keywords)


def test_memory_of_the_cache_grows_with_use_and_is_used_again() -> None:
    config = changed(SMALL, block_size=65_536)
    engine = NativeEngine(config, random_weights(config))
    assert engine.cache_bytes == 0
    rows, _ = engine.prefill(some_ids(config, 200))
    page = engine.cache_bytes // 4
    assert page == 2 * 2 * (16 + 32) * 64 * 4  # layers, key heads, keys and padded values, floats
    copies, _ = engine.prefill(some_ids(config, 200), copies=10)
    assert engine.cache_bytes == (4 + 4 + 9) * page  # copies share the pages that are full
    engine.release(rows)
    engine.release(copies)
    before = engine.cache_bytes
    engine.prefill(some_ids(config, 200), copies=10)
    assert engine.cache_bytes == before


def test_memory_of_the_cache_is_given_back_when_many_texts_end() -> None:
    config = changed(SMALL, n_layer=8, n_head=8, n_kv_head=8, head_dim=64)
    engine = NativeEngine(config, random_weights(config))
    page = 8 * 8 * 2 * 64 * 64 * 4  # bytes: layers, heads, keys and values, floats
    rows, logits = engine.prefill(some_ids(config, 10), copies=140)
    assert engine.cache_bytes == 140 * page
    engine.release(rows[:10])
    assert engine.cache_bytes == 140 * page  # so many may come again
    engine.release(rows[10:])
    kept = engine.cache_bytes
    assert 64 << 20 <= kept <= 128 << 20
    again, same = engine.prefill(some_ids(config, 10), copies=3)
    assert np.array_equal(logits, same)
    assert engine.cache_bytes == kept
    engine.release(again)


@pytest.mark.parametrize("place", range(1, 10))
def test_a_release_that_is_interrupted_leaves_no_row_to_two_texts(place: int) -> None:
    config = changed(SMALL, block_size=64)
    engine = NativeEngine(config, random_weights(config))
    ids = some_ids(config, 9)
    (first, second), expected = engine.prefill(ids, copies=2)
    n_lines = 0

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n_lines
        if frame.f_code.co_name in ("release", "_give_back"):
            n_lines += event == "line"
            if n_lines == place:
                raise KeyboardInterrupt
        return interrupt

    sys.settrace(interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        engine.release([first])
    sys.settrace(None)
    new, logits = engine.prefill(ids, copies=2)
    assert len({second, *new}) == 3
    assert np.array_equal(logits, expected)
    assert np.array_equal(engine.step([second], [5]), engine.step([new[0]], [5]))


PYTHON = [sys.executable, "-W", "ignore:This process"]  # is multi-threaded: 3.12 warns at a fork


@pytest.mark.parametrize("ending", ["del engine", "sys.exit(0)", "engine.prefill([1, 2])"])
def test_a_forked_process_ends(ending: str) -> None:
    program = f"""
import os, sys, time
import backgpt
engine = backgpt.load(threads=2).engine
engine.prefill([1, 2])
time.sleep(0.2)  # so that its threads sleep
if not os.fork():
    {ending}
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([*PYTHON, "-c", program], timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


FORK = """
for _ in range(3):
    if not os.fork():
        sys.exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("then", ["", FORK])
def test_python_ends_while_a_thread_is_in_an_engine_and_so_do_forks_of_it(then: str) -> None:
    program = """
import os, sys, threading, time
import backgpt
engine = backgpt.load(threads=1).engine
def read():
    while True:
        engine.release(engine.prefill([1] * 500)[0])
threading.Thread(target=read, daemon=True).start()
time.sleep(0.5)
"""
    command = [*PYTHON, "-c", program + then]
    done = subprocess.run(command, timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_at_the_end_who_wants_in_waits_where_nobody_waits_for_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL))
    before = engine.lock
    monkeypatch.setattr(native_engine, "_ENGINES", [engine])
    native_engine._let_none_run()
    before.release()  # as if the one inside had not come out yet
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(engine.prefill, [1, 2])
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.2)
        engine.lock.release()
        assert reading.result()[0] == [0]


def test_an_interrupted_prefill_frees_its_rows() -> None:
    config = changed(SMALL, block_size=65_536, n_embd=256)
    engine = NativeEngine(config, random_weights(config), isa="plain", threads=1)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(some_ids(config, 60_000))
    finally:
        signal.signal(signal.SIGALRM, before)
    (row,), logits = engine.prefill(some_ids(config, 5))
    assert row == 0
    np.testing.assert_array_equal(
        logits,
        NativeEngine(config, random_weights(config), isa="plain").prefill(some_ids(config, 5))[1],
    )


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_no_more_threads_are_taken_than_there_are_cores() -> None:
    engine = NativeEngine(SMALL, random_weights(SMALL), isa="plain", threads=count_cores() + 9)
    assert engine.threads == count_cores()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_thousand_loads_and_frees_leave_nothing_behind() -> None:
    weights = random_weights(SMALL)
    ids = some_ids(SMALL, 20)

    def load_and_free() -> None:
        NativeEngine(SMALL, weights, dtype="int8", threads=2).prefill(ids)

    before_threads = tasks()
    for _ in range(50):
        load_and_free()
    before = resident_bytes()
    for _ in range(1000):
        load_and_free()
    assert tasks() == before_threads
    assert resident_bytes() - before < 4_000_000


def test_a_program_that_never_frees_its_engine_ends_quietly_and_loads_no_torch() -> None:
    program = """
import sys
import numpy as np
from backgpt.shape import ModelConfig
from backgpt.engine.native_engine import NativeEngine
config = ModelConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, vocab_size=40, block_size=32,
                     intermediate_size=32)
weights = {name: np.ones(shape, np.float32) for name, shape in config.array_shapes().items()}
engine = sys.engine = NativeEngine(config, weights, threads=2)
print(engine.prefill(np.arange(5))[1].shape, "torch" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "(40,) False\n"
    assert result.stderr == ""

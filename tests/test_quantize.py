"""Int8 rows and scales: near the floats, exact where they can be, damage refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import backgpt
from backgpt.config import TrainConfig
from backgpt.errors import CorruptFileError, UsageError
from backgpt.model_folder import read_model, save_model
from backgpt.quantize import SCALE, check, count_parameters, dequantized, quantized
from backgpt.train import train

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "a.weight": random.normal(size=(5, 7)).astype(np.float32),
        "norm.weight": random.normal(size=7).astype(np.float32),
    }


@given(matrices)
def test_a_weight_comes_back_at_most_half_a_scale_away(matrix: np.ndarray) -> None:
    stored = quantized({"a.weight": matrix})
    back = dequantized(stored)["a.weight"]
    scale = stored["a.weight" + SCALE].astype(np.float64)[:, None]
    assert back.dtype == np.float32
    assert (np.abs(back.astype(np.float64) - matrix) <= scale * 0.5001).all()


@given(matrices)
def test_a_scale_is_a_rows_largest_weight_by_127(matrix: np.ndarray) -> None:
    stored = quantized({"a.weight": matrix})
    largest = np.abs(matrix).max(axis=1)
    assert stored["a.weight"].dtype == np.int8
    assert stored["a.weight" + SCALE].dtype == np.float32
    normal = largest > 1e-30
    assert np.allclose(stored["a.weight" + SCALE][normal] * 127, largest[normal], rtol=1e-6)
    assert (np.abs(stored["a.weight"].astype(int)).max(axis=1)[normal] == 127).all()


def test_storing_what_was_stored_changes_nothing(weights: dict[str, np.ndarray]) -> None:
    once = quantized(weights)
    again = quantized(dequantized(once))
    assert np.array_equal(once["a.weight"], again["a.weight"])
    assert np.allclose(once["a.weight_scale"], again["a.weight_scale"], rtol=1e-6)


def test_a_row_of_zeros_stays_one_and_vectors_stay_floats(weights: dict[str, np.ndarray]) -> None:
    weights["a.weight"][2] = 0
    back = dequantized(quantized(weights))
    assert not back["a.weight"][2].any()
    assert np.array_equal(back["norm.weight"], weights["norm.weight"])
    assert set(back) == set(weights)


def test_scales_are_no_parameters(weights: dict[str, np.ndarray]) -> None:
    assert count_parameters(weights) == count_parameters(quantized(weights)) == 5 * 7 + 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_not_stored(
    weights: dict[str, np.ndarray], value: float
) -> None:
    weights["a.weight"][0, 0] = value
    with pytest.raises(UsageError, match=r"a\.weight holds a value that is not a number"):
        quantized(weights)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("a.weight_scale", None, "has no a.weight_scale"),
        ("a.weight_scale", np.ones(4, np.float32), r"shape \(4,\), for 5 rows"),
        ("a.weight_scale", np.ones((5, 1), np.float32), r"shape \(5, 1\)"),
        ("a.weight_scale", np.ones(5, np.float64), "float64"),
        ("a.weight_scale", np.array([1, 1, np.nan, 1, 1], np.float32), "not a number above 0"),
        ("a.weight_scale", np.array([1, 1, np.inf, 1, 1], np.float32), "not a number above 0"),
        ("a.weight_scale", np.array([1, 1, 0, 1, 1], np.float32), "not a number above 0"),
        ("a.weight", np.ones((5, 7), np.float32), "float32, not int8"),
        ("a.weight", None, "no matrix a.weight"),
        ("norm.weight", np.ones(7, np.int8), "int8, not float32"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    weights: dict[str, np.ndarray], name: str, array: Any, words: str
) -> None:
    stored = quantized(weights)
    if array is None:
        del stored[name]
    else:
        stored[name] = array
    for job in (check, dequantized):
        with pytest.raises(CorruptFileError, match=words) as error:
            job(stored)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_loss_of_a_trained_model_hardly_changes(
    dataset_path: Path, tmp_path: Path, texts: list[str]
) -> None:
    class Silent:
        def started(self, *, first_step: int, max_steps: int) -> None: ...
        def stepped(self, record: object) -> None: ...
        def notice(self, text: str) -> None: ...

    settings = {"data": dataset_path, "out": tmp_path / "run", "max_steps": 60, "batch_size": 4}
    shape = {"n_layer": 2, "n_head": 1, "n_embd": 64, "block_size": 256, "intermediate_size": 96}
    train(TrainConfig.model_validate({**settings, **shape, "compile": "off"}), report=Silent())
    save_model(read_model(tmp_path / "run"), tmp_path / "small", storage="int8")
    losses = [
        np.mean([score.loss for score in backgpt.load(path).score_all(texts[:30])])
        for path in (tmp_path / "run", tmp_path / "small")
    ]
    assert losses[0] < 5  # it has learned something that can be lost
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)

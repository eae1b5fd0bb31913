"""Model folders and checkpoints: whole, verified, or refused with the file's name."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backgpt import checkpoint as module
from backgpt import model_folder
from backgpt.checkpoint import (
    Checkpoint,
    checkpoints,
    point,
    read_checkpoint,
    save_checkpoint,
    thin,
)
from backgpt.errors import BackgptError, CorruptFileError, DataError, UsageError
from backgpt.manifest import MANIFEST, verify
from backgpt.model_folder import (
    BEST,
    CONFIG,
    HUGGING_FACE_NAMES,
    INT8_WEIGHTS,
    LATEST,
    WEIGHTS,
    ModelFolder,
    SeenData,
    folder_of,
    pointed,
    read_model,
    read_unverified,
    save_model,
    write_model,
)
from backgpt.quantize import SCALE, dequantized, quantized
from backgpt.shape import ModelConfig
from backgpt.tokenizer import Tokenizer

CONFIG_OF_MODEL = ModelConfig(
    n_layer=1,
    n_head=2,
    n_kv_head=1,
    n_embd=8,
    vocab_size=512,
    block_size=32,
    intermediate_size=16,
    head_dim=4,
)


@pytest.fixture
def model(tokenizer: Tokenizer) -> ModelFolder:
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return ModelFolder(CONFIG_OF_MODEL, "backward", "word", tokenizer, weights)


@pytest.fixture
def folder(model: ModelFolder, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    write_model(model, tmp_path / "model")
    return tmp_path / "model"


def checkpoint(model: ModelFolder, step: int) -> Checkpoint:
    optimizer = {"step": np.array(3.0, dtype=np.float32), "m": np.ones(4, dtype=np.float32)}
    return Checkpoint(model, step, optimizer, {"tokens": 12})


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "REMOVED"}))


def test_a_model_folder_comes_back_as_it_was_written(model: ModelFolder, folder: Path) -> None:
    read = read_model(folder)
    assert (read.config, read.direction, read.unit) == (model.config, "backward", "word")
    assert read.tokenizer.sha256 == model.tokenizer.sha256
    assert np.array_equal(read.weights["a.weight"], model.weights["a.weight"])


@pytest.mark.parametrize(
    ("state", "trained"),
    [
        ('{"step": 4, "tokens": 90, "data_sha256": "ab"}', SeenData(4, 90, "ab")),
        ('{"step": 4}', None),
        ('{"step": 1e999, "tokens": 90, "data_sha256": "ab"}', None),
        ("[1]", None),
        ("no JSON", None),
    ],
)
def test_what_a_checkpoint_was_trained_on_is_known_and_other_files_are_let_be(
    folder: Path, state: str, trained: SeenData | None
) -> None:
    assert read_unverified(folder).trained is None
    (folder / "state.json").write_text(state)
    assert read_unverified(folder).trained == trained


def test_every_dimension_has_a_hugging_face_name(folder: Path) -> None:
    assert set(HUGGING_FACE_NAMES) == {field.name for field in fields(ModelConfig)}
    written = json.loads((folder / CONFIG).read_text())
    for ours, theirs in HUGGING_FACE_NAMES.items():
        assert written[theirs] == getattr(CONFIG_OF_MODEL, ours)


@pytest.mark.parametrize(("direction", "stop"), [("backward", "start_id"), ("forward", "end_id")])
def test_the_stop_id_for_other_programs_is_the_far_marker(
    model: ModelFolder, tmp_path: Path, direction: Any, stop: str
) -> None:
    turned = ModelFolder(model.config, direction, "token", model.tokenizer, model.weights)
    write_model(turned, tmp_path)
    for name in (CONFIG, "generation_config.json"):
        stop_id = json.loads((tmp_path / name).read_text())["eos_token_id"]
        assert stop_id == getattr(model.tokenizer, stop)


@pytest.mark.parametrize(
    ("key", "value"), [("direction", "sideways"), ("direction", "REMOVED"), ("unit", "letter")]
)
def test_an_unknown_direction_or_unit_is_refused(folder: Path, key: str, value: str) -> None:
    edit(folder / CONFIG, **{key: value})
    with pytest.raises(UsageError, match=key):
        read_model(folder)


def test_another_family_is_refused(folder: Path) -> None:
    edit(folder / CONFIG, model_type="gpt2")
    with pytest.raises(UsageError, match="gpt2"):
        read_model(folder)


def test_a_foreign_tokenizer_is_refused(folder: Path) -> None:
    edit(folder / CONFIG, tokenizer_sha256="0" * 64)
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
        read_model(folder)


def test_a_missing_dimension_is_named(folder: Path) -> None:
    edit(folder / CONFIG, head_dim="REMOVED")
    with pytest.raises(CorruptFileError, match="head_dim"):
        read_model(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-4])
    with pytest.raises(CorruptFileError, match=WEIGHTS):
        read_model(folder)


def test_no_model_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no model"):
        read_model(tmp_path)


def test_a_checkpoint_comes_back_bit_for_bit(model: ModelFolder, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(model, 5))
    read = read_checkpoint(saved)
    assert (read.step, read.state) == (5, {"tokens": 12})
    assert read.optimizer["step"].shape == ()
    for name, array in checkpoint(model, 5).optimizer.items():
        assert np.array_equal(read.optimizer[name], array)
    assert pointed(tmp_path, LATEST) == saved


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_damage_to_any_file_is_found(model: ModelFolder, tmp_path: Path, change: str) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(model, 1))
    for file in sorted(saved.iterdir()):
        if file.name == MANIFEST:
            continue
        damaged = tmp_path / "damaged"
        shutil.copytree(saved, damaged)
        data = bytearray((damaged / file.name).read_bytes())
        data[len(data) // 2] ^= 1
        if change == "flip":
            (damaged / file.name).write_bytes(data)
        elif change == "cut":
            (damaged / file.name).write_bytes(data[:-1])
        else:
            (damaged / file.name).unlink()
        with pytest.raises(CorruptFileError, match=file.name):
            verify(damaged)
        shutil.rmtree(damaged)


def test_a_checkpoint_without_manifest_does_not_count(model: ModelFolder, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(model, 1))
    (saved / MANIFEST).unlink()
    with pytest.raises(CorruptFileError, match=MANIFEST):
        read_checkpoint(saved)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(model, 1))

    def full(path: Path, data: bytes) -> None:
        if path.name == module.OPTIMIZER:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(module, "write_synced", full)
    with pytest.raises(BackgptError, match="No space left on device"):
        save_checkpoint(tmp_path, checkpoint(model, 2))
    assert checkpoints(tmp_path) == [saved]
    assert sorted(p.name for p in saved.parent.iterdir()) == ["step-1"]
    assert read_checkpoint(saved).step == 1
    assert pointed(tmp_path, LATEST) == saved


def test_saving_a_step_again_replaces_it(model: ModelFolder, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(model, 1))
    saved = save_checkpoint(tmp_path, checkpoint(model, 1))
    assert checkpoints(tmp_path) == [saved]
    verify(saved)


def test_thinning_keeps_the_last_and_the_best(model: ModelFolder, tmp_path: Path) -> None:
    for step in (2, 10, 4, 6, 8):
        save_checkpoint(tmp_path, checkpoint(model, step))
    point(tmp_path, BEST, tmp_path / "checkpoints" / "step-2")
    thin(tmp_path, keep_last=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-10", "step-8", "step-2"]


def test_a_damaged_pointer_is_passed_over(model: ModelFolder, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, checkpoint(model, 1))
    point(tmp_path, LATEST, saved)
    for damaged in (b"", b"\xff\0", b"../../x", b"checkpoints/step-9"):
        (tmp_path / BEST).write_bytes(damaged)
        assert folder_of(tmp_path) == saved
        with pytest.raises(DataError, match="best names no checkpoint that is there"):
            folder_of(tmp_path / BEST)


def test_a_run_folder_means_its_best_checkpoint(model: ModelFolder, tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, checkpoint(model, 1))
    changed = {"a.weight": np.zeros((2, 3), dtype=np.float32)}
    other = ModelFolder(model.config, "backward", "word", model.tokenizer, changed)
    save_checkpoint(tmp_path, checkpoint(other, 2))
    assert not read_model(tmp_path).weights["a.weight"].any()
    point(tmp_path, BEST, first)
    for path in (tmp_path, tmp_path / BEST, first):
        assert read_model(path).weights["a.weight"].any()
    assert not read_model(tmp_path / LATEST).weights["a.weight"].any()


def test_a_model_stored_as_int8_comes_back_as_floats_or_as_it_lies(
    model: ModelFolder, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "small", storage="int8")
    verify(tmp_path / "small")
    stored = quantized(model.weights)
    read, raw = read_model(tmp_path / "small"), read_model(tmp_path / "small", dequantize=False)
    assert read.storage == raw.storage == "int8"
    assert set(read.weights) == set(model.weights)
    assert np.array_equal(read.weights["a.weight"], dequantized(stored)["a.weight"])
    assert set(raw.weights) == set(stored)
    for name, array in stored.items():
        assert raw.weights[name].dtype == array.dtype
        assert np.array_equal(raw.weights[name], array)
    assert (read.config, read.direction, read.unit) == (model.config, "backward", "word")


def test_a_folder_without_the_key_is_float32_and_an_unknown_storage_is_refused(
    model: ModelFolder, folder: Path
) -> None:
    edit(folder / CONFIG, storage="REMOVED")
    assert read_model(folder).storage == "float32"
    edit(folder / CONFIG, storage="int4")
    with pytest.raises(UsageError, match="storage = 'int4'"):
        read_model(folder)


def test_int8_weights_have_a_name_that_transformers_does_not_read(
    model: ModelFolder, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "small", storage="int8")
    assert (tmp_path / "small" / INT8_WEIGHTS).is_file()
    assert not (tmp_path / "small" / WEIGHTS).exists()


@pytest.mark.parametrize("dequantize", [True, False])
def test_missing_scales_are_refused_with_the_files_name(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dequantize: bool
) -> None:
    def without_scale(weights: Any) -> Any:
        return {k: v for k, v in quantized(weights).items() if not k.endswith(SCALE)}

    monkeypatch.setattr(model_folder, "quantized", without_scale)
    save_model(model, tmp_path / "small", storage="int8")
    with pytest.raises(CorruptFileError, match=rf"{INT8_WEIGHTS}.*no a\.weight_scale"):
        read_model(tmp_path / "small", dequantize=dequantize)


def test_a_model_is_saved_over_another_whole_or_not_at_all(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save_model(model, folder, files={"README.md": b"one"})
    monkeypatch.setattr(model_folder, "write_synced", _full)
    with pytest.raises(BackgptError, match="No space left on device"):
        save_model(model, folder, files={"README.md": b"two"})
    monkeypatch.undo()
    verify(folder)
    assert (folder / "README.md").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    save_model(model, folder, storage="int8", files={"card.json": b"{}"})
    verify(folder)
    assert not (folder / WEIGHTS).exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(
    model: ModelFolder, tmp_path: Path, value: float
) -> None:
    weights = {"a.weight": np.array([[1, value]], dtype=np.float32)}
    save_model(replace(model, weights=weights), tmp_path / "model")
    with pytest.raises(CorruptFileError, match=rf"{WEIGHTS}: a.weight has a number"):
        read_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"vocab_size": "300"}, "vocab_size = '300'"),
        ({"vocab_size": None}, "vocab_size = None"),
        ({"rope_parameters": "x"}, "rope_parameters and shape must be tables"),
        ({"shape": [1]}, "rope_parameters and shape must be tables"),
    ],
)
def test_values_of_another_type_are_named(
    folder: Path, values: dict[str, Any], reason: str
) -> None:
    edit(folder / CONFIG, **values)
    with pytest.raises(BackgptError, match=reason):
        read_model(folder)


def test_without_its_weights_only_what_is_read_is_verified(
    model: ModelFolder, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).write_bytes(b"")
    read = read_model(tmp_path / "model", with_weights=False)
    assert (read.config, read.weights) == (model.config, {})
    with pytest.raises(CorruptFileError, match=WEIGHTS):
        read_model(tmp_path / "model")
    (tmp_path / "model" / CONFIG).write_bytes(b"{}")
    with pytest.raises(CorruptFileError, match=CONFIG):
        read_model(tmp_path / "model", with_weights=False)


def test_every_model_folder_says_how_its_ids_run(folder: Path) -> None:
    read_me = (folder / "README.md").read_text()
    assert read_me.startswith("---\nlibrary_name:")  # nothing tells which language it writes
    assert "model order" in read_me


def test_the_card_of_a_chat_says_how_to_chat(model: ModelFolder, tmp_path: Path) -> None:
    for chat in (False, True):
        save_model(replace(model, chat=chat), tmp_path / "model")
        read_me = (tmp_path / "model" / "README.md").read_text()
        assert ("backgpt chat --model PATH" in read_me) == chat
        assert ("backgpt sample --model PATH" in read_me) != chat


def _full(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")

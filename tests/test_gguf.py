"""The GGUF file, read back with gguf's own reader: every tensor, every word of metadata."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backgpt import __version__
from backgpt.cli import main
from backgpt.errors import BackgptError, MissingExtraError, UsageError
from backgpt.export import read_source
from backgpt.export_gguf import GGUF_TYPES, GgufType, export_gguf, gguf_name
from backgpt.model_folder import TOKENIZER, read_model, save_model
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer
from tiny_folders import tiny_folder

gguf = pytest.importorskip("gguf")

NORMAL, CONTROL, UNUSED = 1, 3, 5


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of both directions, with fewer heads for keys than for queries."""
    path = tmp_path_factory.mktemp("gguf") / "fox"
    return tiny_folder(path, tokenizer, direction="both", hints=True, n_kv_head=1)


def exported(folder: Path, out: Path, dtype: GgufType = "f32") -> Any:
    export_gguf(read_source(folder), out, dtype=dtype)
    return gguf.GGUFReader(out)


def value(file: Any, key: str) -> Any:
    return file.fields[key].contents()


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_every_tensor_comes_back(folder: Path, tmp_path: Path, dtype: GgufType) -> None:
    file = exported(folder, tmp_path / "fox.gguf", dtype)
    weights = read_model(folder).weights
    found = {tensor.name: tensor for tensor in file.tensors}
    assert set(found) == set(map(gguf_name, weights))
    assert len(found) == len(weights) == 2 + 2 * 11
    for name, array in weights.items():
        tensor = found[gguf_name(name)]
        assert tensor.shape.tolist() == list(array.shape)[::-1]
        kind = dtype.upper() if array.ndim == 2 else "F32"
        assert tensor.tensor_type.name == kind
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind == "F32":
            assert np.array_equal(back, array)
        elif kind == "F16":
            assert np.array_equal(back, array.astype(np.float16).astype(np.float32))
        else:  # half a step of a block's scale, which is itself rounded to float16
            largest = np.abs(array.reshape(-1, 32)).max(axis=1, keepdims=True)
            error = np.abs(back - array).reshape(-1, 32)
            assert (error <= largest / 127 * 0.5 + largest * 2.0**-11 + 1e-7).all()
            assert error.max() > 0


def test_the_names_are_those_that_gguf_itself_maps(folder: Path) -> None:
    weights = read_model(folder).weights
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    for name in weights:
        assert gguf_name(name) == theirs.get_name(name, (".weight",))


def test_the_file_says_what_shape_it_has_and_how_its_ids_run(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = exported(folder, tmp_path / "fox.gguf", "q8_0")
    assert {
        key: value(file, key) for key in file.fields if not key.startswith(("GGUF", "tokenizer"))
    } == {
        "general.architecture": "qwen3",
        "general.name": "backgpt fox",
        "general.description": "Ids are in model order, the last one first: turn them around "
        "before and after.",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "general.size_label": "0.1M",
        "qwen3.block_count": 2,
        "qwen3.context_length": 256,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 2,
        "qwen3.attention.head_count_kv": 1,
        "qwen3.attention.key_length": 64,
        "qwen3.attention.value_length": 64,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.dimension_count": 64,
        "qwen3.rope.freq_base": 10_000,
        "qwen3.vocab_size": 512,
        "backgpt.version": __version__,
        "backgpt.direction": "both",
        "backgpt.unit": "token",
        "backgpt.start_token": "<|start|>",
        "backgpt.end_token": "<|end|>",
        "backgpt.tokenizer_sha256": tokenizer.sha256,
        "backgpt.hints": True,
        "backgpt.chat": False,
    }


def test_the_tokenizer_is_ours_id_by_id(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = exported(folder, tmp_path / "fox.gguf")
    content = json.loads((folder / TOKENIZER).read_text())["model"]
    tokens = value(file, "tokenizer.ggml.tokens")
    assert len(tokens) == tokenizer.vocab_size
    assert {token: id_ for id_, token in enumerate(tokens)} == content["vocab"]
    assert tokens[:16] == list(SPECIAL_TOKENS)
    assert value(file, "tokenizer.ggml.token_type") == [CONTROL] * 16 + [NORMAL] * (512 - 16)
    assert value(file, "tokenizer.ggml.merges") == [" ".join(pair) for pair in content["merges"]]
    assert value(file, "tokenizer.ggml.model") == "gpt2"
    assert value(file, "tokenizer.ggml.pre") == "gpt-2"
    assert value(file, "tokenizer.ggml.bos_token_id") == tokenizer.end_id
    assert value(file, "tokenizer.ggml.eos_token_id") == tokenizer.start_id
    assert value(file, "tokenizer.ggml.padding_token_id") == tokenizer.pad_id
    assert value(file, "tokenizer.ggml.add_bos_token") is False
    assert value(file, "tokenizer.ggml.add_eos_token") is False
    assert "tokenizer.ggml.eot_token_id" not in file.fields
    assert "tokenizer.chat_template" not in file.fields


def test_a_forward_model_stops_at_the_end_and_a_chat_at_the_users_tag_too(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    forward = tiny_folder(tmp_path / "f", tokenizer, direction="forward", chat=True, n_layer=1)
    file = exported(forward, tmp_path / "f.gguf")
    assert value(file, "tokenizer.ggml.bos_token_id") == tokenizer.start_id
    assert value(file, "tokenizer.ggml.eos_token_id") == tokenizer.end_id
    assert "tokenizer.ggml.eot_token_id" not in file.fields
    assert value(file, "general.description") == "Ids are in reading order."
    chat = tiny_folder(tmp_path / "c", tokenizer, chat=True, n_layer=1)
    file = exported(chat, tmp_path / "c.gguf")
    assert value(file, "tokenizer.ggml.eot_token_id") == tokenizer.control_id("<|user|>")
    assert value(file, "backgpt.chat") is True


def test_ids_that_only_the_model_has_are_unused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", tokenizer, n_layer=1)
    model = read_model(folder)
    name = "model.embed_tokens.weight"
    wider = np.concatenate((model.weights[name], model.weights[name][:3]))
    object.__setattr__(model.config, "vocab_size", 515)
    object.__setattr__(model, "weights", {**model.weights, name: wider})
    save_model(model, folder)
    file = exported(folder, tmp_path / "out.gguf")
    tokens = value(file, "tokenizer.ggml.tokens")
    assert len(set(tokens)) == len(tokens) == 515
    assert value(file, "tokenizer.ggml.token_type")[512:] == [UNUSED] * 3


def test_an_int8_model_with_a_card_is_written_as_floats_with_its_licence(tmp_path: Path) -> None:
    export_gguf(read_source("stories"), tmp_path / "stories.gguf")
    file = gguf.GGUFReader(tmp_path / "stories.gguf")
    assert value(file, "general.license").startswith("CC BY-SA 4.0")
    assert {tensor.tensor_type.name for tensor in file.tensors} == {"F32"}


# ---- refusals -----------------------------------------------------------------------------------


def test_only_an_older_export_is_replaced(folder: Path, tmp_path: Path) -> None:
    source, out = read_source(folder), tmp_path / "deep" / "out.gguf"
    export_gguf(source, out)
    export_gguf(source, out, dtype="f16")
    assert value(gguf.GGUFReader(out), "general.file_type") == 1
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    with pytest.raises(UsageError, match=r"is a folder: name a file, such as deep\.gguf"):
        export_gguf(source, out.parent)
    for other in (b"mine", b"GGUF of somebody else", b""):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(UsageError, match="not an export of backgpt"):
            export_gguf(source, tmp_path / "other")
        assert (tmp_path / "other").read_bytes() == other


def test_a_full_disk_leaves_what_was_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = read_source(folder), tmp_path / "out.gguf"
    export_gguf(source, out)
    before = out.read_bytes()

    def full(self: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(BackgptError, match=r"cannot write .*No space left on device; make room"):
        export_gguf(source, out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_weights_that_do_not_fit_the_type_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    odd = read_source(tiny_folder(tmp_path / "odd", tokenizer, n_layer=1, intermediate_size=72))
    with pytest.raises(UsageError, match=r"down_proj\.weight has rows of 72.*multiples of 32"):
        export_gguf(odd, tmp_path / "out.gguf", dtype="q8_0")
    export_gguf(odd, tmp_path / "out.gguf", dtype="f16")
    name = "model.norm.weight"
    odd.model.weights[name][0] = 1e5  # vectors stay float32
    export_gguf(odd, tmp_path / "out.gguf", dtype="f16")
    odd.model.weights["model.embed_tokens.weight"][0, 0] = -1e5
    with pytest.raises(UsageError, match="too large for f16: use f32"):
        export_gguf(odd, tmp_path / "large.gguf", dtype="f16")
    assert not (tmp_path / "large.gguf").exists()


def test_without_the_library_the_extra_is_named_and_nothing_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"of which gguf is missing: .*backgpt\[gguf\]"):
        export_gguf(read_source(folder), tmp_path / "out" / "fox.gguf")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_gguf_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fox.gguf"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), str(out), "--to", "gguf", "--dtype", "q8_0"])
    assert not ended.value.code
    assert "fox.gguf: 0.1 MB; its ids are in model order" in capsys.readouterr().err
    assert value(gguf.GGUFReader(out), "general.file_type") == 7

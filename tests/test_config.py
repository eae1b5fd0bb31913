"""Settings: strict, frozen, and back from TOML as they were."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backgpt.config import TrainConfig, build, read_toml, to_toml
from backgpt.errors import ConfigError
from backgpt.shape import PRESETS, ModelConfig, preset


def settings(**values: object) -> TrainConfig:
    return build(TrainConfig, {"data": "data", "max_steps": 5, **values}, origin="test")


def parameters(config: ModelConfig) -> int:
    attention = config.n_embd * config.head_dim * 2 * (config.n_head + config.n_kv_head)
    mlp = 3 * config.n_embd * config.intermediate_size
    return config.n_layer * (attention + mlp) + config.vocab_size * config.n_embd


@pytest.mark.parametrize(
    ("name", "millions"), [("nano", 3.7), ("seed", 27.8), ("small", 54.8), ("base", 97.5)]
)
def test_presets_have_the_sizes_they_promise(name: str, millions: float) -> None:
    assert parameters(preset(name)) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_preset_has_heads_of_64_and_a_width_that_quantizes() -> None:
    for name in PRESETS:
        shape = preset(name)
        assert shape.head_dim == 64
        assert shape.intermediate_size % 32 == 0


def test_a_preset_takes_overrides_and_heads_follow() -> None:
    assert preset("nano", n_head=2).n_kv_head == 2
    assert preset("nano", n_head=4, n_kv_head=2).n_kv_head == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lrr": 1}, "unknown key 'lrr'; did you mean 'lr'"),
        ({"direction": "sideways"}, "direction = 'sideways'"),
        ({"lr": -1}, "lr = -1"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"epochs": 2}, "either max_steps or epochs"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"min_lr": 0.1, "lr": 0.01}, r"min_lr = 0\.1 is what lr = 0\.01 falls to: lower it"),
        ({"out": Path("r\udcff")}, r"give it in UTF-8"),
        ({"sample_endings": ("a", "\udcff")}, r"give it in UTF-8"),
    ],
)
def test_a_bad_setting_is_one_line_with_key_and_value(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        settings(**values)
    assert "\n" not in str(caught.value)


def test_what_no_computer_holds_is_refused() -> None:
    for field, value in (("n_layer", 10**9), ("n_embd", 10**9), ("block_size", 10**12)):
        with pytest.raises(ConfigError, match=f"{field} = {value}: it must be at most"):
            preset("nano", 512, **{field: value})
    for field in ("seed", "batch_size"):
        with pytest.raises(ConfigError, match=f"{field} = {10**24}"):
            build(TrainConfig, {"data": "d", "max_steps": 1, field: 10**24}, origin="test")
    with pytest.raises(ConfigError, match=r"epochs = 10{12}\.0: .* 10000"):
        build(TrainConfig, {"data": "d", "epochs": 1e12}, origin="test")


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of n_kv_head"):
        preset("nano", n_head=4, n_kv_head=3)
    with pytest.raises(ConfigError, match="65537"):
        preset("nano", 65_537)
    with pytest.raises(ConfigError, match="unknown preset 'huge'"):
        preset("huge")


@given(st.text(max_size=30), st.floats(1e-6, 1.0))
def test_toml_brings_settings_back_as_they_were(text: str, lr: float) -> None:
    before = settings(sample_endings=(text,), lr=lr, out=Path("runs/a b"))
    after = build(TrainConfig, tomllib.loads(to_toml(before)), origin="test")
    assert after == before


def test_a_toml_file_that_is_not_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml"):
        read_toml(tmp_path / "no.toml")
    for text in ("lr = = 1", "lr = " + "9" * 5000, "lr = " + "[" * 10_000):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.toml"):
            read_toml(tmp_path / "bad.toml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().lr = 1.0


def test_settings_name_the_preset_unless_a_model_is_begun_from() -> None:
    given = {"data": "data", "max_steps": 1}
    resolved = build(TrainConfig, given, origin="test")
    assert resolved.preset == "nano"
    assert 'preset = "nano"' in to_toml(resolved)
    assert resolved == build(TrainConfig, {**given, "preset": "nano"}, origin="test")
    tuned = build(TrainConfig, {**given, "init": "base"}, origin="test")
    assert tuned.preset is None
    assert "preset" not in to_toml(tuned)

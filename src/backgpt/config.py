"""Frozen settings: a training run, TOML, JSON.

Takes dictionaries, TOML and JSON files; gives validated, immutable objects.
An unknown key is an error that names the closest known one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from backgpt.errors import ConfigError, DataError
from backgpt.manifest import read_json
from backgpt.order import Directions
from backgpt.shape import ModelConfig, did_you_mean, preset

DEFAULT_PRESET = "nano"
DIMENSIONS = ("n_layer", "n_head", "n_kv_head", "n_embd", "block_size", "intermediate_size")
"""What of a shape can be set, apart from its vocabulary, which is that of the data."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(Settings):
    """Everything a training run depends on; `config.toml` in the run folder is this, resolved.

    `max_steps` or `epochs` says how long; one micro-batch holds at most
    `batch_size * block_size` ids, one optimizer step `grad_accum_steps` micro-batches.
    """

    data: Path | None = None
    chat: tuple[str, ...] = ()
    chat_valid: tuple[str, ...] = ()
    out: Path = Path("runs/story")
    preset: str | None = None
    direction: Directions = "backward"
    unit: Literal["token", "word"] = "token"
    hints: float = Field(default=0.0, ge=0, le=1)
    init: str | None = None  # a path, or the name of a built-in model

    n_layer: int | None = None
    n_head: int | None = None
    n_kv_head: int | None = None
    n_embd: int | None = None
    block_size: int | None = None
    intermediate_size: int | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)

    max_steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0, le=10_000)
    batch_size: int = Field(default=32, ge=1, le=2**24)
    grad_accum_steps: int = Field(default=1, ge=1, le=2**24)

    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(default=3e-3, gt=0)
    muon_lr: float = Field(default=2e-2, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=20, ge=0)
    decay_fraction: float = Field(default=0.5, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, ge=0)

    seed: int = Field(default=1, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=200, ge=1)
    save_every: int = Field(default=200, ge=1)
    keep_last: int = Field(default=3, ge=1)
    sample_endings: tuple[str, ...] = ("The end.", "and they lived happily ever after.")
    tensorboard: bool = False

    @model_validator(mode="before")
    @classmethod
    def _resolve_preset(cls, given: Any) -> Any:
        """Name the preset, unless a model is begun from, which says what its shape is."""
        if isinstance(given, Mapping) and given.get("preset") is given.get("init") is None:
            return {**given, "preset": DEFAULT_PRESET}
        return given

    @field_validator("init", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("out", "data", "init", "chat", "chat_valid", "sample_endings")
    @classmethod
    def _check_utf_8(cls, value: Any) -> Any:
        for part in value if isinstance(value, tuple) else (value,):
            try:
                str(part).encode()
            except UnicodeEncodeError:
                raise ValueError("give it in UTF-8, as config.toml is") from None
        return value

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is what lr = {self.lr} falls to: lower it")
        return self

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either max_steps or epochs, and not both")
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if (self.data is None) == (not self.chat):
            raise ValueError("give either data (what prepare made) or chat (conversations)")
        if self.chat and self.init is None:
            raise ValueError("chat tunes a model: give the one to begin from as init")
        if self.chat and self.hints:
            raise ValueError("conversations have their own hints: leave hints out")
        if self.chat_valid and not self.chat:
            raise ValueError("chat_valid is for chat: leave it out")
        return self

    def shape(self, vocab_size: int, *, of_init: ModelConfig | None = None) -> ModelConfig:
        """Return the model's shape: the preset with this run's own dimensions put in.

        A run that begins from a model has the shape of that one, `of_init`, but for `block_size`.
        Raises ConfigError for what is given and differs from it.
        """
        given = {name: getattr(self, name) for name in DIMENSIONS}
        own = {name: value for name, value in given.items() if value is not None}
        if of_init is None:
            return preset(self.preset or DEFAULT_PRESET, vocab_size, **own)
        wanted = own if self.preset is None else asdict(preset(self.preset, vocab_size, **own))
        for name in DIMENSIONS:
            has = getattr(of_init, name)
            if name != "block_size" and wanted.get(name, has) != has:
                raise ConfigError(
                    f"{self.init} has {name} = {has}, this run {wanted[name]}: leave the preset "
                    "and dimensions out, they are those of the model you start from"
                )
        return replace(of_init, block_size=wanted.get("block_size", of_init.block_size))


AnySettings = TypeVar("AnySettings", bound=Settings)


def build(kind: type[AnySettings], values: Mapping[str, Any], *, origin: str) -> AnySettings:
    """Validate `values` as settings of `kind`; `origin` says where they came from.

    Raises ConfigError with one line that names the key, the value and what is allowed.
    """
    for key in values:
        if key not in kind.model_fields:
            raise ConfigError(
                f"{origin}: unknown key {key!r}{did_you_mean(key, kind.model_fields)}"
            )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {key} is missing") from None
        where = f"{key} = {first['input']!r}: " if key else ""
        raise ConfigError(f"{origin}: {where}{reason[:1].lower()}{reason[1:]}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the top-level table of the TOML file at `path`.

    Raises ConfigError if it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def to_toml(settings: Settings) -> str:
    """Write settings as TOML that `read_toml` and `build` turn back into an equal object."""
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in settings.model_dump(mode="json").items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def read_as(kind: type[AnySettings], path: Path) -> AnySettings:
    """Read a JSON file as `kind`.

    Raises DataError if it cannot be read, ConfigError for an unknown key or a bad value.
    """
    return build(kind, read_json(path, failure=DataError), origin=str(path))

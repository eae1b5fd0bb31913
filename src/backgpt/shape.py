"""The shape of a transformer in the Qwen3 family, checked, and the presets.

Plain Python: what only runs a model need not load what reads settings. Names of dimensions are this
project's, `model_folder` holds the one table to Hugging Face's; arrays have Hugging Face's names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from backgpt.errors import ConfigError, CorruptFileError

MAX_VOCAB_SIZE = 65_536  # of what is trained here: its ids are stored as uint16
MOST, MOST_LAYERS = 2**24, 1024  # of what no computer at hand could hold
EMBEDDING = "model.embed_tokens.weight"
"""What Hugging Face calls the embedding of ids, which is the head as well."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model. Raises ConfigError for a value that cannot be."""

    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    intermediate_size: int
    head_dim: int = 64
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = _LEAST.get(field.name, 1)
            if field.type is int and type(value) is not int:
                raise ConfigError(f"{field.name} = {value!r}: it must be a whole number")
            if field.type is int and value < least:
                raise ConfigError(f"{field.name} = {value}: it must be {least} or more")
            most = MOST_LAYERS if field.name == "n_layer" else MOST
            if field.type is int and value > most:
                raise ConfigError(f"{field.name} = {value}: it must be at most {most:,}")
            if field.type is float and not 0 < _number(value) < float("inf"):
                raise ConfigError(f"{field.name} = {value!r}: it must be a number above 0")
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"n_head = {self.n_head} is not a multiple of n_kv_head = {self.n_kv_head}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim} is odd; rotary needs pairs")

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array of such a model, by Hugging Face's name."""
        width, feed, dim = self.n_embd, self.intermediate_size, self.head_dim
        q_width, kv_width = self.n_head * dim, self.n_kv_head * dim
        of_layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (width,),
            "self_attn.q_norm": (dim,),
            "self_attn.k_norm": (dim,),
            "self_attn.q_proj": (q_width, width),
            "self_attn.k_proj": (kv_width, width),
            "self_attn.v_proj": (kv_width, width),
            "self_attn.o_proj": (width, q_width),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (feed, width),
            "mlp.up_proj": (feed, width),
            "mlp.down_proj": (width, feed),
        }
        layers = {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(self.n_layer)
            for name, shape in of_layer.items()
        }
        return {EMBEDDING: (self.vocab_size, width), **layers, "model.norm.weight": (width,)}


_LEAST = {"block_size": 2, "head_dim": 2}

_SHAPES: dict[str, dict[str, int]] = {
    "pico": dict(n_layer=4, n_head=2, n_embd=128, block_size=256, intermediate_size=352),
    "nano": dict(n_layer=4, n_head=4, n_embd=256, block_size=256, intermediate_size=704),
    "seed": dict(n_layer=8, n_head=8, n_embd=512, block_size=1024, intermediate_size=1408),
    "small": dict(n_layer=10, n_head=10, n_embd=640, block_size=1024, intermediate_size=1728),
    "base": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, intermediate_size=2048),
}
PRESETS: dict[str, int] = {
    "pico": 2048,
    "nano": 2048,
    "seed": 4096,
    "small": 8192,
    "base": 16384,
}
"""Preset name -> the vocabulary size it is meant for (about 1M to 97M parameters)."""


def preset(name: str, vocab_size: int | None = None, **overrides: Any) -> ModelConfig:
    """Return the shape called `name`, with `vocab_size` and any field replaced.

    Raises ConfigError for an unknown preset or a field outside its range.
    """
    if name not in _SHAPES:
        raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(_SHAPES)}")
    values: dict[str, Any] = {**_SHAPES[name], "vocab_size": vocab_size or PRESETS[name]}
    if values["vocab_size"] > MAX_VOCAB_SIZE:
        raise ConfigError(f"vocab_size = {vocab_size}: it must be at most {MAX_VOCAB_SIZE}")
    values["n_kv_head"] = overrides.get("n_kv_head", overrides.get("n_head", values["n_head"]))
    return shape_from({**values, **overrides}, origin=f"preset {name!r}")


def shape_from(values: Mapping[str, Any], *, origin: str) -> ModelConfig:
    """Return the shape that `values` describe; `origin` says where they came from.

    Raises ConfigError with one line that names the key, the value and what is allowed.
    """
    names = [field.name for field in fields(ModelConfig)]
    for key in values:
        if key not in names:
            raise ConfigError(f"{origin}: unknown key {key!r}{did_you_mean(key, names)}")
    for field in fields(ModelConfig):
        if field.default is MISSING and field.name not in values:
            raise ConfigError(f"{origin}: {field.name} is missing")
    try:
        return ModelConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def check_shapes(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], *, origin: str = ""
) -> None:
    """Raise CorruptFileError for the first array that is missing, not known, or of another shape.

    `origin` says where the arrays came from, if the caller knows.
    """
    for name in sorted({*wanted, *found}):
        if found.get(name) == wanted.get(name):
            continue
        wrong = f"has shape {found.get(name)}, not {wanted.get(name)}"
        if name not in found:
            wrong = "is missing"
        elif name not in wanted:
            wrong = "is not known"
        where = f"{origin}: " if origin else ""
        raise CorruptFileError(
            f"{where}the weights do not fit the model's shape: {name} {wrong}: copy the model again"
        )


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return a question that ends a message about an unknown key, or nothing."""
    import difflib  # only where a message is due

    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")

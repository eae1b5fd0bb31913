"""A model as one GGUF file, which llama.cpp and what is built on it run: shape "qwen3".

Matrices are float32, float16 or q8_0, vectors float32. llama.cpp splits text as this project's
tokenizer does, but normalizes nothing: give it ids, or text from `unreverse.normalized`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from backgpt.errors import BackgptError, UsageError, needs_extra
from backgpt.export import Source, metadata
from backgpt.files import cannot_write, whole_file
from backgpt.quantize import count_parameters
from backgpt.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from gguf import GGUFWriter

GgufType = Literal["f32", "f16", "q8_0"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
ARCHITECTURE = "qwen3"
Q8_0_BLOCK = 32
LARGEST_F16 = float(np.finfo(np.float16).max)
HEAD_BYTES = 4096  # in which an export of ours says what it is

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
TENSORS_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's names and those of GGUF."""


def export_gguf(source: Source, out: Path, *, dtype: GgufType = "f32") -> None:
    """Write a model as the GGUF file `out`, whole or not at all.

    Raises MissingExtraError without the library gguf, UsageError if something is at `out` that is
    not such an export or the weights do not fit `dtype`, BackgptError if the disk refuses.
    """
    with needs_extra("gguf", "writing GGUF"):
        from gguf import GGUFWriter
    out = out.absolute()
    _check_free(out)
    _check_fits(source, dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as temporary:
            writer = GGUFWriter(temporary, ARCHITECTURE)
            try:
                _add_description(writer, source, dtype)
                _add_shape(writer, source)
                _add_tokenizer(writer, source)
                _add_tensors(writer, source, dtype)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()
    except OSError as error:
        raise cannot_write(out, error) from None


def gguf_name(name: str) -> str:
    """Return what GGUF calls the tensor that Hugging Face calls `name`."""
    if name in TENSORS:
        return TENSORS[name]
    layer, inner = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{TENSORS_OF_LAYER[inner.removesuffix('.weight')]}.weight"


def _check_free(out: Path) -> None:
    """Raise UsageError unless `out` is not there or is a GGUF file of ours."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file, such as {out.name}.gguf")
    try:
        with out.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackgptError(f"cannot write {out}: {error.strerror}") from None
    if not (head.startswith(b"GGUF") and b"backgpt.direction" in head):
        raise UsageError(f"{out} is not an export of backgpt: name another file")


def _check_fits(source: Source, dtype: GgufType) -> None:
    """Raise UsageError if a matrix cannot be stored as `dtype`."""
    for name, array in source.model.weights.items():
        if array.ndim == 2 and dtype == "q8_0" and array.shape[1] % Q8_0_BLOCK:
            raise UsageError(
                f"{name} has rows of {array.shape[1]}, and q8_0 takes multiples of {Q8_0_BLOCK}: "
                "use f16"
            )
        if array.ndim == 2 and dtype != "f32" and np.abs(array).max(initial=0) > LARGEST_F16:
            raise UsageError(f"{name} holds numbers too large for {dtype}: use f32")


def _add_description(writer: "GGUFWriter", source: Source, dtype: GgufType) -> None:
    """Say what the file is: first of all, how its ids run."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    for key, value in metadata(source.model).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_string(key, value)
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(LlamaFileType[types[dtype]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_name(f"backgpt {source.name}")
    writer.add_size_label(f"{count_parameters(source.model.weights) / 1e6:.1f}M")
    backward = "Ids are in model order, the last one first: turn them around before and after."
    forward = "Ids are in reading order."
    writer.add_description(forward if source.model.direction == "forward" else backward)
    if source.card:
        writer.add_license(source.card.license)


def _add_shape(writer: "GGUFWriter", source: Source) -> None:
    shape = source.model.config
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.block_size)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_kv_head)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)


def _add_tokenizer(writer: "GGUFWriter", source: Source) -> None:
    """Add the vocabulary, and where to stop: a chat model also at the tag that ends a question.

    Ids that the model has and the tokenizer has not are called unused. There is no chat template:
    a program that used it would read conversations the wrong way round.
    """
    from gguf import TokenType

    model = source.model
    language = model.languages[0]
    first, stop = language.markers
    unused = [f"<|unused {i}|>" for i in range(len(source.tokens), model.config.vocab_size)]
    kinds = [
        TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL
        for token in source.tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*source.tokens, *unused])
    writer.add_token_types([*kinds, *(TokenType.UNUSED for _ in unused)])
    writer.add_token_merges([" ".join(pair) for pair in source.merges])
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(stop)
    if model.chat and language.direction == "backward":
        writer.add_eot_token_id(model.tokenizer.control_id("<|user|>"))
    writer.add_pad_token_id(model.tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _add_tensors(writer: "GGUFWriter", source: Source, dtype: GgufType) -> None:
    from gguf import GGMLQuantizationType, quants

    for name, array in source.model.weights.items():
        kind = GGMLQuantizationType[dtype.upper() if array.ndim == 2 else "F32"]
        data = quants.quantize(np.asarray(array, dtype=np.float32, order="C"), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)

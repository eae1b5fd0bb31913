"""A model from elsewhere as it was read: its shape, its weights, its tokenizer."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backgpt.errors import DataError
from backgpt.manifest import read_json
from backgpt.model_folder import Family, ModelFolder
from backgpt.order import Direction, Unit
from backgpt.quantize import Arrays
from backgpt.sentencepiece_model import read_sentencepiece
from backgpt.shape import EMBEDDING, ModelConfig
from backgpt.tokenizer import Tokenizer, opened


@dataclass(frozen=True)
class ForeignModel:
    """What was read of a model; `weights` are float32, or only shapes for "transformers".

    `tokenizer` is the content of its `tokenizer.json`. The model reads `first_id` first and ends
    with `stop_id`, where it has them; it may have up to `padding` ids more than the tokenizer.
    """

    path: Path
    family: Family
    config: ModelConfig
    weights: Arrays = field(repr=False)
    tokenizer: dict[str, Any] = field(repr=False)
    tokenizer_path: Path
    first_id: int | None
    stop_id: int | None
    description: str
    padding: int = 0

    def as_folder(self, direction: Direction, unit: Unit, tokenizer: Tokenizer) -> ModelFolder:
        """Return it as a model folder; in our own shape without ids that the tokenizer lacks."""
        config, weights = self.config, self.weights
        if self.family == "qwen3":
            config = replace(config, vocab_size=tokenizer.vocab_size)
            weights = {
                name: array[: tokenizer.vocab_size] if name == EMBEDDING else array
                for name, array in weights.items()
            }
        return ModelFolder(
            config, direction, unit, tokenizer, weights, family=self.family, path=self.path
        )


def read_tokenizer(path: Path) -> tuple[dict[str, Any], int | None, int | None]:
    """Read a SentencePiece `.model` or a `tokenizer.json`.

    Returns the content of a `tokenizer.json`, the id that it puts before a text, and the id that
    ends one, None where it does not say. Raises DataError or CorruptFileError.
    """
    if not path.is_file():
        raise DataError(f"there is no tokenizer {path}: give one as --tokenizer")
    if path.suffix == ".model":
        return read_sentencepiece(path)
    content = read_json(path)
    if not isinstance(content.get("model"), dict) or "vocab" not in content["model"]:
        raise DataError(f"{path} is not a tokenizer.json: give one as --tokenizer")
    content.setdefault("added_tokens", [])
    try:
        before = opened(path.read_text(encoding="utf-8")).encode("", add_special_tokens=True).ids
    except Exception as error:  # tokenizers raises a bare Exception
        raise DataError(f"{path}: {error}") from None
    return content, before[0] if before else None, None

"""What people import: load a model, write toward an ending, stream, score.

    model = backgpt.load("runs/story")
    for story in model.write(ending="The end.", n=3):
        print(story.text)

Every door (command line, server) goes through here.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from backgpt.checkpoint import ModelFolder, read_model
from backgpt.config import ModelConfig
from backgpt.engine import Engine
from backgpt.errors import MissingExtraError, UsageError
from backgpt.generate import Language, Prompt, Text, Writer, collect, generate, in_model_order
from backgpt.order import Direction, Unit
from backgpt.sampling import Sampling
from backgpt.score import Score, score_texts
from backgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model:
    """A model ready to run. Make one with `load`."""

    config: ModelConfig
    language: Language
    engine: Engine

    @property
    def direction(self) -> Direction:
        """Which token it predicts: the previous ("backward") or the next ("forward")."""
        return self.language.direction

    @property
    def unit(self) -> Unit:
        """What is reversed: single tokens or whole words."""
        return self.language.unit

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.language.tokenizer

    def write(
        self,
        ending: str | None = None,
        *,
        opening: str | None = None,
        n: int = 1,
        continues: bool = False,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Text]:
        """Write `n` texts that lead to `ending`, or, with a forward model, go on from `opening`.

        With `continues` some text follows the ending (or precedes the opening): it does not stand
        at the edge of the text. Without `max_new_tokens` the context is the limit. The same `seed`
        gives the same texts; without one a new one is drawn and can be read from the result.
        Raises UsageError if the model runs the other way or the given text does not fit.
        """
        if n < 1:
            raise UsageError(f"n = {n}: ask for at least 1 text")
        return collect(
            self.engine,
            self.language,
            self._prompt(ending, opening, continues=continues),
            n=n,
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
        )

    def stream(
        self,
        ending: str | None = None,
        *,
        opening: str | None = None,
        continues: bool = False,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Yield pieces of one text as they are written, after what was given.

        A backward model's pieces go in front of the text so far, a forward model's behind it:
        the given text and all pieces so joined are the `text` that `write` returns. Closing the
        iterator stops the computation. Raises as `write`.
        """
        prompt = self._prompt(ending, opening, continues=continues)
        writer = Writer(self.language, prompt)
        stop = self.language.markers[1]
        reached_stop = False
        for _, id_, _ in generate(
            self.engine,
            self.language,
            prompt,
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
        ):
            reached_stop = id_ == stop
            if not reached_stop and (piece := writer.push(id_)):
                yield piece
        if piece := writer.finish("stop" if reached_stop else "length"):
            yield piece

    def score(self, text: str) -> Score:
        """Return how likely the model finds `text` as a whole document."""
        return self.score_all([text])[0]

    def score_all(self, texts: Sequence[str]) -> list[Score]:
        """Score many documents at once; the same results, faster."""
        return score_texts(self.engine, self.language, texts)

    def as_written(self, text: Text, *, continues: bool = False) -> str:
        """Return a text in the order the model wrote it: `end. The again. friends became …`."""
        return in_model_order(
            self.language, self.language.prompt(text.given, at_edge=not continues), text
        )

    def _prompt(self, ending: str | None, opening: str | None, *, continues: bool) -> Prompt:
        given, other = (ending, opening) if self.direction == "backward" else (opening, ending)
        wanted, unwanted = (
            ("ending", "opening") if self.direction == "backward" else ("opening", "ending")
        )
        if other is not None:
            raise UsageError(
                f"this is a {self.direction} model: it starts from an {wanted}, not an {unwanted}"
            )
        if given is None:
            raise UsageError(f"this is a {self.direction} model: give it an {wanted}")
        return self.language.prompt(given, at_edge=not continues)


def load(path: str | PathLike[str], *, device: str = "cpu") -> Model:
    """Load the model at `path`: a model folder, a checkpoint, or a run folder (its best).

    Raises DataError, UsageError or CorruptFileError if it cannot be read as one, and
    MissingExtraError without torch.
    """
    folder = read_model(Path(path))
    language = Language(folder.tokenizer, folder.direction, folder.unit)
    return Model(folder.config, language, _torch_engine(folder, device))


def _torch_engine(folder: ModelFolder, device: str) -> Engine:
    try:
        from backgpt.devices import Ranks, choose_device
        from backgpt.engine.torch_engine import TorchEngine
        from backgpt.model import Transformer
    except ModuleNotFoundError:
        raise MissingExtraError("running a model", "train") from None

    model = Transformer(folder.config)
    model.load_arrays(folder.weights)
    return TorchEngine(model, device=choose_device(device, Ranks()))


def _seed(seed: int | None) -> int:
    if seed is not None and seed < 0:
        raise UsageError(f"seed = {seed}: it must be 0 or more")
    return secrets.randbits(32) if seed is None else seed

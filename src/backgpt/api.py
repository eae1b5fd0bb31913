"""What people import: load a model, write toward an ending, stream, score.

    model = backgpt.load("runs/story")
    for story in model.write(ending="The end.", n=3):
        print(story.text)

Every door (command line, server) goes through here.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from backgpt.checkpoint import ModelFolder, read_model
from backgpt.config import ModelConfig
from backgpt.engine import Engine
from backgpt.errors import MissingExtraError, UsageError
from backgpt.generate import Text, Writer, collect, generate, in_model_order
from backgpt.hints import Hints, Length
from backgpt.language import Language, Prompt
from backgpt.order import Direction, Unit
from backgpt.sampling import Sampling
from backgpt.score import Score, score_texts
from backgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model:
    """A model ready to run. Make one with `load`.

    `takes_hints` says that it was trained to obey hints.
    """

    config: ModelConfig
    language: Language
    engine: Engine
    takes_hints: bool = False

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
        words: Sequence[str] = (),
        length: Length | None = None,
        n: int = 1,
        continues: bool = False,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Text]:
        """Write `n` texts that lead to `ending`, or, with a forward model, go on from `opening`.

        A model that takes hints is told `words` that should occur, a `length` ("short", "medium"
        or "long") and, running backward, the `opening` that the text should begin with; it obeys
        more often than not, and `Hints.obeyed_by` tells.
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
            self._prompt(ending, opening, words, length, continues=continues),
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
        words: Sequence[str] = (),
        length: Length | None = None,
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
        prompt = self._prompt(ending, opening, words, length, continues=continues)
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

    def turned(self) -> "Model":
        """Return the same model running the other way. Raises UsageError if it cannot."""
        if not self.language.told:
            raise UsageError(f"this model only runs {self.direction}: load its twin")
        direction: Direction = "forward" if self.direction == "backward" else "backward"
        return replace(self, language=replace(self.language, direction=direction))

    def as_written(self, text: Text, *, continues: bool = False) -> str:
        """Return a text in the order the model wrote it: `end. The again. friends became …`."""
        return in_model_order(
            self.language, self.language.prompt(text.given, at_edge=not continues), text
        )

    def _prompt(
        self,
        ending: str | None,
        opening: str | None,
        words: Sequence[str],
        length: Length | None,
        *,
        continues: bool,
    ) -> Prompt:
        """Return the prompt for what was given: the text to go on from, and hints."""
        backward = self.direction == "backward"
        given, other = (ending, opening) if backward else (opening, ending)
        wanted, unwanted = ("ending", "opening") if backward else ("opening", "ending")
        if other is not None and not (backward and self.takes_hints):
            raise UsageError(
                f"this is a {self.direction} model: it starts from an {wanted}, not an {unwanted}"
            )
        hints = Hints(opening=opening if backward else None, words=tuple(words), length=length)
        if hints and not self.takes_hints:
            raise UsageError("this model was trained without hints: leave out words and length")
        if hints and continues:
            raise UsageError("hints are for whole texts: leave them out, or 'continues'")
        if given is None and not hints:
            raise UsageError(f"this is a {self.direction} model: give it an {wanted}")
        return self.language.prompt(given or "", at_edge=not continues, hints=hints)


def load(
    path: str | PathLike[str], *, direction: Direction | None = None, device: str = "cpu"
) -> Model:
    """Load the model at `path`: a model folder, a checkpoint, or a run folder (its best).

    A model trained both ways runs in `direction`, backward if none is given. Raises DataError,
    UsageError or CorruptFileError if it cannot be read as one or does not run that way, and
    MissingExtraError without torch.
    """
    folder = read_model(Path(path))
    by_direction = {language.direction: language for language in folder.languages}
    if direction is not None and direction not in by_direction:
        raise UsageError(f"{path} is a {folder.direction} model: it does not run {direction}")
    language = by_direction[direction] if direction else folder.languages[0]
    return Model(folder.config, language, _torch_engine(folder, device), folder.hints)


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

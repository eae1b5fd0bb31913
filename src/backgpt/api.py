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
from typing import Literal

from backgpt.alternatives import Alternative, find_alternatives
from backgpt.builtin import DEFAULT, find
from backgpt.chat import Template
from backgpt.checkpoint import ModelFolder, read_model
from backgpt.engine import Dtype, Engine
from backgpt.errors import MissingExtraError, UsageError
from backgpt.generate import Text, collect, in_model_order, pieces
from backgpt.hints import Hints, Length
from backgpt.language import Language, Prompt
from backgpt.messages import Message, Role
from backgpt.order import Direction, Unit
from backgpt.quantize import dequantized
from backgpt.rewind import Transcript, rewind
from backgpt.sampling import Sampling
from backgpt.score import Score, WordScore, score_texts, word_scores
from backgpt.shape import ModelConfig
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer

EngineName = Literal["native", "torch"]


@dataclass(frozen=True)
class Model:
    """A model ready to run. Make one with `load`.

    `takes_hints` says that it was trained to obey hints, `takes_chat` that it was tuned on
    conversations.
    """

    config: ModelConfig
    language: Language
    engine: Engine
    takes_hints: bool = False
    takes_chat: bool = False

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
        stop: Sequence[str] = (),
    ) -> list[Text]:
        """Write `n` texts that lead to `ending`, or, with a forward model, go on from `opening`.

        A model that takes hints is told `words` that should occur, a `length` ("short", "medium"
        or "long") and, running backward, the `opening` that the text should begin with; it obeys
        more often than not, and `Hints.obeyed_by` tells.
        With `continues` some text follows the ending (or precedes the opening): it does not stand
        at the edge of the text. Without `max_new_tokens` the context is the limit; a text also
        ends where one of the texts `stop` is written, which are not part of it. The same `seed`
        gives the same texts; without one a new one is drawn and can be read from the result.
        Raises UsageError if the model runs the other way or the given text does not fit.
        """
        return collect(
            self.engine,
            self.language,
            self.prompt(ending, opening=opening, words=words, length=length, continues=continues),
            n=_at_least_1(n),
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
            stop=stop,
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
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield pieces of one text as they are written, after what was given.

        A backward model's pieces go in front of the text so far, a forward model's behind it:
        the given text and all pieces so joined are the `text` that `write` returns. Closing the
        iterator stops the computation. Raises as `write`.
        """
        yield from pieces(
            self.engine,
            self.language,
            self.prompt(ending, opening=opening, words=words, length=length, continues=continues),
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
            stop=stop,
        )

    def ask(
        self,
        answer: str,
        *,
        context: str = "",
        n: int = 1,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Text]:
        """Write `n` questions that `answer` could be the answer to; `context` is what it is about.

        Raises UsageError for a forward model, an empty answer, or one that does not fit.
        """
        prompt = self._template.before([Message("assistant", answer)], context=context)
        return self._messages(prompt, n, max_new_tokens, sampling, seed, stop)

    def reply(
        self,
        question: str,
        *,
        context: str = "",
        n: int = 1,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Text]:
        """Write `n` answers to `question`, by a backward model from their last word.

        Raises UsageError for an empty question, or one that does not fit.
        """
        prompt = self._template.reply(question, context=context)
        return self._messages(prompt, n, max_new_tokens, sampling, seed, stop)

    def rewind(
        self,
        message: str,
        *,
        role: Role = "assistant",
        turns: int = 3,
        context: str = "",
        n: int = 1,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Transcript]:
        """Write `n` conversations of up to `turns` messages that led to a last `message` by `role`.

        `max_new_tokens` is for each message. Raises UsageError as `ask`.
        """
        first_seed = _seed(seed)
        return [
            rewind(
                self.engine,
                self._template,
                [Message(role, message)],
                turns=turns,
                context=context,
                sampling=sampling or Sampling(),
                max_new_tokens=max_new_tokens,
                seed=first_seed + number * turns,
            )
            for number in range(_at_least_1(n))
        ]

    def alternatives(
        self,
        ending: str,
        n: int = 10,
        *,
        words: Sequence[str] = (),
        length: Length | None = None,
        continues: bool = False,
    ) -> list[Alternative]:
        """Return the `n` likeliest words that may stand directly before `ending`, likeliest first.

        Raises UsageError for a forward model, or an ending that does not fit.
        """
        prompt = self.prompt(ending, words=words, length=length, continues=continues)
        return finished(find_alternatives(self.engine, self.language, prompt, _at_least_1(n)))

    def score(self, text: str) -> Score:
        """Return how likely the model finds `text` as a whole document."""
        return self.score_all([text])[0]

    def score_all(self, texts: Sequence[str]) -> list[Score]:
        """Score many documents at once; the same results, faster."""
        return score_texts(self.engine, self.language, texts)

    def word_scores(self, text: str, score: Score) -> list[WordScore]:
        """Return what `score` says of each word of its `text`; the words join to the text."""
        return word_scores(self.tokenizer, text, score)

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

    @property
    def _template(self) -> Template:
        return Template(self.language)

    def _messages(
        self,
        prompt: Prompt,
        n: int,
        max_new_tokens: int | None,
        sampling: Sampling | None,
        seed: int | None,
        stop: Sequence[str],
    ) -> list[Text]:
        """Write `n` messages that a prompt of the chat template asks for."""
        return collect(
            self.engine,
            self.language,
            prompt,
            n=_at_least_1(n),
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
            stop=stop,
        )

    def prompt(
        self,
        ending: str | None = None,
        *,
        opening: str | None = None,
        words: Sequence[str] = (),
        length: Length | None = None,
        continues: bool = False,
    ) -> Prompt:
        """Return the prompt for what is given: the text to go on from, and hints.

        Raises as `write`, but for what does not fit.
        """
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
    path: str | PathLike[str] | None = None,
    *,
    direction: Direction | None = None,
    engine: EngineName | None = None,
    device: str = "cpu",
    dtype: Dtype | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> Model:
    """Load a model: a built-in one by its name, or a model folder, checkpoint or run folder.

    Without `path` it is the built-in model "stories"; a local folder called like a built-in model
    is `./stories`, or a Path. Of a run folder it is the best checkpoint. A model trained both ways
    runs in `direction`, backward if none is given.

    `engine` is "native" (C++, on the CPU) or "torch"; without one, native where it can be. The
    native engine computes in `dtype`, without one in int8 for a model stored so and in float32
    for others, with `threads` at most and the instruction set `isa`, by default the fastest.

    Raises DataError, UsageError or CorruptFileError if it cannot be read as one or does not run
    so, and MissingExtraError without an engine.
    """
    folder = read_model(find(path), dequantize=False)
    by_direction = {language.direction: language for language in folder.languages}
    if direction is not None and direction not in by_direction:
        raise UsageError(
            f"{path or DEFAULT} is a {folder.direction} model: it does not run {direction}"
        )
    language = by_direction[direction] if direction else folder.languages[0]
    made = None
    if engine != "torch" and (engine or device == "cpu"):
        made = _native_engine(folder, engine, device, dtype=dtype, threads=threads, isa=isa)
    if made is None:
        if dtype is not None or threads is not None:
            raise UsageError("dtype and threads are for the native engine: leave them out")
        made = _torch_engine(folder, device)
    return Model(folder.config, language, made, folder.hints, folder.chat)


def _native_engine(
    folder: ModelFolder,
    wanted: EngineName | None,
    device: str,
    *,
    dtype: Dtype | None,
    threads: int | None,
    isa: str | None,
) -> Engine | None:
    """Return the native engine, or None if it is not there and need not be."""
    if wanted not in (None, "native"):
        raise UsageError(f"engine = {wanted!r}: it must be 'native' or 'torch'")
    if device != "cpu":
        raise UsageError(f"the native engine runs on the CPU, not on {device}: use engine 'torch'")
    try:
        from backgpt.engine.native_engine import NativeEngine
    except ImportError:
        if wanted is None:
            return None
        raise UsageError(
            "this installation has no native engine: install a C++ compiler and backgpt again, "
            "or use engine 'torch'"
        ) from None
    stored: Dtype = "int8" if folder.storage == "int8" else "float32"
    return NativeEngine(
        folder.config, folder.weights, dtype=dtype or stored, threads=threads, isa=isa
    )


def _torch_engine(folder: ModelFolder, device: str) -> Engine:
    try:
        from backgpt.devices import Ranks, choose_device
        from backgpt.engine.torch_engine import TorchEngine
        from backgpt.model import Transformer
    except ModuleNotFoundError:
        raise MissingExtraError("running a model without the native engine", "train") from None

    model = Transformer(folder.config)
    model.load_arrays(dequantized(folder.weights) if folder.storage == "int8" else folder.weights)
    return TorchEngine(model, device=choose_device(device, Ranks()))


def _at_least_1(n: int) -> int:
    if n < 1:
        raise UsageError(f"n = {n}: ask for at least 1 text")
    return n


def _seed(seed: int | None) -> int:
    if seed is not None and seed < 0:
        raise UsageError(f"seed = {seed}: it must be 0 or more")
    return secrets.randbits(32) if seed is None else seed

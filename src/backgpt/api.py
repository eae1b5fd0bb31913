"""What people import: load a model, write toward an ending, stream, score.

    model = backgpt.load("runs/story")
    for story in model.write(ending="The end.", n=3):
        print(story.text)

The command line goes through here; the server makes its prompts here and runs the jobs itself.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from os import PathLike
from reprlib import repr as shown
from typing import get_args

from backgpt.alternatives import Alternative, find_alternatives
from backgpt.around import Surrounded, surround
from backgpt.bridge import BRIDGES_TRIED, Bridge, best_bridges, check_given, join, room_for_middle
from backgpt.builtin import DEFAULT, find
from backgpt.chat import Template
from backgpt.checks import check_text, texts, whole
from backgpt.engine import Dtype, Engine
from backgpt.engines import EngineName, open_engine
from backgpt.errors import UsageError
from backgpt.generate import Text, collect, in_model_order, pieces, texts_of
from backgpt.hints import NO_HINTS, Hints, Length
from backgpt.language import Language, Prompt
from backgpt.messages import Message, Role, take_turns
from backgpt.model_folder import SeenData, read_model
from backgpt.order import Direction, Unit
from backgpt.rank import Method, Ranked, best_of_texts, check_method, rank_answers
from backgpt.rewind import Transcript, rewind
from backgpt.running import Job, room_for
from backgpt.sampling import Sampling
from backgpt.score import Score, WordScore, score_texts, word_scores
from backgpt.shape import ModelConfig
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer
from backgpt.verse import LINES_TRIED, Verse, rhyming_words, write_verse


@dataclass(frozen=True)
class Model:
    """A model ready to run. Make one with `load`.

    `takes_hints` says that it was trained to obey hints, `takes_chat` that it was tuned on
    conversations; `trained`, known of a checkpoint only, what it has seen.
    """

    config: ModelConfig
    language: Language
    engine: Engine
    takes_hints: bool = False
    takes_chat: bool = False
    trained: SeenData | None = None

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
        best_of: int = 1,
        rank_by: Method | None = None,
        twin: "Model | None" = None,
        report: Callable[[Sequence[Text]], None] = lambda texts: None,
    ) -> list[Text]:
        """Write `n` texts that lead to `ending`, or, with a forward model, go on from `opening`.

        The `words` that should occur are made likelier until they do, and the text's edge where it
        has the `length` ("short", "medium" or "long") that it should have (see `wanted`, the
        module). A model that takes hints is told both as well, and, running backward, the `opening`
        that the text should begin with. These are wishes: `Hints.obeyed_by` tells.
        With `continues` some text follows the ending (or precedes the opening): it does not stand
        at the edge of the text. Without `max_new_tokens` the context is the limit; a text also
        ends where one of the texts `stop` is written, which are not part of it. The same `seed`
        gives the same texts; without one a new one is drawn and can be read from the result.
        `report` is called with every few of them as soon as they are finished.

        Each text is the best of `best_of` that are written: of those that obey most of what they
        were told, `rank_by` one direction or both (see `rank`, the module); without it the one that
        runs the other way, which finds the right text most often: a `twin`, or the model itself if
        it runs both ways; otherwise the model's own.
        Raises UsageError if the model runs the other way, the given text does not fit, or texts
        cannot be ranked so, or need not be.
        """
        n, best_of = whole("n", n, least=1), whole("best_of", best_of, least=1)
        if best_of == 1 and (rank_by is not None or twin is not None):
            raise UsageError(
                "rank_by and twin choose among the texts of best_of: give it as well, 2 or more"
            )
        other = self._twin(twin) if twin or self.language.told else None
        method = rank_by or (other or self).direction
        check_method(method, writer=self, twin=other)
        if best_of > 1 and (continues or stop):
            raise UsageError(
                "ranking is for whole texts: leave out 'best_of', or 'continues' and 'stop'"
            )
        job = self._job(
            self.prompt(ending, opening=opening, words=words, length=length, continues=continues),
            n=n * best_of,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            stop=stop,
        )
        hints = Hints(opening if self.direction == "backward" else None, tuple(words), length)
        groups: Iterable[list[Text]] = texts_of(self.engine, [job])
        if best_of > 1:
            texts = chain.from_iterable(groups)
            judge = partial(best_of_texts, method=method, writer=self, twin=other, hints=hints)
            groups = ([judge(list(islice(texts, best_of)))] for _ in range(n))
        written: list[Text] = []
        for group in groups:
            report(group)
            written += group
        return written

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
        """Return an iterator of the pieces of one text as they are written, after what was given.

        A backward model's pieces go in front of the text so far, a forward model's behind it:
        the given text and all pieces so joined are the `text` that `write` returns. Closing the
        iterator stops the computation. Raises as `write`, at once.
        """
        job = self._job(
            self.prompt(ending, opening=opening, words=words, length=length, continues=continues),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            stop=stop,
        )
        room_for(self.engine, job)
        return pieces(self.engine, job)

    def bridge(
        self,
        opening: str,
        ending: str,
        n: int = BRIDGES_TRIED,
        *,
        twin: "Model | None" = None,
        words: Sequence[str] = (),
        length: Length | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Bridge]:
        """Write `n` texts from `opening` to `ending`, both byte for byte, the best first.

        Best are, of those that obey most of what they were told, those that are joined best.
        What the model writes from one of them is cut where it goes best with the other, of the
        places where most is obeyed (see `bridge`, the module), judged by it and its `twin`, which a
        model that runs both ways is itself. Raises UsageError without a twin, for an empty text, or
        one that does not fit.
        """
        check_given(opening, ending)
        other = self._twin(twin)
        room = room_for_middle(self, other, opening, ending)
        job = self._job(
            self.bridge_prompt(opening, ending, words=words, length=length),
            n=n,
            max_new_tokens=room if max_new_tokens is None else min(room, max_new_tokens),
            sampling=sampling,
            seed=seed,
        )
        far = opening if self.direction == "backward" else ending
        hints = Hints(words=tuple(words), length=length)
        found = finished(join(self, other, collect(self.engine, job), far, hints))
        return [found[place] for place in best_bridges(found, hints)]

    def surround(
        self,
        phrase: str,
        n: int = 1,
        *,
        twin: "Model | None" = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Surrounded]:
        """Write `n` texts around `phrase`, which stands somewhere in them, byte for byte.

        The backward model writes to its left, then the forward one, having read that, to its
        right; each at most `max_new_tokens`. Raises UsageError without a twin, for an empty phrase,
        or one that does not fit.
        """
        check_text("phrase", phrase)
        if not phrase.strip():
            raise UsageError("the phrase is empty: give some words")
        backward, forward = sorted((self, self._twin(twin)), key=lambda model: model.direction)
        return surround(
            backward,
            forward,
            phrase,
            n=whole("n", n, least=1),
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            seed=_seed(seed),
        )

    def verse(
        self,
        end_words: Sequence[str],
        *,
        n: int = 1,
        candidates: int = LINES_TRIED,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> list[Verse]:
        """Write `n` verses of lines that end with `end_words`, each the best of `candidates`.

        Raises UsageError as `verse.write_verse`: for a forward model, no words, or an empty one.
        """
        first_seed = _seed(seed)
        return [
            write_verse(
                self,
                end_words,
                candidates=candidates,
                sampling=sampling or Sampling(),
                seed=first_seed + number * len(end_words),
            )
            for number in range(whole("n", n, least=1))
        ]

    def rhyming_words(self, word: str, n: int, *, seed: int | None = None) -> list[str]:
        """Return `word` and `n - 1` perfect rhymes that the model knows, drawn by `seed`.

        Raises UsageError if there are fewer, MissingExtraError without the pronouncing dictionary.
        """
        check_text("word", word)
        return rhyming_words(self, word, n, seed=_seed(seed))

    def rank(self, question: str, answers: Sequence[str]) -> list[Ranked]:
        """Return `answers` by how well they explain `question`, the best first: reverse reward.

        The score is log p(question | answer) in nats, which only a backward model can tell: of
        messages for one tuned on conversations, otherwise of a text that begins with `question`
        and goes on with the answer. Raises UsageError for a forward model, no answers, an empty
        text, or one that does not fit.
        """
        return rank_answers(self, question, answers, in_chat=self.takes_chat)

    def ask(
        self,
        answer: str | Sequence[Message],
        *,
        context: str = "",
        n: int = 1,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Text]:
        """Write `n` questions that `answer` could be the answer to; `context` is what it is about.

        Several messages are the rest of a conversation in reading order, the answer first.
        Raises UsageError for a forward model, an empty answer, messages that do not take turns, or
        what does not fit.
        """
        check_text("context", context)
        messages = _messages_of(answer, "assistant")
        if messages and messages[0].role != "assistant":
            raise UsageError("the first message is what is asked for: give an assistant's answer")
        prompt = self._template.before(messages, context=context)
        job = self._job(
            prompt, n=n, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop
        )
        return collect(self.engine, job)

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
        check_text("context", context)
        check_text("question", question)
        prompt = self._template.reply(question, context=context)
        job = self._job(
            prompt, n=n, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop
        )
        return collect(self.engine, job)

    def rewind(
        self,
        message: str | Sequence[Message],
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

        Several messages are the end of the conversation in reading order. `max_new_tokens` is for
        each message that is written. Raises UsageError as `ask`.
        """
        check_text("context", context)
        given, first_seed = _messages_of(message, role), _seed(seed)
        whole("turns", turns, least=1)
        return [
            rewind(
                self.engine,
                self._template,
                given,
                turns=turns,
                context=context,
                sampling=sampling or Sampling(),
                max_new_tokens=max_new_tokens,
                seed=first_seed + number * turns,
            )
            for number in range(whole("n", n, least=1))
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

        Raises UsageError for a forward model, an ending that does not fit, or hints that the model
        cannot be told.
        """
        prompt = self.alternatives_prompt(ending, words=words, length=length, continues=continues)
        return finished(find_alternatives(self, prompt, n))

    def score(self, text: str, *, overlap: int = 0) -> Score:
        """Return how likely the model finds `text` as a whole document.

        One longer than the context is scored in windows, each with up to `overlap` ids more of
        context. Raises UsageError if `overlap` is not from 0 to less than the context.
        """
        check_text("text", text)
        return self.score_all([text], overlap=overlap)[0]

    def score_all(self, texts: Sequence[str], *, overlap: int = 0) -> list[Score]:
        """Score many documents at once; the same results, faster. Raises as `score`."""
        return score_texts(self, texts, overlap=overlap)

    def word_scores(self, text: str, score: Score) -> list[WordScore]:
        """Return what `score` says of each word of its `text`; the words join to the text.

        Raises UsageError if the score is that of another text.
        """
        check_text("text", text)
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

    def _twin(self, given: "Model | None") -> "Model":
        """Return the model that runs the other way. Raises UsageError if there is none."""
        if given is None:
            if self.language.told:
                return self.turned()
            raise UsageError(
                f"this model only runs {self.direction}, and this takes both ways: give its twin"
            )
        if not isinstance(given, Model):
            raise UsageError(f"twin = {shown(given)}: give a model, as load returns it")
        check_twins(self, given)
        return given

    @property
    def _template(self) -> Template:
        return Template(self.language)

    def _job(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        max_new_tokens: int | None,
        sampling: Sampling | None,
        seed: int | None,
        stop: Sequence[str] = (),
    ) -> Job:
        """Return what is to be written, with what was not given filled in."""
        return Job(
            self.language,
            prompt,
            n=n,
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
        for name, text in (("ending", ending), ("opening", opening)):
            if text is not None:
                check_text(name, text)
        words = texts("words", words)
        backward = self.direction == "backward"
        given, other = (ending, opening) if backward else (opening, ending)
        wanted, unwanted = ("ending", "opening") if backward else ("opening", "ending")
        if other is not None and not (backward and self.takes_hints):
            raise UsageError(
                f"this is a {self.direction} model: it starts from an {wanted}, not an {unwanted}"
            )
        hints = Hints(opening=opening if backward else None, words=words, length=length)
        if hints and continues:
            raise UsageError("hints are for whole texts: leave them out, or 'continues'")
        if given is None and not hints:
            raise UsageError(f"this is a {self.direction} model: give it an {wanted}")
        told = hints if self.takes_hints else NO_HINTS
        prompt = self.language.prompt(given or "", at_edge=not continues, hints=told)
        if length is not None and not prompt.stops.later:
            raise UsageError("this model has no control id that ends a text: leave out length")
        return replace(prompt, words=hints.missing_words(given or ""), length=length)

    def alternatives_prompt(
        self,
        ending: str,
        *,
        words: Sequence[str] = (),
        length: Length | None = None,
        continues: bool = False,
    ) -> Prompt:
        """Return the prompt for the words before `ending`, which nothing makes likelier.

        Only a model that takes hints can be told of any. Raises as `alternatives`.
        """
        for name, value in (("words", words), ("length", length)):
            if value and not self.takes_hints:
                raise UsageError(f"this model was trained without hints: leave out {name}")
        return self.prompt(ending, words=words, length=length, continues=continues)

    def bridge_prompt(
        self,
        opening: str,
        ending: str,
        *,
        words: Sequence[str] = (),
        length: Length | None = None,
    ) -> Prompt:
        """Return the prompt for a bridge: the text that is written from, the other as a hint.

        Only a backward model that takes hints is told. Raises as `prompt`.
        """
        if self.direction == "forward":
            prompt = self.prompt(opening=opening, words=words, length=length)
        else:
            known = opening if self.takes_hints else None
            prompt = self.prompt(ending, opening=known, words=words, length=length)
        given = f"{opening}\n{ending}"
        return replace(prompt, words=Hints(words=prompt.words).missing_words(given))


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
    """Load a model: by its name, or from a model folder, checkpoint or run folder.

    Without `path` it is the built-in model "stories"; a local folder called like a built-in model
    is `./stories`, or a Path. "owner/name" or "owner/name@revision", if no path here, is downloaded
    from the Hugging Face hub. Of a run folder it is the best checkpoint. A model trained both ways
    runs in `direction`, backward if none is given.

    `engine` is "native" (C++, on the CPU) or "torch"; without one, native where it can be. The
    `device` "auto" is a GPU that torch sees, or else the CPU. The native engine computes in
    `dtype`, without one in int8 for a model stored so and in float32 for others, with `threads` at
    most and the instruction set `isa`, by default the fastest.

    Raises DataError, UsageError or CorruptFileError if it cannot be read as one or does not run
    so, MissingExtraError without an engine or the hub's library, and BackgptError if the hub is
    out of reach.
    """
    if direction not in (None, *get_args(Direction)):
        raise UsageError(
            f"direction = {shown(direction)}: choose {' or '.join(get_args(Direction))}"
        )
    folder = read_model(find(path), dequantize=False)
    by_direction = {language.direction: language for language in folder.languages}
    if direction is not None and direction not in by_direction:
        raise UsageError(
            f"{path or DEFAULT} is a {folder.direction} model: it does not run {direction}"
        )
    language = by_direction[direction] if direction else folder.languages[0]
    made = open_engine(folder, engine, device, dtype=dtype, threads=threads, isa=isa)
    return Model(folder.config, language, made, folder.hints, folder.chat, folder.trained)


def check_twins(model: Model, twin: Model) -> None:
    """Raise UsageError unless two models run against each other with the same tokenizer."""
    if model.direction == twin.direction:
        raise UsageError(f"both models run {model.direction}: give one that runs the other way")
    if model.tokenizer.sha256 != twin.tokenizer.sha256:
        raise UsageError(
            "the twins have different tokenizers, so that they do not compare: give two that were "
            "trained on the same prepared data"
        )


def _seed(seed: int | None) -> int:
    return secrets.randbits(32) if seed is None else whole("seed", seed, least=0)


def _messages_of(given: str | Sequence[Message], role: Role) -> list[Message]:
    """Return what was said last, by `role` if it is one text. Raises UsageError for no message."""
    if isinstance(given, str):
        given = [Message(role, given)]
    if not isinstance(given, Iterable) or not all(isinstance(one, Message) for one in given):
        raise UsageError(f"{shown(given)} is no message: give a text, or a list of Message")
    if not take_turns(given):
        raise UsageError("users and assistants take turns: so must messages")
    return list(given)

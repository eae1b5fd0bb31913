"""The choices of a completion: from what is written to what is told.

Of plain texts all are told. Bridges are joined to their other text, and the best of them are told;
so are the best of texts of which more are written than asked for (`best_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from backgpt.api import Model
from backgpt.bridge import BRIDGES_TRIED, best_bridges, join
from backgpt.generate import Drawing
from backgpt.hints import Hints, words_of
from backgpt.rank import best_places
from backgpt.server.answers import ChoiceDetails, CompletionChoice, Obeyed, TokenLogprobs
from backgpt.server.prompts import Given
from backgpt.server.schema import MOST_TRIED, CompletionRequest
from backgpt.server.scores import IDS_IN_A_SLICE
from backgpt.server.tokens import Token, given_tokens, token_logprobs
from backgpt.slices import Slices


@dataclass
class Choices:
    """What is told of one request: `asked.count` choices of each of the `given` texts, in order."""

    asked: CompletionRequest
    model: Model
    given: list[Given]
    given_tokens: list[list[Token]] = field(default_factory=list)
    """Those of the given texts, if they are to be told."""

    @property
    def of_bridges(self) -> bool:
        """Whether what is written is joined to another text."""
        return self.given[0].far is not None

    @property
    def ranked(self) -> bool:
        """Whether only the best of plain texts are told of."""
        return not self.of_bridges and self.n_written > self.asked.count

    @property
    def n_written(self) -> int:
        """How many texts are written for each given one; of bridges as many as `sample` does."""
        tried = min(self.asked.count * BRIDGES_TRIED, MOST_TRIED)
        return self.asked.best_of or (tried if self.of_bridges else self.asked.count)

    @property
    def numbers(self) -> list[int]:
        """Which given text each choice is of."""
        return [number for number in range(len(self.given)) for _ in range(self.asked.count)]

    def score_given(self) -> Slices[list[list[Token]]]:
        """Score the given texts, slice by slice."""
        tokens = yield from given_tokens(
            self.model.engine,
            [one.prompt for one in self.given],
            n_likeliest=self.asked.logprobs or 0,
        )
        return [
            of_text if one.marker is None else [Token(one.marker, None), *of_text]
            for one, of_text in zip(self.given, tokens, strict=True)
        ]

    def of_given(self, seed: int) -> list[CompletionChoice]:
        """Return the given texts alone, scored if that was asked."""
        return [
            CompletionChoice(
                index=index,
                text=one.prompt.text,
                finish_reason="stop" if one.whole else "length",
                logprobs=self._logprobs(
                    self._given_tokens(index), one.prompt.text, one.prompt.text
                ),
                backgpt=ChoiceDetails(seed=seed, logprob=0.0, n_tokens=0),
            )
            for index, one in enumerate(self.given[number] for number in self.numbers)
        ]

    def of_text(self, index: int, drawing: Drawing) -> CompletionChoice:
        """Return what is told of one text."""
        one, text = self.given[index // self.asked.count], drawing.result
        edge = [drawn for drawn in drawing.drawn[-1:] if drawn.id_ in one.prompt.stops]
        written = [
            Token(drawn.id_, drawn.logprob, drawn.likeliest)
            for drawn in (*drawing.drawn[: len(text.ids)], *edge)
        ]
        if self.asked.echo:
            shown, uncut = text.text, drawing.whole
            tokens = [*self._given_tokens(index), *written]
        else:
            shown, uncut, tokens = drawing.written, drawing.uncut, written
        return CompletionChoice(
            index=index,
            text=shown,
            finish_reason=text.finish_reason,
            logprobs=self._logprobs(
                tokens,
                shown,
                uncut,
                after="" if self.asked.echo or one.prompt.joins_on else text.given,
            ),
            token_ids=text.ids.tolist() if self.asked.return_token_ids else None,
            backgpt=ChoiceDetails(
                seed=text.seed,
                logprob=text.logprob,
                n_tokens=text.n_tokens,
                obeyed=_obeyed(one.hints, text.text),
            ),
        )

    def best(self, drawings: Sequence[Drawing]) -> Slices[list[CompletionChoice]]:
        """Return the choices that are best of all that was written, slice by slice."""
        return (yield from (self._bridges if self.of_bridges else self._best_texts)(drawings))

    def _bridges(self, drawings: Sequence[Drawing]) -> Slices[list[CompletionChoice]]:
        [one], texts = self.given, [drawing.result for drawing in drawings]
        joined = yield from join(
            self.model,
            self.model.turned(),
            texts,
            one.far or "",
            one.hints,
            together=IDS_IN_A_SLICE,
        )
        pairs = [(joined[place], texts[place]) for place in best_bridges(joined, one.hints)]
        return [
            CompletionChoice(
                index=index,
                text=bridge.text if self.asked.echo else bridge.middle,
                finish_reason=bridge.finish_reason,
                backgpt=ChoiceDetails(
                    seed=bridge.seed,
                    logprob=bridge.logprob,
                    n_tokens=text.n_tokens,
                    obeyed=_obeyed(one.hints, bridge.text),
                ),
            )
            for index, (bridge, text) in enumerate(pairs[: self.asked.count])
        ]

    def _best_texts(self, drawings: Sequence[Drawing]) -> Slices[list[CompletionChoice]]:
        twin = self.model.turned() if self.model.language.told else None
        choices: list[CompletionChoice] = []
        for first in range(0, len(drawings), self.n_written):
            group = drawings[first : first + self.n_written]
            one = self.given[first // self.n_written]
            places = yield from best_places(
                [drawing.result for drawing in group],
                self.asked.count,
                (twin or self.model).direction,
                writer=self.model,
                twin=twin,
                hints=one.hints,
                together=IDS_IN_A_SLICE,
            )
            for place in places:
                choices.append(self.of_text(len(choices), group[place]))
        return choices

    def _given_tokens(self, index: int) -> list[Token]:
        """Return the tokens of the text that choice `index` was given, if they are to be told."""
        return self.given_tokens[index // self.asked.count] if self.given_tokens else []

    def _logprobs(
        self, tokens: Sequence[Token], text: str, uncut: str, *, after: str = ""
    ) -> TokenLogprobs | None:
        if self.asked.logprobs is None:
            return None
        return token_logprobs(
            self.model.language,
            tokens,
            text,
            uncut=uncut,
            after=after if self.model.direction == "forward" else "",
            n_likeliest=self.asked.logprobs,
        )


def _obeyed(hints: Hints, text: str) -> Obeyed | None:
    """Return whether a text does as it was told, None if it was told nothing."""
    if not hints:
        return None
    obeyed = hints.obeyed_by(text)
    return Obeyed(
        words=obeyed.get("words"),
        length=obeyed.get("length"),
        missing=list(hints.missing_words(text)) if hints.words else None,
        n_words=len(words_of(text)) if hints.length else None,
    )

"""Log-probabilities token by token, in OpenAI's shape: tokens in reading order, joined a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from backgpt.engine import Engine, FloatArray
from backgpt.language import Language, Prompt
from backgpt.order import ModelIds, RightwardDecoder
from backgpt.running import Likeliest
from backgpt.sampling import likeliest
from backgpt.server.answers import TokenLogprobs
from backgpt.slices import Slices


@dataclass(frozen=True)
class Token:
    """One id, its log-probability in nats, None where it was not predicted, and the likeliest."""

    id_: int
    logprob: float | None
    likeliest: Likeliest = ()


def given_tokens(
    engine: Engine, prompts: Sequence[Prompt], *, n_likeliest: int
) -> Slices[list[list[Token]]]:
    """Score the own texts of prompts, each in model order, slice by slice.

    The numbers are those of scoring, whether or not the likeliest are asked for. The first id is
    not predicted where nothing is read before it. Raises UsageError if a prompt does not fit.
    """
    tokens = [[Token(int(id_), None) for id_ in one.ids[one.n_first :]] for one in prompts]
    predicted = [number for number, one in enumerate(prompts) if len(one.ids) > _n_read(one)]
    lengths = [len(one.ids) for one in prompts]
    for numbers in _together(predicted, lengths, most=engine.block_size):
        yield
        values = engine.score([prompts[number].ids for number in numbers])
        texts = [
            _Predicted(prompts[number], of_text)
            for number, of_text in zip(numbers, values, strict=True)
        ]
        tops = yield from _likeliest(engine, texts, n_likeliest)
        for number, text, top in zip(numbers, texts, tops, strict=True):
            scored = map(Token, text.ids, text.logprobs, top)
            tokens[number][len(tokens[number]) - len(text.ids) :] = scored
    return tokens


class _Predicted:
    """What is read of a prompt first, and its ids after that with their log-probabilities."""

    def __init__(self, prompt: Prompt, values: FloatArray) -> None:
        first = _n_read(prompt)
        self.read = prompt.ids[:first]
        self.ids: list[int] = prompt.ids[first:].tolist()
        self.logprobs: list[float] = values[first - 1 :].tolist()


def _n_read(prompt: Prompt) -> int:
    """Return how many ids are read before the first that is predicted."""
    return max(prompt.n_first, 1)


def _together(numbers: Sequence[int], lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Yield the numbers in groups of similar lengths: of `most` ids at most, or of one text."""
    group: list[int] = []
    for number in sorted(numbers, key=lambda number: lengths[number]):
        if group and sum(lengths[one] for one in group) + lengths[number] > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _likeliest(
    engine: Engine, texts: Sequence[_Predicted], n: int
) -> Slices[list[list[Likeliest]]]:
    """Return the `n` likeliest ids at each place of each text, all read in step."""
    found: list[list[Likeliest]] = [[] if n else [()] * len(text.ids) for text in texts]
    if not n:
        return found
    rows: list[int] = []
    logits: list[FloatArray] = []
    try:
        for text in texts:
            [row], after = engine.prefill(text.read)
            rows.append(row)
            logits.append(after)
            yield
        for place in range(max(len(text.ids) for text in texts)):
            running = [number for number, text in enumerate(texts) if place < len(text.ids)]
            if place:
                before = [texts[number].ids[place - 1] for number in running]
                logits = list(engine.step([rows[number] for number in running], before))
            for number, after in zip(running, logits, strict=True):
                scores = after.astype(np.float64)
                found[number].append(likeliest(scores, n, scores))
            yield
    finally:
        engine.release(rows)
    return found


def token_logprobs(
    language: Language,
    tokens: Sequence[Token],
    text: str,
    *,
    uncut: str,
    after: str = "",
    n_likeliest: int,
) -> TokenLogprobs:
    """Return `tokens`, which are in model order, as those of `text`.

    They make the text `uncut`, behind the text `after`, and `text` is what is left of it at the
    given side. The strings join to the text: a character of several tokens stands with the last of
    them, a marker is an empty one, and tokens of what was cut off are left out.
    """
    ids = ModelIds(np.array([token.id_ for token in tokens], dtype=np.int64))
    in_order = [tokens[int(place)] for place in language.order.permutation(ids)]
    decoder = RightwardDecoder(after=after, added=language.tokenizer.added_spaces)
    strings = [decoder.push(language.tokenizer.token_bytes[token.id_]) for token in in_order]
    missing = uncut[sum(map(len, strings)) :]  # a space before the given text, a broken character
    if strings:
        strings[-1] += missing
    cut = len(uncut) - len(text) if language.direction == "backward" else 0
    found: list[tuple[Token, str, int]] = []
    end = -cut
    for token, string in zip(in_order, strings, strict=True):
        start, end = end, end + len(string)
        shown = text[max(start, 0) : max(end, 0)]
        if shown or len(text) == len(uncut) or (not string and 0 <= start < len(text)):
            found.append((token, shown, max(start, 0)))
    return TokenLogprobs(
        tokens=[shown for _, shown, _ in found],
        token_logprobs=[token.logprob for token, _, _ in found],
        top_logprobs=[_top(language, token, shown) for token, shown, _ in found]
        if n_likeliest
        else None,
        text_offset=[offset for _, _, offset in found],
    )


def _top(language: Language, token: Token, shown: str) -> dict[str, float] | None:
    """Return the likeliest tokens by what they are, and the one that is there."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for id_, logprob in token.likeliest:
        name = shown if id_ == token.id_ else language.tokenizer.name_of(id_)
        if name == shown and id_ != token.id_:
            name = f"id {id_}"  # another one that looks the same here
        top[name] = max(logprob, top.get(name, logprob))
    return {**top, shown: token.logprob}

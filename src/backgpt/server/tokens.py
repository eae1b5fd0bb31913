"""Log-probabilities token by token, in OpenAI's shape: tokens in reading order, joined a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backgpt.engine import Engine
from backgpt.language import Language, Prompt
from backgpt.order import ModelIds, RightwardDecoder
from backgpt.running import Likeliest
from backgpt.sampling import likeliest, logprob_of
from backgpt.server.answers import TokenLogprobs
from backgpt.slices import Slices


@dataclass(frozen=True)
class Token:
    """One id, its log-probability in nats, None where it was not predicted, and the likeliest."""

    id_: int
    logprob: float | None
    likeliest: Likeliest = ()


def given_tokens(engine: Engine, prompt: Prompt, *, n_likeliest: int) -> Slices[list[Token]]:
    """Score a prompt's own text, in model order, slice by slice, as if it were being written.

    The first id is not predicted where nothing is read before it. Raises UsageError if the prompt
    does not fit the context.
    """
    ids = [int(id_) for id_ in prompt.ids]
    first = max(prompt.n_first, 1)
    tokens = [Token(id_, None) for id_ in ids[prompt.n_first : first]]
    if len(ids) <= first:
        return tokens
    if not n_likeliest:
        yield
        [values] = engine.score([prompt.ids])
        of_text = zip(ids[first:], values[first - 1 :].tolist(), strict=True)
        return tokens + [Token(id_, logprob) for id_, logprob in of_text]
    rows, logits = engine.prefill(prompt.ids[:first])
    try:
        for place, id_ in enumerate(ids[first:], start=first + 1):
            scores = logits.astype(np.float64)
            top = likeliest(scores, n_likeliest, scores)
            tokens.append(Token(id_, logprob_of(id_, scores), top))
            yield
            if place < len(ids):
                [logits] = engine.step(rows, [id_])
    finally:
        engine.release(rows)
    return tokens


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
    them, and tokens of what was cut off are left out.
    """
    ids = ModelIds(np.array([token.id_ for token in tokens], dtype=np.int64))
    in_order = [tokens[int(place)] for place in language.order.permutation(ids)]
    decoder = RightwardDecoder(after=after)
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
        if shown or (not string and 0 <= start < len(text)):
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
        top[name] = max(logprob, top.get(name, logprob))
    return {**top, shown: token.logprob}

"""From a completion's `prompt` and `suffix` to what a model goes on from.

suffix            the ending
prompt            the ending as well, or the opening for a forward model
prompt, suffix    how the text should begin, and its ending: a bridge, for models with hints
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from backgpt.api import Model
from backgpt.hints import Hints
from backgpt.language import Prompt
from backgpt.order import ModelIds, ReadingIds
from backgpt.server.failures import ApiError
from backgpt.server.schema import CompletionRequest


@dataclass(frozen=True)
class Given:
    """One given text: its prompt, what was asked of the text, and the opening of a bridge."""

    prompt: Prompt
    hints: Hints
    opening: str = ""


def check_length(model: Model, *texts: str | None, param: str) -> None:
    """Raise ApiError for texts of more characters than could ever be read, before they are cut."""
    size, count = model.engine.block_size, sum(len(text) for text in texts if text)
    if count > size and count > size * max(map(len, model.tokenizer.token_bytes)):
        raise ApiError(
            400, f"{count:,} characters: the model reads at most {size} ids", param=param
        )


def given_texts(asked: CompletionRequest, model: Model) -> list[Given]:
    """Return the given texts of a request. Raises UsageError or ApiError if there is none."""
    prompt, suffix = asked.prompt, asked.suffix
    if isinstance(prompt, list):
        if suffix:
            raise ApiError(400, "suffix goes with one prompt, a text", param="suffix")
        return [
            _given(asked, model, ending=one)
            if isinstance(one, str)
            else _given_ids(asked, model, one)
            for one in _texts_or_ids(prompt)
        ]
    if not suffix:  # OpenAI's client sends an empty one for none
        return [_given(asked, model, ending=suffix if prompt is None else prompt)]
    if not prompt:
        if model.direction == "forward":
            raise ApiError(400, "a forward model goes on from a prompt", param="suffix")
        return [_given(asked, model, ending=suffix)]
    if model.direction == "forward" or not model.takes_hints:
        raise ApiError(
            400,
            "prompt and suffix together need a backward model with hints: leave one out",
            param="prompt",
        )
    return [_given(asked, model, ending=suffix, opening=prompt)]


def _given(
    asked: CompletionRequest, model: Model, *, ending: str | None, opening: str | None = None
) -> Given:
    """Return one given text; `ending` stands for the opening of a forward model."""
    ours = asked.backgpt
    texts = (ending, opening, *ours.words)
    check_length(model, *texts, param="prompt" if asked.prompt else "suffix")
    hints = Hints(opening=opening, words=tuple(ours.words), length=ours.length)
    if model.direction == "forward":
        ending, opening = None, ending
    prompt = model.prompt(
        ending,
        opening=opening,
        words=ours.words,
        length=ours.length,
        continues=ours.continues,
    )
    return Given(prompt, hints, opening=hints.opening or "")


def _given_ids(asked: CompletionRequest, model: Model, ids: Sequence[int]) -> Given:
    """Return a text that is given by its ids, in reading order, without control ids."""
    tokenizer, size = model.tokenizer, model.engine.block_size
    if len(ids) > size:
        raise ApiError(400, f"{len(ids):,} ids: the model reads at most {size}", param="prompt")
    for id_ in ids:
        if id_ >= tokenizer.vocab_size or not tokenizer.has_text[id_]:
            raise ApiError(400, f"id {id_} stands for no text in this model", param="prompt")
    reading = ReadingIds(np.array(ids, dtype=np.int64))
    given = _given(asked, model, ending=tokenizer.decode(reading))
    prompt = given.prompt
    first = prompt.ids[: prompt.n_first]
    own_edge = not tokenizer.token_bytes[ids[0]].startswith(b" ")
    return replace(
        given,
        prompt=replace(
            prompt,
            ids=ModelIds(np.concatenate((first, model.language.order.to_model(reading)))),
            joins_on=prompt.joins_on if model.direction == "forward" else own_edge,
        ),
    )


def _texts_or_ids(prompt: Sequence[object]) -> list[str | list[int]]:
    """Return a list of prompts; a list of ids is one."""
    if isinstance(prompt[0], int):
        return [[int(id_) for id_ in prompt if isinstance(id_, int)]]
    return [one for one in prompt if isinstance(one, str | list)]

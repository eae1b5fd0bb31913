"""From a completion's `prompt` and `suffix` to what a model goes on from.

suffix            the ending
prompt            the ending as well, or the opening for a forward model
prompt, suffix    how a text begins, and its ending: a bridge, for models that run both ways

A prompt of ids is in reading order, and a text's markers may be among them, `<|start|>` first and
`<|end|>` last. The one that the model begins with is read in any case. With the other one the text
is whole, and nothing is left to write.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from backgpt.api import Model
from backgpt.bridge import check_given, room_for_middle
from backgpt.hints import Hints
from backgpt.language import Prompt
from backgpt.order import ModelIds, ReadingIds, joined
from backgpt.server.failures import TOO_LONG, ApiError
from backgpt.server.schema import CompletionRequest


@dataclass(frozen=True)
class Given:
    """One given text: its prompt, and what was asked of the text.

    For a bridge `far` is the other text, which what is written is joined to, and `room` how many
    ids may be written.

    `marker` is the id the model begins with, where it belongs to what was given; `whole` says that
    the marker at the far edge was given as well, so that nothing is to be written.
    """

    prompt: Prompt
    hints: Hints
    far: str | None = None
    room: int | None = None
    marker: int | None = None
    whole: bool = False


def check_length(model: Model, *texts: str | None, param: str) -> None:
    """Raise ApiError for texts of more characters than could ever be read, before they are cut."""
    size, given = model.engine.block_size, [text for text in texts if text]
    count = sum(map(len, given))
    if count > size and count > size * max(map(len, model.tokenizer.token_bytes)):
        sample = max(given, key=len)[:size]
        about = size * len(sample) // len(model.tokenizer.encode(sample))
        raise ApiError(
            400,
            f"the given text is {count:,} characters long, the model reads at most {size} ids, "
            f"here about {round(about, 2 - len(str(about))):,} characters: give a shorter one",
            param=param,
            code=TOO_LONG,
        )


def given_texts(asked: CompletionRequest, model: Model) -> list[Given]:
    """Return the given texts of a request. Raises UsageError or ApiError if there is none."""
    prompt, suffix = asked.prompt, asked.suffix
    if isinstance(prompt, list):
        if suffix:
            raise ApiError(400, "suffix goes with one prompt, a text", param="suffix")
        return [
            _given_text(asked, model, one)
            if isinstance(one, str)
            else _given_ids(asked, model, one)
            for one in _texts_or_ids(prompt)
        ]
    if not suffix:  # OpenAI's client sends an empty one for none
        return [_given_text(asked, model, suffix if prompt is None else prompt)]
    if not prompt:
        if model.direction == "forward":
            raise ApiError(400, "a forward model goes on from a prompt", param="suffix")
        return [_given(asked, model, ending=suffix)]
    return [_bridge(asked, model, opening=prompt, ending=suffix)]


def _given(asked: CompletionRequest, model: Model, *, ending: str | None) -> Given:
    """Return one given text; `ending` stands for the opening of a forward model."""
    ours = asked.backgpt
    check_length(model, ending, *ours.words, param="prompt" if asked.prompt else "suffix")
    forward = model.direction == "forward"
    prompt = model.prompt(
        None if forward else ending,
        opening=ending if forward else None,
        words=ours.words,
        length=ours.length,
        continues=ours.continues,
    )
    return Given(prompt, _hints(asked))


def _bridge(asked: CompletionRequest, model: Model, *, opening: str, ending: str) -> Given:
    """Return what a bridge is written from, and what it is joined to."""
    ours = asked.backgpt
    refused = {
        "stop": asked.stops,
        "logprobs": asked.logprobs is not None,
        "return_token_ids": asked.return_token_ids,
        "backgpt.continues": ours.continues,
    }
    for name, value in refused.items():
        if value:
            raise ApiError(400, f"{name} does not go with prompt and suffix together", param=name)
    if not model.language.told:
        raise ApiError(
            400,
            f"prompt and suffix together need a model that runs both ways, this one only runs "
            f"{model.direction}: leave one out",
            param="prompt",
        )
    check_given(opening, ending)
    check_length(model, opening, ending, *ours.words, param="prompt")
    return Given(
        model.bridge_prompt(opening, ending, words=ours.words, length=ours.length),
        _hints(asked),
        far=opening if model.direction == "backward" else ending,
        room=room_for_middle(model, model.turned(), opening, ending),
    )


def _hints(asked: CompletionRequest) -> Hints:
    return Hints(words=tuple(asked.backgpt.words), length=asked.backgpt.length)


def _given_text(asked: CompletionRequest, model: Model, text: str | None) -> Given:
    """Return a text that is given as one. What looks like a marker in it is text."""
    if text and asked.echo and asked.logprobs is not None:
        for name in (model.tokenizer.name_of(id_) for id_ in _markers(model)):
            if text.startswith(name):  # lm-evaluation-harness would count tokens wrongly
                raise ApiError(
                    400,
                    f"the text begins with {name}, which is no marker in a text: send ids "
                    "(lm-evaluation-harness: tokenized_requests=True)",
                    param="prompt",
                )
    return _given(asked, model, ending=text)


def _given_ids(asked: CompletionRequest, model: Model, ids: Sequence[int]) -> Given:
    """Return a text that is given by its ids, in reading order, perhaps with its markers."""
    tokenizer, size = model.tokenizer, model.engine.block_size
    if len(ids) > size:
        raise ApiError(
            400,
            f"the given text is {len(ids):,} ids long, the model reads at most {size}: "
            "give a shorter one",
            param="prompt",
            code=TOO_LONG,
        )
    start, end = tokenizer.marker_ids
    starts, ends = ids[0] == start, ids[-1] == end and (len(ids) > 1 or start != end)
    if (starts or ends) and asked.backgpt.continues:
        raise ApiError(
            400,
            "a marker says where the text ends, backgpt.continues that it goes on: leave one out",
            param="prompt",
        )
    text_ids = ids[starts : len(ids) - ends]
    for id_ in text_ids:
        if id_ >= tokenizer.vocab_size or not tokenizer.has_text[id_]:
            known = " and ".join(f"{tokenizer.name_of(one)} ({one})" for one in _markers(model))
            hint = f"; of those that do not, only {known} may stand at an edge" if known else ""
            raise ApiError(400, f"id {id_} stands for no text in this model{hint}", param="prompt")
    reading = ReadingIds(np.array(text_ids, dtype=np.int64))
    given = _given(asked, model, ending=tokenizer.decode(reading))
    prompt, forward = given.prompt, model.direction == "forward"
    near, whole = (start, ends) if forward else (end, starts)
    edge = [ids[-1 if forward else 0]] if whole else []
    parts = (prompt.ids[: prompt.n_first], model.language.order.to_model(reading), edge)
    own_edge = not text_ids or not tokenizer.token_bytes[text_ids[0]].startswith(b" ")
    return replace(
        given,
        prompt=replace(
            prompt,
            ids=ModelIds(joined(*parts)),
            joins_on=not text_ids if forward else own_edge,
            begins_word=False,
        ),
        marker=near if starts or ends else None,
        whole=whole,
    )


def _markers(model: Model) -> list[int]:
    """Return the ids that mark the start and the end of a text, those that there are."""
    return [id_ for id_ in model.tokenizer.marker_ids if id_ is not None]


def _texts_or_ids(prompt: Sequence[object]) -> list[str | list[int]]:
    """Return a list of prompts; a list of ids is one."""
    if isinstance(prompt[0], int):
        return [[int(id_) for id_ in prompt if isinstance(id_, int)]]
    return [one for one in prompt if isinstance(one, str | list)]

"""The chat's report card: does it ask the right question, in the right order, and nothing else?

What `measure_chat.py` measures. Takes a backward chat model, its forward twin and held-out
conversations; gives figures that `card` defines. Everything follows from a seed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from backgpt.api import Model
from backgpt.card import ChatLoss, QuestionStatistics, Retrieved, Rewound
from backgpt.chat import Mode, Template
from backgpt.datasets.records import Conversation
from backgpt.errors import DataError
from backgpt.generate import Text, collect_all
from backgpt.hints import content_words, words_of
from backgpt.language import Prompt, Row
from backgpt.messages import Message, bytes_of
from backgpt.order import ModelIds, ReadingIds, joined
from backgpt.rewind import Transcript
from backgpt.running import Job
from backgpt.sampling import Sampling, softmax
from backgpt.score import bits_per_byte, sums_written

Matrix = npt.NDArray[np.float64]

MOST_NEW_TOKENS = 96  # of a question

ASKING_WORDS = frozenset(
    {"what", "who", "whom", "whose", "when", "where", "why", "which", "how", "is", "are", "was"}
    | {"were", "do", "does", "did", "can", "could", "should", "would", "will", "has", "have"}
    | {"give", "list", "write", "name", "tell", "describe", "explain", "classify", "identify"}
    | {"summarize", "extract", "provide", "create", "suggest", "compare", "find", "generate"}
    | {"make", "think", "compose", "choose", "select", "tag", "categorize", "label", "determine"}
    | {"separate", "define", "state", "discuss", "brainstorm", "design", "plan", "imagine"}
    | {"please", "from", "given", "based", "according", "using", "in", "if", "for", "on"}
)
"""First words of what reads as a question or an instruction; nearly all of Dolly's begin so."""

_LEAK = re.compile(
    r"<\|[a-z]+\|>|^\s*(?:user|assistant|system|human|bot)\s*:", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Pair:
    """A question and the answer to it, both by people."""

    question: str
    answer: str


def pairs_of(conversations: Sequence[Conversation]) -> list[Pair]:
    """Return the questions and answers that stand for themselves, without a context."""
    return [
        Pair(one.messages[0].text, one.messages[1].text)
        for one in conversations
        if one.begins_with_a_question and len(one.messages) == 2 and not one.context
    ]


def choose_pairs(model: Model, pairs: Sequence[Pair], n: int, *, seed: int) -> list[Pair]:
    """Return `n` of `pairs`, chosen by `seed` among those that leave room in the context.

    Raises DataError if there are fewer.
    """
    template, most = Template(model.language), model.engine.block_size - MOST_NEW_TOKENS
    longest = MOST_NEW_TOKENS - 2  # with the tags and markers beside it
    encode = model.tokenizer.encode
    fitting = [
        pair
        for pair in pairs
        if len(encode(pair.question)) <= longest
        and len(template.before([Message("assistant", pair.answer)]).ids) <= most
    ]
    if len(fitting) < n:
        raise DataError(f"{len(fitting)} of {len(pairs)} pairs fit the context, not {n}")
    return [fitting[i] for i in np.random.default_rng(seed).permutation(len(fitting))[:n]]


def question_row(model: Model, pair: Pair) -> Row:
    """Return the row in which a backward model writes a pair's question to its answer."""
    template = Template(model.language)
    prompt = template.before([Message("assistant", pair.answer)])
    return prompt.ids, template.written(prompt, pair.question)


def answer_row(model: Model, pair: Pair) -> Row:
    """Return the row in which a model, running either way, writes a pair's answer."""
    template = Template(model.language)
    prompt = template.reply(pair.question)
    return prompt.ids, template.written(prompt, pair.answer)


def measure_loss_of_mode(
    model: Model, mode: Mode, conversations: Sequence[Conversation]
) -> ChatLoss:
    """Return the loss on what is written in one mode; rows that do not fit are left out.

    `ask` writes the first question, `reply` the first answer, of conversations that begin with
    these; `rewind` all messages but the last and `<|start|>`. A context is given as a hint.
    """
    meant = [one for one in conversations if mode == "rewind" or one.begins_with_a_question]
    rows = _fitting(model, (_row_of(model, mode, one) for one in meant))
    return _loss(model, mode, rows, of=len(conversations))


def measure_whole(model: Model, conversations: Sequence[Conversation]) -> ChatLoss:
    """Return the loss of whole conversations, contexts left out, in the model's direction."""
    template, order = Template(model.language), model.language.order
    start, end = model.tokenizer.start_id, model.tokenizer.end_id
    first = len(model.language.lead) + 1

    def row(conversation: Conversation) -> _Scored:
        turns = template.turns(conversation.messages)
        ids = order.to_model(ReadingIds(joined([start], turns, [end])))
        whole = joined(model.language.lead, ids)
        row = ModelIds(whole[:first]), ModelIds(whole[first:])
        return _Scored(row, bytes_of(conversation.messages))

    rows = _fitting(model, map(row, conversations))
    return _loss(model, "whole", rows, of=len(conversations))


class _Scored(NamedTuple):
    """A row, and how many UTF-8 bytes the messages have that are written in it."""

    row: Row
    n_bytes: int


def _row_of(model: Model, mode: Mode, conversation: Conversation) -> _Scored:
    template = Template(model.language)
    *before, last = conversation.messages
    first, second = conversation.messages[:2]
    if mode == "reply":
        prompt = template.reply(first.text, context=conversation.context)
        return _Scored((prompt.ids, template.written(prompt, second.text)), bytes_of([second]))
    if mode == "ask":
        prompt = template.before([second], context=conversation.context)
        return _Scored((prompt.ids, template.written(prompt, first.text)), bytes_of([first]))
    prompt = template.before([last], context=conversation.context)
    reading = ReadingIds(joined([model.tokenizer.start_id], template.turns(before)))
    row = prompt.ids, model.language.order.to_model(reading)
    return _Scored(row, bytes_of(before))


def _fitting(model: Model, rows: Iterator[_Scored]) -> list[_Scored]:
    most = model.engine.block_size + 1
    return [one for one in rows if sum(map(len, one.row)) <= most]


def _loss(
    model: Model, what: Mode | Literal["whole"], rows: Sequence[_Scored], *, of: int
) -> ChatLoss:
    """Return the loss of the written part of `rows`, all that fit `of` as many conversations."""
    if not rows:
        raise DataError(f"none of {of} conversations fits the context")
    nats = -sum(sums_written(model, [one.row for one in rows]))
    n_tokens = sum(len(one.row[1]) for one in rows)
    n_bytes = sum(one.n_bytes for one in rows)
    return ChatLoss(
        what=what,
        direction=model.direction,
        conversations=len(rows),
        of=of,
        nats_per_token=nats / n_tokens,
        bits_per_byte=bits_per_byte(nats, n_bytes),
    )


def score_matrix(pairs: Sequence[Pair], row: Callable[[Model, Pair], Row], model: Model) -> Matrix:
    """Return log p in nats of what is written, (A, Q), for each answer with each question."""
    rows = [row(model, Pair(one.question, of.answer)) for of in pairs for one in pairs]
    return np.array(sums_written(model, rows), dtype=np.float64).reshape(len(pairs), len(pairs))


def without_prior(scores: Matrix) -> Matrix:
    """Return log p(question | answer), (A, Q), less the log of its mean over all answers.

    What is left is how much an answer speaks for a question, however likely it is in itself.
    """
    top = scores.max(axis=0)
    fair: Matrix = scores - top - np.log(np.exp(scores - top).mean(axis=0))
    return fair


def ranks(scores: Matrix) -> npt.NDArray[np.float64]:
    """Return the rank, from 1, of each answer's own question, (A,); equals share their place.

    Entry (i, j) says how well question j goes with answer i; its own is question i.
    """
    own = np.diagonal(scores)[:, None]
    better, as_good = (scores > own).sum(axis=1), (scores == own).sum(axis=1)  # itself included
    found: npt.NDArray[np.float64] = better + (as_good + 1) / 2
    return found


def retrieved(method: str, found: npt.NDArray[np.float64], *, candidates: int) -> Retrieved:
    """Return the figures of some ranks: how often the right question came first or in ten."""
    return Retrieved(
        method=method,
        answers=len(found),
        candidates=candidates,
        first=float((found <= 1).mean()),
        in_ten=float((found <= 10).mean()),
        mean_rank=float(found.mean()),
    )


def ask_all(model: Model, answers: Sequence[str], *, seed: int) -> list[Text]:
    """Write a question to each answer at the default settings, the number i with `seed` + i."""
    template = Template(model.language)
    prompts = [template.before([Message("assistant", answer)]) for answer in answers]
    return write_all(model, prompts, seed=seed, max_new_tokens=MOST_NEW_TOKENS)


def write_all(
    model: Model, prompts: Sequence[Prompt], *, seed: int, max_new_tokens: int
) -> list[Text]:
    """Write one text to each prompt at the default settings, the number i with `seed` + i."""
    written = collect_all(
        model.engine,
        [
            Job(
                model.language,
                prompt,
                sampling=Sampling(),
                max_new_tokens=max_new_tokens,
                seed=seed + number,
            )
            for number, prompt in enumerate(prompts)
        ],
    )
    return [text for [text] in written]


def measure_asked(
    questions: Sequence[str], pairs: Sequence[Pair], twin: Model, *, seed: int
) -> QuestionStatistics:
    """Return what `questions`, one to each pair's answer, are like.

    The gain is log p(answer | question) less log p(answer | another pair's question), in nats by
    the forward `twin`; the other pair is drawn by `seed`, and is never the same one.
    """
    shift = np.random.default_rng(seed).integers(1, len(pairs), len(pairs))
    others = [pairs[(i + int(by)) % len(pairs)].question for i, by in enumerate(shift)]
    rows = [
        answer_row(twin, Pair(question, pair.answer))
        for asked in (questions, others)
        for question, pair in zip(asked, pairs, strict=True)
    ]
    sums = np.array(sums_written(twin, rows))
    gains = sums[: len(pairs)] - sums[len(pairs) :]
    shared = [
        bool(content_words(question) & content_words(pair.answer))
        for question, pair in zip(questions, pairs, strict=True)
    ]
    return QuestionStatistics(
        answers=len(pairs),
        asks=float(np.mean([reads_as_a_question(question) for question in questions])),
        shares_a_word=float(np.mean(shared)),
        gains=float((gains > 0).mean()),
        mean_gain=float(gains.mean()),
    )


def reads_as_a_question(text: str) -> bool:
    """Return whether a text ends in a question mark or begins as questions and instructions do."""
    first = words_of(text.lower())[:1]
    return text.rstrip().endswith("?") or not ASKING_WORDS.isdisjoint(first)


def measure_rewound(
    model: Model, transcripts: Sequence[Transcript], *, turns: int, exact: Model | None = None
) -> Rewound:
    """Return whether conversations written backward are in order, and can be gone on from.

    `difference` is the largest between the probabilities of any next id after a conversation that
    was read id by id, as it was when it was written, and the same one read at once, as it is when
    it was saved and loaded; `difference_exact` the same of `exact`, the model in float32.
    """

    def difference(one: Model) -> float:
        most = one.engine.block_size
        return max(difference_of_reading(one, ModelIds(talk.ids[:most])) for talk in transcripts)

    return Rewound(
        conversations=len(transcripts),
        turns=turns,
        in_order=float(np.mean([in_order(one) for one in transcripts])),
        to_the_start=float(np.mean([one.finish_reason == "stop" for one in transcripts])),
        mean_messages=float(np.mean([len(one.messages) - one.n_given for one in transcripts])),
        difference=difference(model),
        difference_exact=difference(exact or model),
    )


def in_order(transcript: Transcript) -> bool:
    """Return whether roles alternate up to the message that was given, an assistant's."""
    roles = [message.role for message in transcript.messages]
    alternate = all(one != other for one, other in pairwise(roles))
    return alternate and roles[-1] == "assistant" and set(roles) <= {"user", "assistant"}


def difference_of_reading(model: Model, ids: ModelIds) -> float:
    """Return how far probabilities after `ids`, (T,), read one by one and at once, differ."""
    engine = model.engine
    at_once, logits = engine.prefill(ids)
    one_by_one, logits_of_step = engine.prefill(ids[:1])
    for id_ in ids[1:].tolist():
        [logits_of_step] = engine.step(one_by_one, [id_])
    engine.release([*at_once, *one_by_one])
    first, second = (softmax(row.astype(np.float64)) for row in (logits, logits_of_step))
    return float(np.abs(first - second).max())


def leaks(texts: Sequence[str]) -> list[str]:
    """Return the texts in which a control id's name or a role in front of a line can be seen."""
    return [text for text in texts if _LEAK.search(text)]

"""Measure a chat model for its card: losses by mode, retrieval, questions, rewinding, leaks.

    python scripts/measure_chat.py RUN --data valid.jsonl --conversations conversations.jsonl \\
        --set "700 held-out rows of databricks-dolly-15k" --out measures.json

Everything is measured on the int8 weights that are shipped. The forward twin is the model itself if
it runs both ways, or --twin. What is rewound begins from the last messages of --conversations, or
from the answers of --data. BM25 needs the package bm25s. The same seed gives the same figures.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from backgpt import load
from backgpt.api import Model
from backgpt.builtin import find
from backgpt.card import ChatLoss, ChatMeasures, Retrieved, ShownExchange, ShownMessage
from backgpt.chat import MODES, Mode, Template
from backgpt.datasets import Conversation, find_source, read_conversations
from backgpt.errors import BackgptError, DataError, MissingExtraError, UsageError
from backgpt.evaluate import choose
from backgpt.files import write_whole
from backgpt.model_folder import read_model, save_model
from backgpt.rewind import Transcript
from evaluate_chat import (
    MOST_NEW_TOKENS,
    Matrix,
    Pair,
    answer_row,
    ask_all,
    choose_pairs,
    leaks,
    measure_asked,
    measure_loss_of_mode,
    measure_rewound,
    measure_whole,
    pairs_of,
    question_row,
    ranks,
    retrieved,
    score_matrix,
    without_prior,
    write_all,
)

SHOWN: tuple[tuple[Mode, str], ...] = (
    ("ask", "Paris."),
    ("ask", "You need flour, eggs, butter and sugar."),
    ("ask", "Because the sun is very hot."),
    ("ask", "A dog, a cat and a horse."),
    ("ask", "He was the first president of the United States."),
    ("ask", "No, I do not like it."),
    ("rewind", "Thank you, that was very helpful!"),
    ("rewind", "See you tomorrow."),
    ("reply", "What is the capital of France?"),
    ("reply", "Name three animals."),
)
"""What the card shows the exchanges of; number i is written with the seed i, from 1."""


def main() -> None:
    """Measure, write the file, print it."""
    arguments = _parser().parse_args()
    try:
        measures = _measure(arguments)
        write_whole(arguments.out, (measures.model_dump_json(indent=2) + "\n").encode())
    except (BackgptError, OSError) as error:
        sys.exit(f"measure_chat: {error}")
    print(_table(measures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a run folder, a model folder, or a built-in name")
    parser.add_argument("--data", required=True, help="held-out questions and answers")
    parser.add_argument("--conversations", help="held-out conversations of several turns")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", help="what to call the held-out rows; their path otherwise")
    parser.add_argument("--twin", help="a forward model tuned alike")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rewound", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--outputs", type=int, default=1000, help="looked through for leaks")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _measure(arguments: argparse.Namespace) -> ChatMeasures:
    if find_spec("bm25s") is None:  # said before hours of work, not after
        raise MissingExtraError("BM25", "dev", "bm25s")
    seed = arguments.seed
    if not 1 < arguments.candidates <= arguments.answers:
        raise UsageError("--candidates: from 2 to the number of --answers")
    if min(arguments.rewound, arguments.turns) < 1:
        raise UsageError("--rewound and --turns: 1 or more")
    held_out = list(_read(arguments.data))
    longer = list(_read(arguments.conversations)) if arguments.conversations else held_out
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "model"
        save_model(read_model(find(arguments.model)), stored, storage="int8")
        model = load(stored)
        twin = load(arguments.twin, direction="forward") if arguments.twin else model.turned()
        pairs = choose_pairs(model, pairs_of(held_out), arguments.answers, seed=seed)

        last = _last_messages(model, longer)

        _say("scoring")
        losses = list(_losses(model, twin, held_out, longer))
        _say("ranking")
        found = _retrieval(model, twin, pairs, arguments.candidates)
        _say("asking, rewinding and replying")
        asked = ask_all(model, [pair.answer for pair in pairs], seed=seed)
        questions = [text.text.strip() for text in asked]
        transcripts = _rewound(model, last, arguments)
        outputs = [*questions, *(m.text for one in transcripts for m in one.messages[:-1])]
        outputs += _replies(model, pairs, max(arguments.outputs - len(outputs), 0), seed)
        leaked = leaks(outputs)
        for text in leaked:
            _say(f"a leak: {text!r}")
        return ChatMeasures(
            set=arguments.set or Path(arguments.data).name,
            date=datetime.date.today().isoformat(),
            losses=tuple(losses),
            retrieved=tuple(found),
            asked=measure_asked(questions, pairs, twin, seed=seed),
            human=measure_asked([pair.question for pair in pairs], pairs, twin, seed=seed),
            rewound=measure_rewound(
                model,
                transcripts,
                turns=arguments.turns,
                exact=load(stored, dtype="float32"),
            ),
            outputs=len(outputs),
            leaked=len(leaked),
            exchanges=tuple(_shown(model)),
        )


def _losses(
    model: Model, twin: Model, held_out: Sequence[Conversation], longer: Sequence[Conversation]
) -> Iterator[ChatLoss]:
    """Yield the losses of each mode, `rewind` on `longer`, then of whole conversations."""
    for mode in MODES:
        yield measure_loss_of_mode(model, mode, longer if mode == "rewind" else held_out)
    yield measure_loss_of_mode(twin, "reply", held_out)
    for way in (model, twin):
        yield measure_whole(way, held_out)


def _retrieval(
    model: Model, twin: Model, pairs: Sequence[Pair], candidates: int
) -> Iterator[Retrieved]:
    """Yield how well each way of ranking finds an answer's question among `candidates`.

    The answers are cut into groups of so many; the candidates are the questions of one's group.
    """
    groups = [
        pairs[start : start + candidates]
        for start in range(0, len(pairs) - candidates + 1, candidates)
    ]
    backward = [score_matrix(group, question_row, model) for group in groups]
    forward = [score_matrix(group, answer_row, twin) for group in groups]
    lengths = [
        np.array([len(model.tokenizer.encode(pair.question)) + 1 for pair in group])
        for group in groups
    ]
    fair = [without_prior(scores) for scores in backward]
    methods: dict[str, list[Matrix]] = {
        "backward, log p(question given answer)": backward,
        "backward, the same per token": [b / n for b, n in zip(backward, lengths, strict=True)],
        "backward, less its mean over all answers": fair,
        "forward twin, log p(answer given question)": forward,
        "backward and forward, summed": [b + f for b, f in zip(backward, forward, strict=True)],
        "backward less its mean, and forward": [b + f for b, f in zip(fair, forward, strict=True)],
        "BM25": [_bm25(group) for group in groups],
    }
    for method, scores in methods.items():
        found = np.concatenate([ranks(matrix) for matrix in scores])
        yield retrieved(method, found, candidates=candidates)


def _bm25(pairs: Sequence[Pair]) -> Matrix:
    """Return BM25's score of each question for each answer, (A, Q)."""
    import bm25s

    retriever = bm25s.BM25()
    questions = [pair.question for pair in pairs]
    tokens = bm25s.tokenize(questions, stopwords="en", show_progress=False)
    retriever.index(tokens, show_progress=False)
    answers = bm25s.tokenize(
        [pair.answer for pair in pairs], stopwords="en", show_progress=False, return_ids=False
    )
    return np.stack([retriever.get_scores(words) for words in answers]).astype(np.float64)


def _last_messages(model: Model, conversations: Sequence[Conversation]) -> list[str]:
    """Return the last messages that can be rewound from, those of assistants that are short."""
    longest = 2 * model.engine.block_size // 3
    last = [one.messages[-1] for one in conversations]
    texts = [
        message.text
        for message in last
        if message.role == "assistant" and len(model.tokenizer.encode(message.text)) <= longest
    ]
    if not texts:
        raise DataError("no conversation ends with a short message of an assistant")
    return texts


def _rewound(model: Model, texts: Sequence[str], arguments: argparse.Namespace) -> list[Transcript]:
    """Rewind from some of `texts`."""
    return [
        transcript
        for number, text in enumerate(choose(texts, arguments.rewound, seed=arguments.seed))
        for transcript in model.rewind(
            text,
            turns=arguments.turns,
            max_new_tokens=MOST_NEW_TOKENS,
            seed=arguments.seed + number * arguments.turns,
        )
    ]


def _replies(model: Model, pairs: Sequence[Pair], n: int, seed: int) -> list[str]:
    """Reply to the pairs' questions in turn until there are `n` answers."""
    template = Template(model.language)
    prompts = [template.reply(pairs[i % len(pairs)].question) for i in range(n)]
    texts = write_all(model, prompts, seed=seed, max_new_tokens=MOST_NEW_TOKENS)
    return [text.text for text in texts]


def _shown(model: Model) -> Iterator[ShownExchange]:
    for seed, (mode, given) in enumerate(SHOWN, start=1):
        if mode == "rewind":
            [transcript] = model.rewind(given, seed=seed)
            written = [ShownMessage(role=m.role, text=m.text) for m in transcript.messages[:-1]]
        elif mode == "ask":
            written = [ShownMessage(role="user", text=model.ask(given, seed=seed)[0].text)]
        else:
            written = [ShownMessage(role="assistant", text=model.reply(given, seed=seed)[0].text)]
        yield ShownExchange(mode=mode, given=given, seed=seed, written=tuple(written))


def _read(source: str) -> Iterator[Conversation]:
    for path in find_source(source).files:
        yield from read_conversations(path)


def _table(measures: ChatMeasures) -> str:
    lines = [
        f"{loss.what:<7} {loss.direction:<9} {loss.nats_per_token:.4f} nats per token, "
        f"{loss.bits_per_byte:.4f} bits per byte ({loss.conversations} of {loss.of})"
        for loss in measures.losses
    ]
    lines += [
        f"{one.method:<42} R@1 {one.first:.1%}  R@10 {one.in_ten:.1%}  mean {one.mean_rank:.1f}"
        for one in measures.retrieved
    ]
    for label, figures in (
        ("asked", measures.asked),
        ("human", measures.human),
        ("rewound", measures.rewound),
    ):
        lines.append(f"{label}: {figures.model_dump()}")
    lines.append(f"leaked: {measures.leaked} of {measures.outputs:,}")
    for one in measures.exchanges:
        written = " | ".join(f"{said.role}: {said.text}" for said in one.written)
        lines.append(f"{one.mode} {one.seed} {one.given!r}: {written!r}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

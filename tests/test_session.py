"""A chat: what grows where, what a retry, an undo and an interruption leave, and what is saved."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backgpt.api import Model
from backgpt.chat import MODES, Mode
from backgpt.datasets import read_conversations
from backgpt.engine import FloatArray
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import BackgptError, CorruptFileError, DataError, UsageError
from backgpt.language import Language
from backgpt.messages import Message
from backgpt.model import Transformer
from backgpt.order import Direction, IdArray, Unit
from backgpt.rewind import Piece
from backgpt.sampling import Sampling
from backgpt.session import Session
from backgpt.shape import preset
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer

FREE = Sampling(temperature=1.0, min_p=0.0)
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 256, "intermediate_size": 96}
ANSWERS = ("The dog.", "Because it rained.", "Yes — \N{CAT FACE}!\n\nVery much.")
MARKER = re.compile(r"<\|\w+\|>|\b(user|assistant)\b")


class Chatty(TorchEngine):
    """Knows nothing, but ends a message soon; it keeps what it read and the logits after that."""

    bias = 2.8

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows, logits = super().prefill(ids, copies)
        self.read = list(map(int, ids))
        return rows, self._biased(logits)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        self.read += ids
        return self._biased(super().step(rows, ids))

    def _biased(self, logits: FloatArray) -> FloatArray:
        logits = logits.copy()
        logits[..., : len(SPECIAL_TOKENS)] += self.bias
        self.logits = logits
        return logits


def model_of(
    tokenizer: Tokenizer,
    unit: Unit = "token",
    direction: Direction = "backward",
    *,
    bias: float = Chatty.bias,
    block_size: int = SHAPE["block_size"],
) -> Model:
    """Return a random model."""
    config = preset("nano", tokenizer.vocab_size, **{**SHAPE, "block_size": block_size})
    engine = Chatty(Transformer(config, generator=torch.Generator().manual_seed(3)))
    engine.bias = bias
    return Model(config, Language(tokenizer, direction, unit), engine)


def session_of(tokenizer: Tokenizer, unit: Unit = "token", **settings: object) -> Session:
    settings = {"sampling": FREE, "max_new_tokens": 12, "seed": 1, **settings}
    return Session(model_of(tokenizer, unit), **settings)  # type: ignore[arg-type]


def joined(pieces: Iterator[Piece]) -> list[Message]:
    """Return the messages that pieces make, each put in front of those of its turn."""
    texts: dict[int, str] = {}
    roles = {}
    for turn, role, text in pieces:
        texts[turn] = text + texts.get(turn, "")
        roles[turn] = role
    return [Message(roles[turn], texts[turn]) for turn in sorted(texts, reverse=True)]


@pytest.mark.parametrize("unit", ["token", "word"])
def test_asking_grows_toward_the_beginning_and_shows_what_was_streamed(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    session = session_of(tokenizer, unit)
    expected: list[Message] = []
    for answer in ANSWERS:
        [question] = joined(session.say(answer))
        assert question.role == "user"
        assert question.text
        expected = [question, Message("assistant", answer), *expected]
        assert session.transcript == expected


@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_ids_of_a_conversation_are_only_appended_to(tokenizer: Tokenizer, unit: Unit) -> None:
    session = session_of(tokenizer, unit, context="It rained.")
    earlier: list[int] = []
    for answer in ANSWERS:
        list(session.say(answer))
        [talk] = session.talks
        assert talk.ids.tolist()[: len(earlier)] == earlier
        earlier = talk.ids.tolist()
    n_controls = sum(id_ < len(SPECIAL_TOKENS) for id_ in earlier)
    assert n_controls == 2 + 1 + 2 * len(ANSWERS)  # the context's, the end, a tag a message


def test_each_question_is_written_to_its_answer_alone(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer, context="It rained.")
    for answer in ANSWERS:
        list(session.say(answer))
        [question] = session.model.ask(
            answer,
            context="It rained.",
            sampling=FREE,
            max_new_tokens=session.max_new_tokens,
            seed=session.talks[0].said[-1].seed,
        )
        assert session.transcript[0].text == question.text


def test_what_is_read_is_the_saved_ids_and_the_next_probabilities_are_the_live_ones(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    session = session_of(tokenizer, context="It rained.", max_new_tokens=None)
    list(session.say(ANSWERS[0]))
    engine = session.model.engine
    assert isinstance(engine, Chatty)
    live, read = engine.logits.reshape(-1), engine.read
    session.save(tmp_path / "chat.json")
    loaded = Session.load(tmp_path / "chat.json", model_of(tokenizer))
    ids = loaded.talks[-1].ids
    assert ids[: len(read)].tolist() == read
    assert len(ids) == len(read) + 1  # the tag, which was drawn last
    _, again = loaded.model.engine.prefill(ids[:-1])
    np.testing.assert_allclose(again, live, atol=1e-4)


@pytest.mark.parametrize("mode", ["rewind", "reply"])
def test_exchanges_of_other_modes_are_conversations_of_their_own(
    tokenizer: Tokenizer, mode: Mode
) -> None:
    session = session_of(tokenizer, mode=mode, max_new_tokens=40)
    for number, text in enumerate(ANSWERS, start=1):
        written = joined(session.say(text))
        assert len(session.talks) == number
        shown = session.transcript
        given = Message("assistant" if mode == "rewind" else "user", text)
        if mode == "reply":
            assert shown == [given, *written]
        else:
            assert shown[-1] == given
            assert shown[:-1] == written[len(written) + 1 - len(shown) :]  # but what was cut


def test_a_session_writes_what_the_model_writes_with_that_seed(tokenizer: Tokenizer) -> None:
    asked = session_of(tokenizer, seed=7)
    model, settings = asked.model, {"sampling": FREE, "max_new_tokens": 12, "seed": 7}
    list(asked.say("The dog."))
    [question] = model.ask("The dog.", **settings)  # type: ignore[arg-type]
    assert asked.transcript[0].text == question.text
    rewound = session_of(tokenizer, seed=7, mode="rewind", turns=4, max_new_tokens=40)
    list(rewound.say("The dog."))
    [transcript] = model.rewind("The dog.", turns=4, sampling=FREE, max_new_tokens=40, seed=7)
    assert rewound.transcript == list(transcript.messages)
    replied = session_of(tokenizer, seed=7, mode="reply")
    list(replied.say("Who?"))
    [answer] = model.reply("Who?", **settings)  # type: ignore[arg-type]
    assert replied.transcript[1].text == answer.text


def test_a_new_context_or_mode_begins_a_new_conversation(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    session.context = "It rained."
    list(session.say("The dog."))
    session.mode = "reply"
    list(session.say("Who?"))
    assert [(talk.mode, talk.context) for talk in session.talks] == [
        ("ask", ""),
        ("ask", "It rained."),
        ("reply", "It rained."),
    ]
    assert session.talks[0].said[0].seed == session.talks[1].said[0].seed == 1


def test_a_new_conversation_begins_about_the_same_and_stays_one(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    first = session.transcript
    session.begin()
    assert session.transcript == []
    list(session.say("The cat."))
    list(session.retry())
    list(session.say("The fox."))
    assert [len(talk.said) for talk in session.talks] == [1, 2]
    assert session.messages(session.talks[0]) == first
    session.undo()
    session.undo()
    assert session.transcript == []
    list(session.say("The fox."))
    stopped = session.retry()
    next(stopped)
    stopped.close()
    list(session.say("The cat."))  # a retry that was stopped leaves it as it was
    assert [len(talk.said) for talk in session.talks] == [1, 2]


def test_a_retry_replaces_the_last_exchange_with_the_next_seed(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    list(session.say("Because."))
    first = session.transcript
    list(session.retry())
    assert session.transcript[1:] == first[1:]
    assert session.transcript[0] != first[0]
    assert [said.seed for said in session.talks[0].said] == [1, 2]
    session.seed = 1
    list(session.retry())
    assert session.transcript == first


def test_an_undo_drops_the_last_exchange(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    first = session.talks[0]
    list(session.say("Because."))
    session.undo()
    assert session.talks[0].said == first.said
    assert session.talks[0].ids.tolist() == first.ids.tolist()
    session.undo()
    assert session.transcript == []
    for refused in (session.undo, lambda: list(session.retry())):
        with pytest.raises(UsageError, match="say something first"):
            refused()


def test_a_new_conversation_has_nothing_to_undo_or_say_again(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    before = session.talks
    session.begin("It rained.")
    for refused in (session.undo, lambda: list(session.retry())):
        with pytest.raises(UsageError, match="say something first"):
            refused()
    assert session.talks is before
    list(session.say("Because."))
    assert len(session.talks) == 2
    session.undo()
    session.undo()
    assert not session.talks


def test_what_was_said_in_another_mode_is_not_said_again_in_this(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    before, session.mode = session.talks, "reply"
    with pytest.raises(UsageError, match="in the mode ask: change back to it"):
        list(session.retry())
    assert session.talks is before


@pytest.mark.parametrize("mode", MODES)
def test_what_is_stopped_leaves_no_trace_but_can_be_retried(
    tokenizer: Tokenizer, mode: Mode
) -> None:
    session = session_of(tokenizer, mode=mode, max_new_tokens=40)
    list(session.say("The dog."))
    before, shown = session.talks, session.transcript
    stopped = session.say("Because.")
    next(stopped)
    stopped.close()
    assert session.talks is before
    assert session.transcript == shown
    engine = session.model.engine
    assert isinstance(engine, TorchEngine)
    assert len(engine._free) == engine._cache.rows
    list(session.retry())
    assert session.talks[-1].said[-1].text == "Because."
    assert session.talks[-1].said[-1].seed == 2
    assert len(session.talks) == (1 if mode == "ask" else 2)


def test_a_stopped_retry_keeps_the_exchange_it_was_to_replace(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    shown = session.transcript
    stopped = session.retry()
    next(stopped)
    stopped.close()
    assert session.transcript == shown
    list(session.retry())
    assert len(session.transcript) == 2
    assert session.talks[0].said[0].seed == 3


def test_a_message_cut_by_its_limit_is_kept_and_closed(tokenizer: Tokenizer) -> None:
    notices: list[str] = []
    session = Session(
        model_of(tokenizer, bias=-30.0), max_new_tokens=5, seed=1, notice=notices.append
    )
    [question] = joined(session.say("The dog."))
    assert session.transcript == [question, Message("assistant", "The dog.")]
    assert len(notices) == 1
    assert "beginning is missing" in notices[0]


@pytest.mark.slow
def test_saved_messages_are_those_that_the_ids_give(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    session = session_of(tokenizer, max_new_tokens=30, name="tiny", turns=5)
    for mode in MODES:
        session.mode = mode
        for number in range(20):
            session.seed = number
            list(session.say("Because <|user|> said\r\nso."))
    list(session.say("And?"))
    session.save(path)
    loaded = Session.load(path, model_of(tokenizer))
    assert loaded.transcript == session.transcript
    saved = json.loads(path.read_text())
    for talk, before, record in zip(
        loaded.talks, session.talks, saved["conversations"], strict=True
    ):
        shown = [(message.role, message.text) for message in session.messages(before)]
        assert [(m["role"], m["content"]) for m in record["messages"]] == shown
        assert [(m.role, m.text) for m in loaded.messages(talk)] == shown
        assert talk.ids.tolist() == before.ids.tolist()
        assert talk.said == before.said
    settings = ("name", "mode", "context", "turns", "sampling", "max_new_tokens", "seed")
    for name in settings:
        assert getattr(loaded, name) == getattr(session, name), name
    assert list(loaded.say("Go on.")) == list(session.say("Go on."))


def test_a_chat_of_before_there_was_dry_goes_on_without_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    session_of(tokenizer).save(path)
    saved = json.loads(path.read_text())
    del saved["sampling"]["dry_multiplier"]
    path.write_text(json.dumps(saved))
    assert Session.load(path, model_of(tokenizer)).sampling == replace(FREE, dry_multiplier=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"direction": "forward"},
        {"conversations": 3},
        {"ids": [1, 2, 3]},
        {"ids": []},
        {"ids": [10**30]},
        {"messages": []},
        {"exchanges": []},
    ],
)
def test_a_file_that_was_altered_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "chat.json"
    session = session_of(tokenizer)
    list(session.say("The dog."))
    session.save(path)
    saved = json.loads(path.read_text())
    (saved if set(change) & set(saved) else saved["conversations"][0]).update(change)
    path.write_text(json.dumps(saved))
    with pytest.raises(CorruptFileError, match=r"chat\.json"):
        Session.load(path, session.model)


def test_what_was_said_is_what_the_messages_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    session = session_of(tokenizer, turns=4)
    for mode in MODES:
        session.mode = mode
        list(session.say("The dog."))
        list(session.say("The cat."))
    session.save(path)
    saved = json.loads(path.read_text())
    for talk in saved["conversations"]:
        for exchange in talk["exchanges"]:
            said, exchange["text"] = exchange["text"], "A lie."
            path.write_text(json.dumps(saved))
            with pytest.raises(CorruptFileError, match="the file was altered"):
                Session.load(path, session.model)
            exchange["text"] = said
    path.write_text(json.dumps(saved))
    assert len(Session.load(path, session.model).talks) == len(session.talks)


def test_another_unit_or_no_file_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    session = session_of(tokenizer)
    session.save(tmp_path / "chat.json")
    with pytest.raises(UsageError, match="another tokenizer or unit"):
        Session.load(tmp_path / "chat.json", model_of(tokenizer, "word"))
    with pytest.raises(DataError, match="cannot read"):
        Session.load(tmp_path / "none.json", session.model)


def test_a_chat_is_saved_over_a_saved_chat_only(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tokenizer)
    path = tmp_path / "chat.json"
    session.save(path)
    list(session.say("The dog."))
    session.save(path)
    loaded = Session.load(path, session.model)
    assert loaded.transcript == session.transcript
    loaded.save(path)
    with pytest.raises(UsageError, match=r"chat\.json is there and is another chat"):
        session_of(tokenizer).save(path)
    precious = tmp_path / "precious.txt"
    for content in (b"a novel", b"\xff", b"{}", b""):
        precious.write_bytes(content)
        with pytest.raises(UsageError, match=r"precious\.txt is there and is no saved chat"):
            session.save(precious)
        assert precious.read_bytes() == content
    for folder in (tmp_path, Path("")):
        with pytest.raises(UsageError, match=r"is a folder: name a file, such as chat\.json"):
            session.save(folder)
    with pytest.raises(UsageError, match=r"there is no folder .*/no: make it"):
        session.save(tmp_path / "no" / "chat.json")

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", f"{path}.tmp")

    monkeypatch.setattr("backgpt.session_file.write_whole", refuse)
    with pytest.raises(BackgptError, match=r"cannot write .*chat\.json: Permission denied"):
        session.save(path)


def test_bad_requests_are_refused_and_change_nothing(tokenizer: Tokenizer) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    shown = session.transcript
    for text in ("", " \n", "yes " * 500, "\ud800"):
        with pytest.raises(BackgptError):
            list(session.say(text))
    assert session.transcript == shown
    for name, value in (("mode", "chat"), ("seed", -1)):
        with pytest.raises(UsageError, match=name):
            setattr(session, name, value)
    session.mode, session.turns = "rewind", 0
    with pytest.raises(UsageError, match="turns = 0"):
        list(session.say("The dog."))
    with pytest.raises(UsageError, match="runs backward"):
        Session(model_of(tokenizer, direction="forward"))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_thousand_outputs_leak_no_role_word_or_marker(tokenizer: Tokenizer, unit: Unit) -> None:
    model = model_of(tokenizer, unit)
    shown = [
        *model.ask("The dog.", n=400, max_new_tokens=8, sampling=FREE, seed=2),
        *model.reply("Who?", n=400, max_new_tokens=8, sampling=FREE, seed=2),
    ]
    texts = [text.text for text in shown]
    assert all(len(tokenizer.token_bytes[id_]) for text in shown for id_ in text.ids)
    session = Session(model, mode="rewind", turns=3, sampling=FREE, max_new_tokens=20, seed=0)
    while len(texts) < 1000:
        session.seed += 1
        texts += [message.text for message in joined(session.say("The dog."))]
    assert not [text for text in texts if MARKER.search(text)]


def test_a_saved_conversation_is_a_line_of_an_instruction_file(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    session = session_of(tokenizer)
    list(session.say("The dog."))
    session.save(tmp_path / "chat.json")
    [record] = json.loads((tmp_path / "chat.json").read_text())["conversations"]
    (tmp_path / "talk.jsonl").write_text(json.dumps(record))
    [talk] = read_conversations(tmp_path / "talk.jsonl")
    assert [message.role for message in talk.messages] == ["user", "assistant"]

"""Chats over HTTP: ask, rewind and reply, streamed or not; what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.generate import collect
from backgpt.messages import Message
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.tokenizer import Tokenizer
from serving import catalog_of, chunks_of, post, serving
from tiny_models import tiny_model

PATH = "/v1/chat/completions"
FREE: dict[str, Any] = {"temperature": 1.0, "min_p": 0.0, "seed": 1, "max_tokens": 30}
SAMPLING = Sampling(temperature=1.0, min_p=0.0)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, told=False, bias=2.8)


@pytest.fixture(scope="module")
def address(model: Model, tokenizer: Tokenizer) -> Iterator[str]:
    forward = tiny_model(tokenizer, told=False, direction="forward", bias=2.8)
    silent = replace(model, takes_chat=False)
    with serving(catalog_of(model, forward=forward, silent=silent)) as address:
        yield address


def said(*texts: str, last: str = "assistant") -> list[dict[str, str]]:
    """Return messages that take turns, the last one said by `last`."""
    roles = [last, "user" if last == "assistant" else "assistant"]
    count = len(texts)
    return [
        {"role": roles[(count - 1 - number) % 2], "content": text}
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_you_answer_and_it_asks(address: str, model: Model, role: str) -> None:
    messages = [{"role": role, "content": "The dog."}]
    answer = post(address, PATH, messages=messages, n=3, **FREE).json()
    texts = model.ask("The dog.", n=3, seed=1, max_new_tokens=30, sampling=SAMPLING)
    assert answer["object"] == "chat.completion"
    for choice, text in zip(answer["choices"], texts, strict=True):
        assert choice["message"] == {"role": "assistant", "content": text.text}
        assert choice["finish_reason"] == text.finish_reason
        assert choice["backgpt"]["role"] == "user"
        assert choice["backgpt"]["messages"] == [{"role": "user", "content": text.text}]
        assert choice["backgpt"]["logprob"] == pytest.approx(text.logprob)
    assert answer["usage"]["completion_tokens"] == sum(text.n_tokens for text in texts)


def test_what_is_given_is_the_end_of_the_conversation(address: str, model: Model) -> None:
    messages = said("It ran.", "Where to?", "Home.")
    choice = post(address, PATH, messages=messages, **FREE).json()["choices"][0]
    prompt = Template(model.language).before([Message(m["role"], m["content"]) for m in messages])  # type: ignore[arg-type]
    [text] = collect(
        model.engine, Job(model.language, prompt, sampling=SAMPLING, seed=1, max_new_tokens=30)
    )
    assert choice["message"]["content"] == text.text


def test_a_client_of_ordinary_chats_answers_again_and_again(address: str) -> None:
    chat = said("Home.", "Where to?", "It ran.", last="user")
    for system in ([], [{"role": "system", "content": "Animals."}]):
        answer = post(address, PATH, messages=[*system, *chat], **FREE).json()
        alone = post(address, PATH, messages=[*system, *said("It ran.")], **FREE).json()
        assert answer["choices"] == alone["choices"]


@pytest.mark.parametrize("mode", ["ask", "reply"])
def test_a_context_or_a_system_message_says_what_it_is_about(
    address: str, model: Model, mode: str
) -> None:
    user = {"role": "user", "content": "The dog."}
    system = {"role": "system", "content": "It rained."}
    ours = {"mode": mode}
    [text] = getattr(model, mode)(
        "The dog.", context="It rained.", seed=1, max_new_tokens=30, sampling=SAMPLING
    )
    for body in (
        {"messages": [user], "backgpt": {**ours, "context": "It rained."}},
        {"messages": [system, user], "backgpt": ours},
    ):
        choice = post(address, PATH, **body, **FREE).json()["choices"][0]
        assert choice["message"]["content"] == text.text


@pytest.mark.parametrize("name", ["tiny", "forward"])
def test_a_reply_is_pythons_and_streams_join_to_it(
    address: str, model: Model, tokenizer: Tokenizer, name: str
) -> None:
    asked = {"model": name, "messages": said("Who?", last="user"), "n": 2, **FREE}
    asked["backgpt"] = {"mode": "reply"}
    choices = post(address, PATH, **asked).json()["choices"]
    if name == "tiny":
        texts = model.reply("Who?", n=2, seed=1, max_new_tokens=30, sampling=SAMPLING)
        assert [choice["message"]["content"] for choice in choices] == [t.text for t in texts]
    for options in ({}, {"stream_options": {"order": "prepend"}}):
        chunks = chunks_of(address, PATH, **asked, **options)
        for index, choice in enumerate(choices):
            assert written(chunks, index) == {0: choice["message"]["content"]}
            assert choice["backgpt"]["role"] == "assistant"


def test_a_rewound_conversation_is_pythons(address: str, model: Model) -> None:
    ours = {"mode": "rewind", "turns": 4}
    answer = post(address, PATH, messages=said("The dog."), n=8, backgpt=ours, **FREE).json()
    transcripts = model.rewind(
        "The dog.", turns=4, n=8, seed=1, max_new_tokens=30, sampling=SAMPLING
    )
    assert len({len(transcript.messages) for transcript in transcripts}) > 1
    for choice, transcript in zip(answer["choices"], transcripts, strict=True):
        told = transcript.messages[:-1]
        assert choice["backgpt"]["messages"] == [
            {"role": one.role, "content": one.text} for one in told
        ]
        assert choice["message"]["content"] == "\n\n".join(f"{o.role}: {o.text}" for o in told)
        assert choice["backgpt"]["finish_reason"] == transcript.finish_reason
        assert choice["finish_reason"] == (
            "length" if transcript.finish_reason == "length" else "stop"
        )
        assert choice["backgpt"]["logprob"] == pytest.approx(transcript.logprob)
        assert choice["backgpt"]["seed"] == transcript.seed


@pytest.mark.parametrize("mode", ["ask", "rewind"])
def test_pieces_in_front_join_to_the_messages_turn_by_turn(address: str, mode: str) -> None:
    asked = {"messages": said("The dog."), "n": 6, "backgpt": {"mode": mode, "turns": 3}, **FREE}
    choices = post(address, PATH, **asked).json()["choices"]
    live = chunks_of(address, PATH, **asked, stream_options={"order": "prepend"})
    plain = chunks_of(address, PATH, **asked, stream_options={"include_usage": True})
    for index, choice in enumerate(choices):
        messages = choice["backgpt"]["messages"]
        turns = written(live, index)
        for turn, message in enumerate(reversed(messages)):
            assert turns.get(turn, "") == message["content"]
        first, last = deltas(live, index)[0], deltas(live, index)[-1]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert last["delta"] == {}
        assert last["finish_reason"] == choice["finish_reason"]
        assert last["backgpt"]["messages"] == messages
        whole = "".join(delta["delta"].get("content", "") for delta in deltas(plain, index))
        assert whole == choice["message"]["content"]
    roles = [d["backgpt"]["role"] for d in deltas(live, 0) if d["delta"].get("content")]
    assert roles[0] == "user"
    assert plain[-1]["usage"]["completion_tokens"] > 0


def test_a_stop_string_ends_a_question(address: str) -> None:
    asked = {"messages": said("The dog."), **FREE}
    whole = post(address, PATH, **asked).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2]
    choice = post(address, PATH, **asked, stop=stop).json()["choices"][0]
    assert choice["message"]["content"] == whole[whole.rindex(stop) + 1 :]


REFUSED = [
    ({"messages": []}, "messages"),
    ({"messages": said("")}, "no message to go back from"),
    ({"messages": [{"role": "system", "content": "x"}]}, "at least one message"),
    ({"messages": [*said("x"), {"role": "system", "content": "y"}]}, "only in front"),
    ({"messages": [*said("x"), *said("y")]}, "take turns"),
    ({"messages": said("x", "y")}, "the first message is an assistant's"),
    ({"messages": said("x", "y"), "backgpt": {"mode": "reply"}}, "takes one message"),
    ({"messages": said("x"), "backgpt": {"mode": "rewind", "turns": 0}}, "turns"),
    ({"messages": said("x"), "backgpt": {"mode": "rewind"}, "stop": "a"}, "stop does not go"),
    ({"messages": said("x"), "backgpt": {"mode": "sing"}}, "backgpt.mode"),
    ({"messages": said("x"), "max_tokens": 0}, "max_tokens = 0"),
    ({"messages": said("x"), "logprobs": True}, "logprobs"),
    ({"messages": said("word " * 400)}, "the model reads at most 256"),
    ({"messages": said("x"), "model": "forward"}, "load it backward"),
    ({"messages": said("x"), "model": "silent"}, "silent was not tuned on conversations"),
    (
        {"messages": said("x"), "tools": [{"type": "function"}]},
        "tools: models here use no tools: leave it out",
    ),
    ({"messages": said("x"), "response_format": {"type": "json_object"}}, "response_format.type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0",
    ),
    ({"messages": said("x"), "functions": []}, "functions: this field is not known here"),
]


def test_what_openais_client_sends_of_other_shapes_says_the_same(address: str) -> None:
    plain: dict[str, Any] = {"messages": said("The dog.", "The cat.", "The fox."), **FREE}
    system = {"role": "system", "content": "Animals."}
    expected = post(address, PATH, **{**plain, "messages": [system, *plain["messages"]]}).json()
    nothing: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
    }
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "fox."}]
    first, second, _ = plain["messages"]
    others: list[dict[str, Any]] = [
        {"role": "developer", "content": "Animals."},
        {**first, **nothing, "tool_calls": None},
        second,
        {"role": "assistant", "content": parts},
    ]
    harmless = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}
    harmless |= {"response_format": {"type": "text"}, "top_k": 0}
    answer = post(address, PATH, **{**plain, **harmless, "messages": others}).json()
    assert answer["choices"] == expected["choices"]
    alone = post(address, PATH, **plain).json()
    assert answer["choices"] != alone["choices"]


@pytest.mark.parametrize(("body", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_chat_that_cannot_be_is_one_clear_400(
    address: str, body: dict[str, Any], reason: str
) -> None:
    answer = post(address, PATH, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert reason in error["message"]
    assert (error["code"] == "context_length_exceeded") == ("reads at most" in reason)


def deltas(chunks: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]


def written(chunks: list[dict[str, Any]], index: int) -> dict[int, str]:
    """Return what the pieces of one choice join to, by turn."""
    turns: dict[int, str] = {}
    leftward = chunks[0]["backgpt"]["order"] == "prepend"
    for delta in deltas(chunks, index):
        if piece := delta["delta"].get("content"):
            turn = delta.get("backgpt", {}).get("turn", 0)
            before = turns.get(turn, "")
            turns[turn] = piece + before if leftward else before + piece
    return turns

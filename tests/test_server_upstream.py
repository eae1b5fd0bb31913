"""Writing on another server: on a second one of ours, and on what vLLM was recorded to say."""

import asyncio
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

import uvicorn

from backgpt.api import Model
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.server.channel import Ended, Part
from backgpt.server.failures import ApiError
from backgpt.server.schema import MOST_RAW
from backgpt.server.upstream import LIMITS, Upstream
from backgpt.tokenizer import Tokenizer
from serving import CLIENT, catalog_of, chunks_of, joined, post, serving, until
from tiny_models import Watched, tiny_model

PATH = "/v1/completions"


class NoWriting(Watched):
    """An engine that may score, but must not write."""

    def step(self, *_: Any) -> Any:
        raise AssertionError("this has to be written upstream")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, bias=2.8)


@pytest.fixture(scope="module")
def addresses(model: Model, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """A server that writes, and one in front of it."""
    front_engine = NoWriting(model.engine, bias=0.0)
    front = catalog_of(
        Model(model.config, model.language, front_engine, True, True),
        words=tiny_model(tokenizer, unit="word"),
    )
    with serving(catalog_of(model)) as behind:
        upstream = Upstream(behind + "/v1/", front, max_in_flight=50)
        with serving(front, writer=upstream) as address:
            yield behind, address


def test_in_front_of_a_server_of_ours_texts_are_the_same(
    addresses: tuple[str, str], model: Model
) -> None:
    behind, address = addresses
    for asked in (
        {"suffix": "The end.", "n": 3, "seed": 5, "max_tokens": 30},
        {"suffix": "The end.", "seed": 1, "temperature": 0, "max_tokens": 20},
        {"suffix": "😀", "seed": 2, "backgpt": {"words": ["fox"], "length": "short"}},
        {"prompt": ["One.", "Two."], "seed": 2, "n": 2, "max_tokens": 9, "top_k": 30},
        {"prompt": "Once", "backgpt": {"direction": "forward"}, "seed": 4, "max_tokens": 20},
        {"suffix": "", "backgpt": {"direction": "forward", "words": ["a dog", "fox"]}, "seed": 4},
        {"suffix": "The end.", "seed": 5, "max_tokens": 60, "stop": ["e", "a"]},
        {"prompt": "One day", "suffix": "The end.", "seed": 5, "max_tokens": 20, "n": 2},
        {"suffix": "The end.", "seed": 5, "max_tokens": 20, "n": 2, "best_of": 4},
        {"suffix": "The end.", "seed": 5, "max_tokens": 9, "echo": True, "logprobs": 0},
        {"suffix": "The end.", "seed": 5, "max_tokens": 5, "n": 1, "best_of": 20},
        {"prompt": "It saw a ", "backgpt": {"direction": "forward"}, "seed": 4, "max_tokens": 9},
    ):
        ours, theirs = (post(one, PATH, **asked).json()["choices"] for one in (address, behind))
        for choice, expected in zip(ours, theirs, strict=True):
            assert choice["text"] == expected["text"]
            assert choice["finish_reason"] == expected["finish_reason"]
            assert choice["backgpt"]["logprob"] == pytest.approx(expected["backgpt"]["logprob"])
        options = {"order": "prepend"}
        if "logprobs" not in asked:
            live = chunks_of(address, PATH, **asked, stream_options=options)
            for choice in theirs:
                assert joined(live, choice["index"]) == choice["text"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ask", "rewind", "reply"])
def test_chats_are_the_same_turn_by_turn(addresses: tuple[str, str], mode: str) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "The dog."}], "n": 4}
    asked |= {"backgpt": {"mode": mode}, "seed": 1, "max_tokens": 30, "temperature": 1.0}
    ours, theirs = (
        post(one, "/v1/chat/completions", **asked).json()["choices"] for one in addresses
    )
    for choice, expected in zip(ours, theirs, strict=True):
        assert choice["message"] == expected["message"]
        assert choice["backgpt"]["messages"] == expected["backgpt"]["messages"]
    options = {"order": "prepend"}
    told = [
        {
            (choice["index"], choice["backgpt"]["turn"], choice["backgpt"]["role"])
            for chunk in chunks_of(one, "/v1/chat/completions", **asked, stream_options=options)
            for choice in chunk["choices"]
            if "turn" in choice.get("backgpt", {})
        }
        for one in addresses
    ]
    assert told[0] == told[1]
    assert {turn for _, turn, _ in told[0]} == ({0, 1, 2} if mode == "rewind" else {0})


def test_raw_ids_come_back_with_their_log_probabilities_in_model_order(
    addresses: tuple[str, str], model: Model
) -> None:
    prompt = model.prompt("The end.")
    stops = {"at_once": [model.tokenizer.start_id], "later": [model.tokenizer.start_id]}
    asked = {"prompt": prompt.ids.tolist(), "seed": 5, "n": 2, "max_tokens": 30}
    asked["backgpt"] = {"raw": stops}
    texts = model.write("The end.", seed=5, n=2, max_new_tokens=30)
    choices = post(addresses[0], PATH, **asked).json()["choices"]
    streamed = chunks_of(addresses[0], PATH, **asked)
    for index, text in enumerate(texts):
        choice = choices[index]
        assert choice["token_ids"][: len(text.ids)] == text.ids.tolist()
        assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(text.logprob)
        assert choice["finish_reason"] == text.finish_reason
        parts = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == index]
        assert [id_ for part in parts for id_ in part["token_ids"]] == choice["token_ids"]
        assert parts[-1]["finish_reason"] == text.finish_reason


def test_scores_are_computed_here(addresses: tuple[str, str]) -> None:
    assert post(addresses[1], "/v1/score", input="The end.").status_code == 200


def test_a_model_that_writes_by_words_is_refused(addresses: tuple[str, str]) -> None:
    answer = post(addresses[1], PATH, prompt="x", model="words")
    assert answer.status_code == 400
    assert "by words" in answer.json()["error"]["message"]


def test_likeliest_others_are_not_told_of_and_not_left_out_quietly(
    addresses: tuple[str, str],
) -> None:
    answer = post(addresses[1], PATH, prompt="x", logprobs=2)
    assert answer.status_code == 400
    assert "no alternatives are told" in answer.json()["error"]["message"]


def test_what_is_written_behind_is_counted(addresses: tuple[str, str]) -> None:
    post(addresses[1], PATH, prompt="x", max_tokens=2)
    metrics = CLIENT.get(addresses[1] + "/metrics").text
    [drawn] = re.findall(r"^backgpt_tokens_drawn_total (\S+)$", metrics, re.MULTILINE)
    assert float(drawn) >= 1


def test_told_to_stop_it_fails_what_is_not_finished(model: Model) -> None:
    async def test() -> None:
        async def hang(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(60)
            raise AssertionError

        front = catalog_of(model)
        upstream = Upstream("http://x", front, max_in_flight=9, transport=httpx.MockTransport(hang))
        job = Job(model.language, model.prompt("The end."), sampling=Sampling())
        channel = upstream.write([Part(model.engine, job)])
        await asyncio.sleep(0.01)
        upstream.ask_to_stop()
        with pytest.raises(ApiError, match="the server is stopping"):
            async for _ in channel.events():
                pass
        assert upstream.in_flight == 0
        await upstream.close()

    asyncio.run(test())


def test_a_client_that_leaves_stops_the_server_behind(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-50.0, block_size=2048)
    engine = model.engine
    assert isinstance(engine, Watched)
    with serving(catalog_of(model)) as behind:
        front = catalog_of(model)
        with serving(front, writer=Upstream(behind, front, max_in_flight=9)) as address:
            body = {"prompt": "x", "stream": True, "stream_options": {"order": "prepend"}}
            with httpx.stream("POST", address + PATH, json=body, timeout=30) as stream:
                next(line for line in stream.iter_lines() if line.startswith("data"))
            until(lambda: not engine.rows, within=3)


def test_what_goes_wrong_behind_is_told(tokenizer: Tokenizer, model: Model) -> None:
    front = catalog_of(model)
    with serving(front, writer=Upstream("http://127.0.0.1:9", front, max_in_flight=9)) as address:
        answer = post(address, PATH, prompt="x")
        assert answer.status_code == 502
        assert "cannot be reached" in answer.json()["error"]["message"]
        stream = CLIENT.post(address + PATH, json={"prompt": "x", "stream": True})
        assert "cannot be reached" in stream.text


def events(*chunks: Any) -> bytes:
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


def chunk(ids: list[int], *, index: int = 0, finish: str | None = None, **more: Any) -> Any:
    """Return a chunk as vLLM writes it, told `return_token_ids` and `logprobs`."""
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "folder",
        "choices": [
            {
                "index": index,
                "text": "".join(map(chr, ids)),
                "logprobs": {
                    "text_offset": [0] * len(ids),
                    "token_logprobs": [-0.5] * len(ids),
                    "tokens": ["?"] * len(ids),
                    "top_logprobs": [{"?": -0.5}] * len(ids),
                },
                "finish_reason": finish,
                "stop_reason": None,
                "prompt_token_ids": None,
                "token_ids": ids,
                **more,
            }
        ],
        "usage": None,
    }


def recorded(model: Model, answer: bytes, sent: list[Any], *, status: int = 200) -> Upstream:
    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            data = [{"id": "folder", "object": "model", "owned_by": "vllm"}]
            return httpx.Response(200, json={"object": "list", "data": data})
        sent.append(json.loads(request.content))
        return httpx.Response(status, content=answer)

    transport = httpx.MockTransport(reply)
    return Upstream("http://vllm", catalog_of(model), max_in_flight=9, transport=transport)


def written(
    model: Model,
    answer: bytes,
    *,
    n: int = 1,
    status: int = 200,
    most: int | None = 50,
    sampling: Sampling | None = None,
) -> tuple[Any, Any]:
    """Return what was sent, and the texts that were made of the answer."""
    sent: list[Any] = []

    async def write() -> list[Any]:
        upstream = recorded(model, answer, sent, status=status)
        prompt = model.prompt("The end.", words=["fox"])
        drawn = sampling or Sampling()
        job = Job(model.language, prompt, n=n, sampling=drawn, seed=7, max_new_tokens=most)
        channel = upstream.write([Part(model.engine, job)])
        ended = [event async for event in channel.events() if isinstance(event, Ended)]
        assert upstream.in_flight == 0
        return [event.drawing.result for event in sorted(ended, key=lambda event: event.index)]

    texts = asyncio.run(write())
    return (sent[0] if sent else None), texts


def test_vllm_is_asked_in_its_words_and_understood(model: Model) -> None:
    tokenizer = model.tokenizer
    ids = model.language.order.to_model(tokenizer.encode("A fox came.")).tolist()
    other = model.language.order.to_model(tokenizer.encode("Once.")).tolist()
    answer = events(
        chunk(ids[:2]),
        chunk(other[:1], index=1),
        chunk(ids[2:]),
        chunk([tokenizer.start_id], finish="stop", stop_reason=tokenizer.start_id),
        chunk(other[1:], index=1, finish="length"),
    )
    body, texts = written(model, answer, n=2)
    assert [text.text for text in texts] == ["A fox came. The end.", "Once. The end."]
    assert [text.finish_reason for text in texts] == ["stop", "length"]
    assert texts[0].logprob == pytest.approx(-0.5 * (len(ids) + 1))
    prompt = model.prompt("The end.", words=["fox"])
    assert body["model"] == "folder"
    assert body["prompt"] == prompt.ids.tolist()
    assert body["max_tokens"] == 50
    assert body["stop_token_ids"] == [tokenizer.start_id]
    assert body["return_token_ids"] is True
    assert body["add_special_tokens"] is False
    assert body["seed"] == 7
    assert body["repetition_penalty"] == Sampling().repetition_penalty
    assert body["dry_multiplier"] == Sampling().dry_multiplier
    assert str(tokenizer.start_id) not in body["logit_bias"]
    assert body["logit_bias"][str(tokenizer.end_id)] == -100


def test_vllm_is_asked_for_no_more_than_it_would_write(model: Model) -> None:
    """It refuses what its context does not hold, and several texts at temperature 0."""
    answer = events(chunk([], finish="length"), chunk([], index=1, finish="length"))
    greedy = Sampling(top_k=1)
    body, _ = written(model, answer, n=2, most=None, sampling=greedy)
    assert len(body["prompt"]) + body["max_tokens"] == model.engine.block_size
    assert (body["temperature"], body["top_k"]) == (greedy.temperature, 1)


def test_a_stop_that_is_not_among_the_ids_ends_the_text_as_well(model: Model) -> None:
    ids = model.language.order.to_model(model.tokenizer.encode("A fox came.")).tolist()
    answer = events(chunk(ids), chunk([], finish="stop", stop_reason=model.tokenizer.start_id))
    _, [text] = written(model, answer)
    assert (text.text, text.finish_reason) == ("A fox came. The end.", "stop")


def test_strings_of_tokens_are_enough(model: Model) -> None:
    tokenizer = model.tokenizer
    ids = model.language.order.to_model(tokenizer.encode("A fox came.")).tolist()
    names = [f"token_id:{ids[0]}", *(tokenizer.token_bytes[id_].decode() for id_ in ids[1:])]
    told = {"tokens": names, "token_logprobs": [-1.0] * len(ids)}
    told_end = {"tokens": ["<|start|>"], "token_logprobs": [-1.0]}
    answer = events(
        chunk(ids, token_ids=None, logprobs=told),
        chunk([], token_ids=None, logprobs=told_end, finish="stop"),
    )
    _, [text] = written(model, answer)
    assert text.text == "A fox came. The end."


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (events(chunk([300])), 200, "ended its answer too early"),
        (events(chunk([2])), 200, "wrote id 2"),
        (events(chunk([99999])), 200, "wrote id 99999"),
        (events(chunk([300], token_ids=None, logprobs=None)), 200, "tells neither"),
        (events({"error": {"message": "SECRET"}}), 200, "failed while it wrote"),
        (events("{"), 200, "cannot be read"),
        (events("[]"), 200, "cannot be read"),
        (events({"choices": {}}), 200, "cannot be read"),
        (events({"choices": [{"text": ""}]}), 200, "cannot be read"),
        (events({"choices": ["x"]}), 200, "cannot be read"),
        (events(chunk([300], token_ids=["x"])), 200, "cannot be read"),
        (events(chunk([300], token_ids=None, logprobs={"tokens": ["token_id:x"]})), 200, "read"),
        (events(chunk([300], logprobs={"token_logprobs": ["x"]})), 200, "cannot be read"),
        (events(chunk([300], logprobs={"token_logprobs": [float("nan")]})), 200, "be read"),
        (events({"choices": [{"index": float("inf")}]}), 200, "cannot be read"),
        (events(chunk([300], logprobs={"token_logprobs": [10**400]})), 200, "cannot be read"),
        (b"data: " + b" " * (2 << 20), 200, "a line that does not end"),
        (b"", 500, "answered 500"),
        (b"", 429, "as many requests as it can take"),
    ],
)
def test_an_answer_that_cannot_be_used_is_told(
    model: Model, answer: bytes, status: int, reason: str
) -> None:
    with pytest.raises(ApiError, match=reason) as caught:
        written(model, answer, status=status)
    assert caught.value.status == (429 if status == 429 else 502)


@pytest.mark.parametrize("models", [b"{", b"[]", b"{}", b'{"data": [{}]}', b'{"data": 1}'])
def test_a_list_of_models_that_cannot_be_read_is_a_502(model: Model, models: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=models))

    async def write() -> None:
        upstream = Upstream("http://x", catalog_of(model), max_in_flight=9, transport=transport)
        job = Job(model.language, model.prompt("The end."), sampling=Sampling())
        async for _ in upstream.write([Part(model.engine, job)]).events():
            pass

    with pytest.raises(ApiError, match="cannot be read") as caught:
        asyncio.run(write())
    assert caught.value.status == 502


def test_a_server_behind_that_serves_other_models_by_now_is_asked_anew(model: Model) -> None:
    served, asked = ["a", "b"], []

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name} for name in served]})
        asked.append(json.loads(request.content)["model"])
        answer = events(chunk([int(model.tokenizer.encode("a")[0])], finish="length"))
        return httpx.Response(200 if asked[-1] in served else 404, content=answer)

    async def write_on(*now: str) -> str:
        served[:] = now
        job = Job(model.language, model.prompt("The end."), sampling=Sampling())
        try:
            async for _ in upstream.write([Part(model.engine, job)]).events():
                pass
        except ApiError as error:
            return str(error)
        return f"written by {asked[-1]}"

    async def write() -> list[str]:
        return [
            *(await write_on("a", "b"), await write_on("b", "tiny")),
            *(await write_on("other"), await write_on("other")),
        ]

    transport = httpx.MockTransport(reply)
    upstream = Upstream("http://x", catalog_of(model), max_in_flight=9, transport=transport)
    assert asyncio.run(write()) == [
        *("the upstream server has no model tiny: it has a, b", "written by tiny"),
        *("the upstream server answered 404", "written by other"),
    ]


@pytest.mark.slow
def test_more_than_a_hundred_are_written_at_a_time(model: Model) -> None:
    count, let_go = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = b'{"data": [{"id": "tiny"}]}'
        if head.startswith("POST"):
            count += 1
            if count == 110:
                let_go.set()
            await let_go.wait()
            body = events(chunk([300], finish="length"))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def write(upstream: Upstream) -> None:
        job = Job(model.language, model.prompt("The end."), sampling=Sampling())
        async for _ in upstream.write([Part(model.engine, job)]).events():
            pass

    async def test() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=200)
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream(f"http://127.0.0.1:{port}", catalog_of(model), max_in_flight=200)
        async with asyncio.timeout(20):
            await asyncio.gather(*(write(upstream) for _ in range(110)))
        await upstream.close()
        server.close()

    asyncio.run(test())


def test_a_connection_is_given_up_before_the_server_behind_closes_it() -> None:
    kept_behind = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert LIMITS.keepalive_expiry is not None
    assert LIMITS.keepalive_expiry < kept_behind


class Closing(httpx.MockTransport):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


def test_the_connections_are_closed_when_the_server_ends(model: Model) -> None:
    transport = Closing(lambda _: httpx.Response(500))
    front = catalog_of(model)
    upstream = Upstream("http://x", front, max_in_flight=9, transport=transport)
    with serving(front, writer=upstream):
        assert not transport.closed
    assert transport.closed


@pytest.mark.parametrize(
    "more",
    [
        {"stop": "a"},
        {"logprobs": 0},
        {"echo": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"order": "prepend"}},
    ],
)
def test_what_means_nothing_for_raw_ids_is_refused(
    addresses: tuple[str, str], more: dict[str, Any]
) -> None:
    answer = post(addresses[0], PATH, **{"prompt": [300], "backgpt": {"raw": {}}, **more})
    assert answer.status_code == 400
    assert "does not go with a raw prompt" in answer.json()["error"]["message"]


def test_as_many_raw_texts_as_may_be_asked_for_are_written(addresses: tuple[str, str]) -> None:
    asked = {"prompt": [300], "backgpt": {"raw": {}}, "n": MOST_RAW, "max_tokens": 1}
    assert len(post(addresses[0], PATH, **asked).json()["choices"]) == MOST_RAW

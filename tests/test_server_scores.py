"""Scores and alternatives over HTTP, and what the models are."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.api import Model
from backgpt.tokenizer import Tokenizer
from serving import CLIENT, catalog_of, post, serving
from tiny_models import tiny_model

TEXTS = ["Once there was a fox.\n\nIt ran. 😀 ", "", "\n x", "word " * 400]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, bias=0.0)


@pytest.fixture(scope="module")
def plain(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, told=False, hints=False)


@pytest.fixture(scope="module")
def address(model: Model, plain: Model, tokenizer: Tokenizer) -> Iterator[str]:
    forward = tiny_model(tokenizer, told=False, direction="forward")
    with serving(catalog_of(model, plain=plain, forward=forward)) as address:
        yield address


def test_both_ways_are_scored_word_by_word(address: str, model: Model) -> None:
    answer = post(address, "/v1/score", input=TEXTS).json()
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert [one["index"] for one in answer["data"]] == list(range(len(TEXTS)))
    for text, found in zip(TEXTS, answer["data"], strict=True):
        assert "".join(span["text"] for span in found["spans"]) == text
        for way in (model, model.turned()):
            score, total = way.score(text), found[way.direction]
            assert total["logprob"] == pytest.approx(score.logprob, abs=1e-3)
            assert total["n_tokens"] == score.n_tokens
            assert total["n_bytes"] == len(text.encode())
            assert total["n_windows"] == score.n_windows
            assert total["nats_per_token"] == pytest.approx(score.loss, abs=1e-4)
            spans = sum(span[way.direction] for span in found["spans"])
            assert spans + total["edge"] == pytest.approx(score.logprob, abs=1e-3)
    assert answer["data"][1]["backward"]["bits_per_byte"] is None


def test_a_long_text_is_scored_in_windows_that_overlap_if_asked(address: str, model: Model) -> None:
    text = "The dog ran home. " * 80
    for overlap in (0, 50):
        [found] = post(address, "/v1/score", input=text, overlap=overlap).json()["data"]
        score = model.score(text, overlap=overlap)
        assert found["backward"]["n_windows"] == score.n_windows > 1
        assert found["backward"]["logprob"] == pytest.approx(score.logprob, abs=1e-2)
    half = (model.engine.block_size - 1) // 2  # a direction is told
    assert post(address, "/v1/score", input="The end.", overlap=half).status_code == 200
    answer = post(address, "/v1/score", input="The end.", overlap=half + 1)
    assert answer.status_code == 400
    told = f"overlap = {half + 1}: it must be from 0 to {half} here"
    assert told in answer.json()["error"]["message"]


def test_one_way_alone_and_a_model_that_runs_one_way(address: str) -> None:
    forward = post(address, "/v1/score", input="The end.", direction="forward").json()["data"][0]
    assert forward["backward"] is None
    assert forward["spans"][0]["backward"] is None
    assert forward["forward"]["logprob"] < 0
    plain = post(address, "/v1/score", input="The end.", model="plain").json()["data"][0]
    assert plain["forward"] is None
    assert plain["backward"]["logprob"] < 0


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("score", {"input": "x", "model": "plain", "direction": "both"}, "only runs backward"),
        ("score", {"input": []}, "input"),
        ("score", {"input": ["x"] * 65}, "input"),
        ("score", {}, "input: Field required"),
        ("score", {"input": "x", "words": True}, "words: this field is not known"),
        ("alternatives", {"suffix": "x", "n": 51}, "n = 51: it must be less"),
        ("alternatives", {"suffix": "word " * 400}, "the model reads at most 256"),
        ("alternatives", {"suffix": "x", "model": "forward"}, "starts from an opening"),
        ("alternatives", {"suffix": "x", "model": "plain", "backgpt": {"words": ["a"]}}, "hints"),
    ],
)
def test_what_cannot_be_is_one_clear_400(
    address: str, path: str, body: dict[str, object], reason: str
) -> None:
    answer = post(address, f"/v1/{path}", **body)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]


def test_a_long_score_is_cut_small_and_only_the_engine_runs_on_the_decode_thread(
    address: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, score = Tokenizer.encode, model.engine.score
    threads: list[str] = []
    sizes: list[int] = []

    def watched(tokenizer: Tokenizer, text: str) -> Any:
        threads.append(threading.current_thread().name)
        return encode(tokenizer, text)

    def counted(sequences: Any) -> Any:
        sizes.append(sum(map(len, sequences)))
        return score(sequences)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    monkeypatch.setattr(model.engine, "score", counted)
    texts = [f"This is text {number} of many. " * 4 for number in range(30)]
    assert len(post(address, "/v1/score", input=texts).json()["data"]) == 30
    assert len(threads) == len(texts)
    assert "decode" not in threads
    assert max(sizes) <= 300


@pytest.mark.slow
def test_too_much_to_score_is_a_400_and_the_most_is_not(address: str) -> None:
    texts: Any
    for texts in ("x" * 65_537, ["x" * 1_100] * 60):
        answer = post(address, "/v1/score", input=texts)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input"
        assert "at most 65,536" in answer.json()["error"]["message"]
    assert post(address, "/v1/score", input="a dog " * 10_922).status_code == 200


def test_one_model_is_told_by_its_name(address: str) -> None:
    one = CLIENT.get(address + "/v1/models/plain")
    assert one.json() == CLIENT.get(address + "/v1/models").json()["data"][1]
    missing = CLIENT.get(address + "/v1/models/gpt")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"suffix": "x" * 100_000}),
        ("completions", {"prompt": ["x", "x" * 100_000]}),
        ("completions", {"prompt": "x" * 100_000, "backgpt": {"direction": "forward"}}),
        ("completions", {"prompt": [300] * 10_000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 100_000}]}),
        ("alternatives", {"suffix": "x" * 100_000}),
        ("alternatives", {"suffix": "x", "backgpt": {"words": ["x" * 100_000]}}),
    ],
)
def test_what_could_never_fit_is_refused_before_it_is_cut_into_ids(
    address: str, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    def only_short(encode: Any) -> Any:
        def short(tokenizer: Tokenizer, text: str) -> Any:
            assert len(text) < 10_000
            return encode(tokenizer, text)

        return short

    for name in ("encode", "encode_fragment"):
        monkeypatch.setattr(Tokenizer, name, only_short(getattr(Tokenizer, name)))
    answer = post(address, f"/v1/{path}", **body)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert "the model reads at most 256" in message
    assert message.endswith(": give a shorter one")


def test_a_text_that_could_never_fit_is_told_how_much_of_it_would(
    address: str, model: Model
) -> None:
    """What is told is found in a part of it: about so many characters do fit, and twice not."""
    text = "The little fox ran home. " * 4000
    body = {"messages": [{"role": "assistant", "content": text}]}
    message = post(address, "/v1/chat/completions", **body).json()["error"]["message"]
    told = re.fullmatch(
        r"the given text is 100,000 characters long, the model reads at most 256 ids, "
        r"here about ([\d,]+) characters: give a shorter one",
        message,
    )
    assert told
    about = int(told[1].replace(",", ""))
    assert len(model.tokenizer.encode(text[: about * 9 // 10])) <= 256
    assert len(model.tokenizer.encode(text[: about * 2])) > 256


def test_alternatives_are_those_of_python(address: str, model: Model) -> None:
    answer = post(address, "/v1/alternatives", suffix="ran home.", n=7).json()
    found = model.alternatives("ran home.", 7)
    assert [one["text"] for one in answer["data"]] == [one.text for one in found]
    assert [one["logprob"] for one in answer["data"]] == [one.logprob for one in found]
    assert [one["edge"] for one in answer["data"]] == [one.edge for one in found]
    hinted = post(
        address, "/v1/alternatives", suffix="ran home.", n=7, backgpt={"words": ["fox"]}
    ).json()
    assert hinted["data"] != answer["data"]


def test_the_models_say_what_they_can_do(address: str, model: Model) -> None:
    answer = CLIENT.get(address + "/v1/models").json()
    tiny, plain, forward = answer["data"]
    assert tiny == {
        "id": "tiny",
        "object": "model",
        "created": 0,
        "owned_by": "backgpt",
        "backgpt": {
            "directions": ["backward", "forward"],
            "hints": True,
            "chat": True,
            "block_size": 256,
            "description": "A tiny one.",
        },
    }
    assert (plain["backgpt"]["directions"], plain["backgpt"]["hints"]) == (["backward"], False)
    assert forward["backgpt"]["directions"] == ["forward"]


def test_a_name_that_says_the_way_is_taken_wherever_a_name_is(address: str) -> None:
    assert CLIENT.get(address + "/v1/models/tiny:forward").json()["id"] == "tiny:forward"
    assert CLIENT.get(address + "/v1/models/tiny:sideways").status_code == 404
    assert CLIENT.get(address + "/v1/models/plain:forward").json()["error"]["param"]
    for name, told in (("tiny", 2), ("tiny:forward", 1), ("tiny:backward", 1)):
        [text] = post(address, "/v1/score", input="The end.", model=name).json()["data"]
        ways = [way for way in ("backward", "forward") if text.get(way)]
        assert len(ways) == told
        assert ":" not in name or ways == [name.partition(":")[2]]


def test_a_name_of_its_own_that_looks_like_a_way_is_that_models(model: Model, plain: Model) -> None:
    catalog = catalog_of(model, **{"plain": plain, "plain:forward": model})
    assert catalog.direction_in("plain:forward") is None
    assert catalog.for_text("plain:forward") == ("plain:forward", model)
    assert catalog.direction_in("plain:forward:forward") == "forward"


def test_metrics_count_what_was_done_and_hold_no_text(address: str) -> None:
    post(address, "/v1/completions", prompt="SECRET", max_tokens=2)
    post(address, "/v1/SECRET", prompt="x")
    text = CLIENT.get(address + "/metrics").text
    assert 'backgpt_requests_total{route="/v1/completions",status="200"}' in text
    assert 'backgpt_requests_total{route="other",status="404"}' in text
    assert "backgpt_tokens_drawn_total" in text
    assert "backgpt_samples_in_flight 0.0" in text
    assert "SECRET" not in text

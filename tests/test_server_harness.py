"""The server as lm-evaluation-harness asks it: `local-completions` of version 0.4.13, as it stands.

Its requests are built here, and its answers read, as its code does: whole sentences behind a
prefix id, ids rather than text, one token to be written behind them. What it makes of the answers
must be what the model says in this process.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

import backgpt
from backgpt.api import Model
from backgpt.corpus import stories
from backgpt.language import Language
from backgpt.order import Direction
from backgpt.server.tokens import Token, token_logprobs
from backgpt.tokenizer import Tokenizer
from serving import catalog_of, post, serving
from tiny_models import tiny_model

PATH = "/v1/completions"
N_PAIRS = 200
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

Request = tuple[list[int], list[int]]
"""The ids of a context and of its continuation."""


def pairs(n: int = N_PAIRS) -> list[tuple[str, str]]:
    """Return sentences of the built-in corpus, each with itself after two words changed places."""
    found: dict[str, str] = {}
    for number, story in enumerate(stories()):
        sentence = story.split("\n")[0].split(". ")[0].rstrip(".") + "."
        words = sentence.split(" ")
        place = 1 + number % max(len(words) - 3, 1)
        changed = [*words[:place], *words[place : place + 2][1:], words[place], *words[place + 2 :]]
        if len(words) > 5 and changed != words:
            found.setdefault(sentence, " ".join(changed))
        if len(found) == n:
            return list(found.items())
    raise AssertionError("the corpus has too few sentences")


SENTENCES = [sentence for pair in pairs() for sentence in pair]


class Harness:
    """What the harness does: `LocalCompletionsAPI`, and what it inherits, for likelihoods."""

    def __init__(
        self, address: str, model: str, tokenizer: Tokenizer, prefix: int, batch_size: int = 16
    ) -> None:
        self.address, self.model, self.tokenizer = address, model, tokenizer
        self.prefix, self.batch_size = prefix, batch_size

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).tolist()
        return ids

    def pair(self, context: str, continuation: str) -> Request:
        if not context:
            return [self.prefix], self.encode(continuation)
        whole, before = self.encode(context + continuation), self.encode(context)
        return before, whole[len(before) :]

    def loglikelihood(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation and whether it is the likeliest one."""
        requests = [self.pair(*of_text) for of_text in texts]
        rows = [context + continuation for context, continuation in requests]
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), rows[number]))
        found: dict[int, tuple[float, bool]] = {}
        for first in range(0, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            answer = self.ask([rows[number] for number in numbers])
            contexts = [len(requests[number][0]) for number in numbers]
            found |= dict(zip(numbers, self.read(answer, contexts), strict=True))
        return [found[number] for number in range(len(rows))]

    def ask(self, prompt: Any) -> dict[str, Any]:
        answer = post(
            self.address,
            PATH,
            model=self.model,
            prompt=prompt,
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    @staticmethod
    def read(answer: dict[str, Any], contexts: list[int]) -> Iterator[tuple[float, bool]]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        for choice, n_context in zip(choices, contexts, strict=True):
            logprobs = choice["logprobs"]["token_logprobs"][n_context:-1]
            tops = choice["logprobs"]["top_logprobs"][n_context:-1]
            greedy = all(
                logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True)
            )
            yield sum(logprobs), greedy


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer) -> dict[str, Model]:
    return {
        "stories": backgpt.load("stories", threads=1),
        "float": tiny_model(tokenizer, bias=0.0),
        "words": tiny_model(tokenizer, unit="word", bias=0.0),
        "plain": tiny_model(tokenizer, direction="forward", told=False, bias=0.0),
        "ends": tiny_model(tokenizer, bias=50.0),
    }


@pytest.fixture(scope="module")
def address(models: dict[str, Model]) -> Iterator[str]:
    with serving(catalog_of(models["float"], **models)) as address:
        yield address


def harness(
    address: str, models: dict[str, Model], name: str, direction: Direction, **settings: int
) -> Harness:
    tokenizer = models[name].tokenizer
    # The tokenizer of a model that runs both ways names <|start|> as its eos_token, which is what
    # the harness puts in front where there is no bos_token.
    return Harness(address, f"{name}:{direction}", tokenizer, tokenizer.start_id, **settings)


def running(models: dict[str, Model], name: str, direction: Direction) -> Model:
    model = models[name]
    return model if model.direction == direction else model.turned()


def in_process(model: Model, texts: Sequence[str]) -> list[float]:
    """Return log p of the ids of each text given the marker at its edge, without the far edge."""
    return [math.fsum(score.token_logprobs[1:-1].tolist()) for score in model.score_all(texts)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("name", "n_pairs"), [pytest.param("stories", N_PAIRS, marks=pytest.mark.slow), ("float", 10)]
)
def test_whole_sentences_score_as_in_process_and_so_do_pairs(
    address: str, models: dict[str, Model], name: str, n_pairs: int, direction: Direction
) -> None:
    asked = harness(address, models, name, direction, batch_size=64)
    texts = SENTENCES[: 2 * n_pairs]
    found = [logprob for logprob, _ in asked.loglikelihood([("", text) for text in texts])]
    expected = in_process(running(models, name, direction), texts)
    assert len(found) == 2 * n_pairs
    assert found == pytest.approx(expected, abs=1e-5)
    likelier = [good > bad for good, bad in zip(found[::2], found[1::2], strict=True)]
    assert likelier == [g > b for g, b in zip(expected[::2], expected[1::2], strict=True)]
    if name == "stories":  # it was trained on sentences like these
        assert sum(likelier) > 0.9 * n_pairs


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_native_engine_gives_the_same_numbers_in_any_batch(
    address: str, models: dict[str, Model], direction: Direction
) -> None:
    pytest.importorskip("backgpt.engine._native", reason="there is no native engine here")
    texts = [("", text) for text in SENTENCES[:30]]
    alone, together = (
        harness(address, models, "stories", direction, batch_size=size).loglikelihood(texts)
        for size in (1, 30)
    )
    assert alone == together
    expected = in_process(running(models, "stories", direction), SENTENCES[:30])
    assert [logprob for logprob, _ in alone] == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("name", "n"), [pytest.param("stories", N_PAIRS, marks=pytest.mark.slow), ("float", 10)]
)
def test_without_writing_sentences_given_as_text_score_the_same(
    address: str, models: dict[str, Model], name: str, n: int, direction: Direction
) -> None:
    found: list[float] = []
    for first in range(0, n, 50):
        batch = SENTENCES[: 2 * n : 2][first : first + 50]
        asked = {"max_tokens": 0, "echo": True, "logprobs": 1, "model": f"{name}:{direction}"}
        choices = post(address, PATH, prompt=batch, **asked).json()["choices"]
        found += [math.fsum(choice["logprobs"]["token_logprobs"]) for choice in choices]
    expected = in_process(running(models, name, direction), SENTENCES[: 2 * n : 2])
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_whole_words_that_are_turned_around_score_as_in_process(
    address: str, models: dict[str, Model], direction: Direction
) -> None:
    texts = SENTENCES[:8]
    asked = harness(address, models, "words", direction)
    found = [logprob for logprob, _ in asked.loglikelihood([("", text) for text in texts])]
    expected = in_process(running(models, "words", direction), texts)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_continuation_scores_as_in_process_as_ids_and_as_text(
    address: str, models: dict[str, Model]
) -> None:
    asked = harness(address, models, "float", "forward")
    model = running(models, "float", "forward")
    for text in SENTENCES[:8:2]:
        words = text.split(" ")
        given = (" ".join(words[:3]), " " + " ".join(words[3:]))
        [(found, _)] = asked.loglikelihood([given])
        context = asked.pair(*given)[0]
        logprobs = model.score(text).token_logprobs[1 + len(context) : -1]
        assert found == pytest.approx(math.fsum(logprobs.tolist()), abs=1e-5)
        as_text = next(asked.read(asked.ask(text), [len(context)]))
        assert as_text[0] == found


def test_what_is_likeliest_is_told_truly(address: str, models: dict[str, Model]) -> None:
    asked = harness(address, models, "float", "forward")
    model = running(models, "float", "forward")
    truth = []
    for context in SENTENCES[:4]:
        row, logits = model.engine.prefill(model.prompt(opening=context).ids)
        model.engine.release(row)
        best, worst = int(np.argmax(logits)), int(np.argmin(logits))
        truth.append((context, best, worst))
    for context, best, worst in truth:
        ids = asked.encode(context)
        for id_, expected in ((best, True), (worst, False)):
            if model.tokenizer.has_text[id_]:
                answer = asked.ask([[asked.prefix, *ids, id_]])
                [(_, greedy)] = asked.read(answer, [1 + len(ids)])
                assert greedy is expected


def test_a_token_that_looks_the_same_is_not_taken_for_the_one_that_is_there(
    tokenizer: Tokenizer,
) -> None:
    bare, spaced = (tokenizer.token_bytes.index(data) for data in (b"a", b" a"))
    tokens = [Token(spaced, -2.0, ((bare, -0.5),))]  # the space before a text is not shown
    language = Language(tokenizer, "forward", "token")
    found = token_logprobs(language, tokens, "a", uncut="a", n_likeliest=1)
    assert found.top_logprobs == [{f"id {bare}": -0.5, "a": -2.0}]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_marker_that_is_given_or_written_stands_as_an_empty_token(
    address: str, models: dict[str, Model], direction: Direction
) -> None:
    """Else what reads the answer by counting ids would count from the wrong place."""
    asked = harness(address, models, "ends", direction)
    ids = asked.encode("The end.")
    [choice] = asked.ask([[asked.prefix, *ids]])["choices"]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(ids) + 2
    assert found["tokens"][0] == found["tokens"][-1] == ""
    assert "".join(found["tokens"]) == choice["text"] == "The end."
    assert choice["finish_reason"] == "stop"
    near, far = (0, -1) if direction == "forward" else (-1, 0)
    assert found["token_logprobs"][near] is found["top_logprobs"][near] is None
    assert found["token_logprobs"][far] <= 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_markers_make_the_log_probability_of_the_document(
    address: str, models: dict[str, Model], direction: Direction
) -> None:
    asked = harness(address, models, "float", direction)
    model, text = running(models, "float", direction), SENTENCES[0]
    ids = [model.tokenizer.start_id, *asked.encode(text), model.tokenizer.end_id]
    [choice] = asked.ask(ids)["choices"]
    values = [value or 0.0 for value in choice["logprobs"]["token_logprobs"]]
    assert values == pytest.approx(model.score(text).token_logprobs.tolist(), abs=1e-5)
    assert choice["text"] == text


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("plain", {"prompt": [2, 300]}, r"id 2 stands for no text .* only <\|start\|> \(1\) and"),
        ("float", {"prompt": [300, 1, 301]}, "id 1 stands for no text"),
        ("float", {"prompt": [1, 300], "echo": False}, "is a whole text: it is only scored"),
        ("float", {"prompt": [1, 300], "stream": True}, "is a whole text: it is only scored"),
        ("float", {"prompt": [[1, 300], [300]]}, "beside others like it"),
        ("float", {"prompt": [300, 2], "backgpt": {"continues": True}}, "leave one out"),
        ("float", {"prompt": "<|start|> The end."}, "tokenized_requests=True"),
        ("float", {"prompt": ["The end.", "<|start|> The end."]}, "tokenized_requests=True"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    address: str, name: str, body: dict[str, Any], reason: str
) -> None:
    answer = post(address, PATH, **{"model": name, "echo": True, "logprobs": 1, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "prompt"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(error["message"])


def test_a_typed_marker_is_text_where_nothing_is_scored(
    address: str, models: dict[str, Model]
) -> None:
    body = {"model": "ends", "prompt": "<|start|> is text.", "max_tokens": 1, "echo": True}
    assert post(address, PATH, **body).json()["choices"][0]["text"] == "<|start|> is text."


def test_the_markers_are_read_in_any_case(address: str) -> None:
    asked: dict[str, Any] = {"seed": 3, "max_tokens": 8}
    for name, ids in (("float:forward", [1, 300, 301]), ("float:backward", [300, 301, 2])):
        texts = [
            post(address, PATH, model=name, prompt=prompt, **asked).json()["choices"][0]["text"]
            for prompt in (ids, [300, 301])
        ]
        assert texts[0] == texts[1]

"""Completions over HTTP: what is written, how it is streamed, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.api import Model
from backgpt.hints import words_of
from backgpt.order import Direction, Unit
from backgpt.sampling import Sampling
from backgpt.server.channel import Channel, Said, Wrote
from backgpt.tokenizer import Tokenizer
from serving import catalog_of, chunks_of, joined, post, serving
from tiny_models import scripted_model, tiny_model

PATH = "/v1/completions"
SCRIPTS = [
    "Once there was a fox.\nIt ran home.",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 🇯🇵 met.",
    "昔々、おじいさんがいました。 年をとった。",
    "e\u0301a\u0308\u0323 n\u0303 \u0915\u094d\u0937 \u0e01\u0e33 \u0627\u0644\u0639",
    "\n\nTwo lines\n\n\nand\u2028more\u0085here \r\n",
]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def address(model: Model, tokenizer: Tokenizer) -> Iterator[str]:
    plain = tiny_model(tokenizer, told=False, hints=False)
    words = tiny_model(tokenizer, unit="word", told=False, bias=1.0)
    calm = tiny_model(tokenizer, bias=0.0)
    with serving(catalog_of(model, plain=plain, words=words, calm=calm)) as address:
        yield address


def test_the_same_seed_gives_the_texts_that_python_gives(address: str, model: Model) -> None:
    asked = {"n": 3, "seed": 5, "temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    answer = post(address, PATH, suffix="The end.", max_tokens=30, **asked).json()
    sampling = Sampling(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01)
    texts = model.write("The end.", n=3, seed=5, max_new_tokens=30, sampling=sampling)
    assert [choice["text"] + "The end." for choice in answer["choices"]] == [
        text.text for text in texts
    ]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice, text in zip(answer["choices"], texts, strict=True):
        assert choice["finish_reason"] == text.finish_reason
        assert choice["backgpt"] == {
            "seed": 5,
            "logprob": pytest.approx(text.logprob),
            "n_tokens": text.n_tokens,
            "obeyed": None,
        }
    n_given = len(model.prompt("The end.").ids)
    assert answer["usage"]["prompt_tokens"] == n_given
    assert answer["usage"]["completion_tokens"] == sum(text.n_tokens for text in texts)


@pytest.mark.parametrize(
    ("asked", "live"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"order": "prepend"}}, True),
        ({"stream": True, "stream_options": {"order": "prepend"}, "best_of": 2}, False),
        ({"stream": True, "backgpt": {"direction": "forward"}}, True),
        ({"stream": True, "backgpt": {"direction": "forward"}, "logprobs": 1}, False),
    ],
)
def test_pieces_are_told_only_where_they_are_sent(
    address: str, asked: dict[str, Any], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    put = Channel.put

    def watched(channel: Channel, event: Said) -> None:
        told.append(event)
        put(channel, event)

    monkeypatch.setattr(Channel, "put", watched)
    forward = "backgpt" in asked
    given = {"prompt": "Once"} if forward else {"suffix": "The end."}
    assert post(address, PATH, **given, max_tokens=20, seed=5, **asked).status_code == 200
    assert any(isinstance(event, Wrote) for event in told) == live


def test_the_defaults_are_the_projects_own_and_a_drawn_seed_writes_it_again(
    address: str, model: Model
) -> None:
    choice = post(address, PATH, suffix="The end.", max_tokens=20).json()["choices"][0]
    [text] = model.write("The end.", seed=choice["backgpt"]["seed"], max_new_tokens=20)
    assert choice["text"] + "The end." == text.text


def test_temperature_0_takes_the_likeliest(address: str, model: Model) -> None:
    choice = post(address, PATH, suffix="The end.", max_tokens=20, temperature=0).json()
    [text] = model.write("The end.", max_new_tokens=20, sampling=Sampling(top_k=1))
    assert choice["choices"][0]["text"] + "The end." == text.text


def test_both_penalties_can_be_left_out(address: str, tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=0.0)
    asked: dict[str, Any] = {"suffix": "The end.", "max_tokens": 60, "temperature": 0}
    asked |= {"model": "calm", "repetition_penalty": 1}
    greedy = Sampling(top_k=1, repetition_penalty=1)
    texts = []
    for given, sampling in (
        ({}, greedy),
        ({"dry_multiplier": 0}, replace(greedy, dry_multiplier=0)),
    ):
        choice = post(address, PATH, **asked, **given).json()["choices"][0]
        [text] = model.write("The end.", max_new_tokens=60, sampling=sampling)
        assert choice["text"] + "The end." == text.text
        texts.append(text.text)
    assert texts[0] != texts[1]


def test_a_prompt_is_an_ending_and_forward_an_opening(address: str, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": "The end.", "seed": 1, "max_tokens": 20}
    backward = post(address, PATH, **asked).json()["choices"][0]["text"]
    assert backward + "The end." == model.write("The end.", seed=1, max_new_tokens=20)[0].text
    expected = model.turned().write(opening="The end.", seed=1, max_new_tokens=20)[0].text
    for way in (
        {"backgpt": {"direction": "forward"}},
        {"model": "tiny:forward"},
    ):
        forward = post(address, PATH, **asked, **way).json()["choices"][0]["text"]
        assert "The end." + forward == expected


def test_hints_are_those_of_python_and_whether_they_are_obeyed_is_told(
    address: str, model: Model
) -> None:
    ours = {"words": ["fox"], "length": "short"}
    answer = post(address, PATH, suffix="The fox.", seed=2, max_tokens=20, backgpt=ours).json()
    choice = answer["choices"][0]
    text = model.write("The fox.", words=["fox"], length="short", seed=2, max_new_tokens=20)[0]
    assert choice["text"] + "The fox." == text.text
    told = {"words": True, "length": True, "missing": [], "n_words": len(words_of(text.text))}
    assert choice["backgpt"]["obeyed"] == told


def test_what_is_missing_is_told_and_how_many_words_the_length_was_told_by(address: str) -> None:
    asked = {"suffix": "The fox.", "seed": 2, "max_tokens": 4}
    words = {"words": ["fox", "xylophone zeppelin"]}
    [choice] = post(address, PATH, **asked, backgpt=words).json()["choices"]
    missing = {"words": False, "missing": ["xylophone zeppelin"]}
    assert choice["backgpt"]["obeyed"] == {"length": None, "n_words": None, **missing}
    [choice] = post(address, PATH, **asked, backgpt={"length": "long"}).json()["choices"]
    count = {"length": False, "n_words": len(words_of(choice["text"] + "The fox."))}
    assert choice["backgpt"]["obeyed"] == {"words": None, "missing": None, **count}


@pytest.mark.parametrize("way", ["backward", "forward"])
def test_a_prompt_and_a_suffix_are_bridged_as_python_does(
    address: str, model: Model, way: Direction
) -> None:
    opening, ending = "One day, a fox", " The end."
    asked: dict[str, Any] = {"prompt": opening, "suffix": ending, "seed": 5, "max_tokens": 30}
    asked |= {"n": 2, "best_of": 5, "backgpt": {"direction": way, "words": ["fox"]}}
    answer = post(address, PATH, **asked).json()
    writer = model if way == "backward" else model.turned()
    bridges = writer.bridge(opening, ending, 5, words=["fox"], max_new_tokens=30, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, bridge in zip(answer["choices"], bridges, strict=False):
        assert opening + choice["text"] + ending == bridge.text
        assert choice["finish_reason"] == bridge.finish_reason
        assert choice["backgpt"]["logprob"] == pytest.approx(bridge.logprob, abs=1e-3)
        of_words = {"words": True, "missing": []}
        assert choice["backgpt"]["obeyed"] == {"length": None, "n_words": None, **of_words}
    written = answer["usage"]["completion_tokens"]
    assert written > sum(choice["backgpt"]["n_tokens"] for choice in answer["choices"])
    whole = post(address, PATH, **asked, echo=True).json()["choices"]
    assert [choice["text"] for choice in whole] == [bridge.text for bridge in bridges[:2]]
    for order in ("append", "prepend"):
        options = {"order": order, "include_usage": True}
        chunks = chunks_of(address, PATH, **asked, stream_options=options)
        assert joined(chunks) == answer["choices"][0]["text"]
        assert chunks[-1]["usage"] == answer["usage"]


def test_a_bridge_without_a_limit_fits_the_context_as_python_has_it(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-50.0, hints=False)  # which never ends by itself
    opening = "One day, " * 20
    asked = {"prompt": opening, "suffix": " The end.", "seed": 2, "best_of": 2}
    with serving(catalog_of(model)) as address:
        answer = post(address, PATH, **asked)
    assert answer.status_code == 200, answer.text
    bridges = model.bridge(opening, " The end.", 2, seed=2)
    assert answer.json()["choices"][0]["text"] == bridges[0].middle


def test_eight_bridges_are_written_if_nothing_else_is_said(address: str, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": "One day,", "suffix": " The end.", "seed": 2}
    choice = post(address, PATH, **asked, max_tokens=20).json()["choices"][0]
    bridges = model.bridge("One day,", " The end.", 8, seed=2, max_new_tokens=20)
    assert "One day," + choice["text"] + " The end." == bridges[0].text
    assert len({bridge.text for bridge in bridges}) > 1


def test_the_best_of_several_texts_is_the_one_that_python_chooses(
    address: str, model: Model
) -> None:
    asked: dict[str, Any] = {"suffix": "The end.", "seed": 4, "max_tokens": 25}
    [best] = model.write("The end.", seed=4, max_new_tokens=25, best_of=6)
    tried = model.write("The end.", n=6, seed=4, max_new_tokens=25)
    answer = post(address, PATH, **asked, best_of=6, n=2, logprobs=1).json()
    choices = answer["choices"]
    assert choices[0]["text"] + "The end." == best.text != tried[0].text
    assert choices[1]["text"] + "The end." in {text.text for text in tried} - {best.text}
    assert "".join(choices[0]["logprobs"]["tokens"]) == choices[0]["text"]
    assert answer["usage"]["completion_tokens"] == sum(text.n_tokens for text in tried)
    options = {"order": "prepend"}
    assert (
        joined(chunks_of(address, PATH, **asked, best_of=6, stream_options=options))
        == (choices[0]["text"])
    )


def test_every_prompt_has_its_own_best(address: str, model: Model) -> None:
    asked: dict[str, Any] = {"prompt": ["The end.", "He ran."], "seed": 3, "max_tokens": 25}
    choices = post(address, PATH, **asked, best_of=4).json()["choices"]
    for choice, ending in zip(choices, asked["prompt"], strict=True):
        [best] = model.write(ending, seed=3, max_new_tokens=25, best_of=4)
        assert choice["text"] + ending == best.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "direction"), [("token", "backward"), ("word", "backward"), ("token", "forward")]
)
def test_a_prepend_stream_joins_to_the_text_in_any_script(
    tokenizer: Tokenizer, unit: Unit, direction: Direction
) -> None:
    models = {
        f"script-{number}": scripted_model(tokenizer, text, unit=unit, direction=direction)
        for number, text in enumerate(SCRIPTS)
    }
    with serving(catalog_of(models["script-0"], **models)) as address:
        for name, text in zip(models, SCRIPTS, strict=True):
            _assert_streams_join(address, name, text)


def _assert_streams_join(address: str, name: str, text: str) -> None:
    asked = {"model": name, "prompt": "The end.", "temperature": 0}
    whole = post(address, PATH, **asked).json()["choices"][0]["text"]
    live = chunks_of(address, PATH, **asked, stream_options={"order": "prepend"})
    plain = chunks_of(address, PATH, **asked)
    assert text.strip() in whole
    assert joined(live) == joined(plain) == whole
    assert {chunk["backgpt"]["order"] for chunk in plain} == {"append"}
    assert len(live) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "words", "tiny:forward"])
@pytest.mark.parametrize("ending", ["The end.", " end", "\n😀", "é"])
def test_streams_of_several_samples_join_to_what_is_written_without_one(
    address: str, name: str, ending: str
) -> None:
    asked: dict[str, Any] = {"model": name, "prompt": ending, "n": 4, "seed": 7, "max_tokens": 40}
    asked |= {"temperature": 1.2, "min_p": 0.0}
    texts = [choice["text"] for choice in post(address, PATH, **asked).json()["choices"]]
    options = {"order": "prepend", "include_usage": True}
    live = chunks_of(address, PATH, **asked, stream_options=options)
    plain = chunks_of(address, PATH, **asked)
    assert len(set(texts)) > 1
    for index, text in enumerate(texts):
        assert joined(live, index) == joined(plain, index) == text
        last = [c["choices"][0] for c in live if c["choices"] and c["choices"][0]["index"] == index]
        assert [one["finish_reason"] is not None for one in last].count(True) == 1
        assert last[-1]["text"] == ""
    assert live[-1]["choices"] == []
    assert live[-1]["usage"] == post(address, PATH, **asked).json()["usage"]


def test_echo_gives_the_whole_text_streamed_or_not(address: str) -> None:
    asked: dict[str, Any] = {"suffix": "The end.", "seed": 3, "max_tokens": 15, "echo": True}
    whole = post(address, PATH, **asked).json()["choices"][0]["text"]
    assert whole.endswith("The end.")
    assert joined(chunks_of(address, PATH, **asked)) == whole
    assert joined(chunks_of(address, PATH, **asked, stream_options={"order": "prepend"})) == whole


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_a_stop_string_ends_a_text_and_is_never_in_a_stream(
    tokenizer: Tokenizer, direction: Direction
) -> None:
    text = "Once there was a fox.\nIt ran home."
    model = scripted_model(tokenizer, text, direction=direction)
    with serving(catalog_of(model)) as address:
        for stops in (["\n"], ["ran", "fox"], ["a fox.\nIt"]):
            _assert_stops(address, model, text, stops)


def _assert_stops(address: str, model: Model, text: str, stops: list[str]) -> None:
    asked = {"prompt": "The end.", "temperature": 0, "stop": stops}
    choice = post(address, PATH, **asked).json()["choices"][0]
    live = joined(chunks_of(address, PATH, **asked, stream_options={"order": "prepend"}))
    if model.direction == "backward":
        expected = text[max(text.rindex(one) + len(one) for one in stops) :] + " "
        [python] = model.write("The end.", stop=stops, sampling=Sampling(top_k=1))
        assert python.text == expected + "The end."
    else:
        expected = " " + text[: min(text.index(one) for one in stops)]
    assert choice["text"] == live == expected
    assert choice["finish_reason"] == "stop"


def test_a_list_of_prompts_is_answered_as_each_alone(address: str) -> None:
    prompts = ["The end.", "So they slept.", "😀"]
    asked: dict[str, Any] = {"n": 2, "seed": 4, "max_tokens": 10}
    together = post(address, PATH, prompt=prompts, **asked).json()["choices"]
    assert [choice["index"] for choice in together] == list(range(6))
    alone = [post(address, PATH, prompt=one, **asked).json()["choices"] for one in prompts]
    assert [choice["text"] for choice in together] == [
        choice["text"] for choices in alone for choice in choices
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "words", "tiny:forward"])
def test_a_prompt_of_ids_is_the_text_they_make(
    address: str, tokenizer: Tokenizer, name: str
) -> None:
    for text in ("The end.", "\nThe end.", "é 😀"):
        ids = tokenizer.encode(text).tolist()
        asked: dict[str, Any] = {"model": name, "seed": 4, "max_tokens": 10, "echo": True}
        one = post(address, PATH, prompt=ids, **asked).json()["choices"][0]
        assert one["text"] == post(address, PATH, prompt=text, **asked).json()["choices"][0]["text"]
        both = post(address, PATH, prompt=[ids, ids], **asked).json()["choices"]
        assert [choice["text"] for choice in both] == [one["text"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "words", "tiny:forward"])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [None, " "])
def test_tokens_join_to_the_text_with_their_own_log_probabilities(
    address: str, name: str, echo: bool, stop: str | None
) -> None:
    asked: dict[str, Any] = {"model": name, "prompt": "The end 😀.", "seed": 9, "max_tokens": 25}
    asked |= {"echo": echo, "logprobs": 3, "stop": stop}
    choice = post(address, PATH, **asked).json()["choices"][0]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    for token, offset, top, logprob in zip(
        found["tokens"],
        found["text_offset"],
        found["top_logprobs"],
        found["token_logprobs"],
        strict=True,
    ):
        assert choice["text"][offset:].startswith(token)
        assert top[token] == logprob <= 0
        assert len(top) + 1 >= 3
    streamed = chunks_of(address, PATH, **asked)
    assert [c["choices"][0]["logprobs"] for c in streamed if c["choices"][0]["logprobs"]] == [found]


def test_echo_without_writing_or_scores_is_the_given_text(address: str, model: Model) -> None:
    asked: dict[str, Any] = {"echo": True, "max_tokens": 0}
    [choice] = post(address, PATH, **asked, prompt="The end.").json()["choices"]
    assert (choice["text"], choice["logprobs"]) == ("The end.", None)
    ids = model.tokenizer.mark(model.tokenizer.encode("The end.")).tolist()
    [choice] = post(address, PATH, prompt=ids, echo=True).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("The end.", "stop")


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("n_likeliest", [0, 2])
def test_echo_without_writing_scores_the_given_text(
    address: str, tokenizer: Tokenizer, direction: Direction, n_likeliest: int
) -> None:
    text = "Once there was a fox.\nIt ran 😀."
    asked: dict[str, Any] = {"max_tokens": 0, "echo": True, "logprobs": n_likeliest}
    asked |= {"model": "calm", "backgpt": {"direction": direction}}
    model = tiny_model(tokenizer, bias=0.0)
    ids = model.tokenizer.encode(text).tolist()
    way = model if direction == "backward" else model.turned()
    score = way.score(text)
    for prompt in (text, ids, [text], [ids]):
        choice = post(address, PATH, prompt=prompt, **asked).json()["choices"][0]
        assert choice["text"] == text == "".join(choice["logprobs"]["tokens"])
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(
            score.token_logprobs[1:-1].tolist(), abs=1e-3
        )
    several = post(address, PATH, prompt=[text, "The end."], **asked).json()["choices"]
    assert [choice["text"] for choice in several] == [text, "The end."]


def test_the_ids_that_were_written_are_told_if_asked_streamed_or_not(
    address: str, tokenizer: Tokenizer
) -> None:
    asked: dict[str, Any] = {"prompt": "The end.", "max_tokens": 7, "seed": 3, "n": 2}
    texts = tiny_model(tokenizer).write("The end.", max_new_tokens=7, seed=3, n=2)
    choices = post(address, PATH, **asked, return_token_ids=True).json()["choices"]
    assert [choice["token_ids"] for choice in choices] == [text.ids.tolist() for text in texts]
    for order in ("append", "prepend"):
        options = {"stream_options": {"order": order}}
        chunks = chunks_of(address, PATH, **asked, **options, return_token_ids=True)
        told = {one["index"]: one["token_ids"] for [one] in map(choices_of, chunks) if one}
        assert told == {index: text.ids.tolist() for index, text in enumerate(texts)}
    assert "token_ids" not in str(chunks_of(address, PATH, **asked))


def choices_of(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of a chunk that tell their ids, or one that is empty."""
    return [choice for choice in chunk["choices"] if "token_ids" in choice] or [{}]


def test_without_a_marker_the_first_token_is_not_predicted(address: str) -> None:
    asked: dict[str, Any] = {"prompt": "The end.", "max_tokens": 0, "echo": True, "logprobs": 2}
    asked |= {"model": "plain", "backgpt": {"continues": True}}
    found = post(address, PATH, **asked).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"][-1] is None
    assert found["top_logprobs"][-1] is None
    assert all(value < 0 for value in found["token_logprobs"][:-1])


REFUSED = [
    ({}, "give it an ending"),
    ({"prompt": "x", "suffix": "y", "model": "plain"}, "a model that runs both ways"),
    ({"prompt": " ", "suffix": "y"}, "the opening is empty"),
    ({"prompt": "word " * 200, "suffix": "y " * 200}, "give shorter ones"),
    ({"prompt": "x", "suffix": "y", "stop": "z"}, "stop does not go with prompt and suffix"),
    ({"prompt": "x", "suffix": "y", "logprobs": 1}, "logprobs does not go with prompt"),
    ({"prompt": "x", "suffix": "y", "max_tokens": 0, "echo": True}, "max_tokens = 0 does not"),
    ({"prompt": "x", "suffix": "y", "backgpt": {"continues": True}}, "continues does not go with"),
    ({"suffix": "y", "model": "tiny:forward"}, "goes on from a prompt"),
    ({"prompt": ["x"], "suffix": "y"}, "suffix goes with one prompt"),
    ({"prompt": "word " * 400}, "the model reads at most 256"),
    ({"prompt": "x", "model": "plain", "backgpt": {"direction": "forward"}}, "only runs backward"),
    ({"prompt": "x", "backgpt": {"words": ["a"], "continues": True}}, "hints are for whole texts"),
    ({"prompt": "x", "backgpt": {"length": "huge"}}, "backgpt.length"),
    ({"prompt": "x", "max_tokens": 0}, "only goes with echo"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "x", "n": 0}, "n = 0: it must be greater than or equal to 1"),
    ({"prompt": "x", "n": 17}, "n = 17: it must be at most 16"),
    ({"prompt": ["x"] * 64, "n": 3}, "at most 128 texts"),
    ({"prompt": [5]}, "id 5 stands for no text"),
    ({"prompt": [99999]}, "id 99999 stands for no text"),
    ({"prompt": []}, "prompt: it must have at least 1 item"),
    ({"prompt": [2**40]}, "prompt.0 = 1099511627776: it must be less than"),
    ({"prompt": [-1]}, "prompt.0 = -1: it must be greater than or equal to 0"),
    ({"prompt": ["a", 1]}, "prompt.1 = 1: it must be a valid string"),
    ({"prompt": [1, 2, "a"]}, 'prompt.2 = "a": it must be a valid integer'),
    ({"prompt": "x", "logit_bias": {"5": 0}}, "logit_bias: not done here: leave it out"),
    ({"prompt": [300], "n": 65, "backgpt": {"raw": {}}}, "n = 65: it must be at most 64"),
    ({"prompt": [[]]}, "prompt.0: it must have at least 1 item"),
    ({"prompt": 5}, "prompt = 5: it must be a valid string"),
    (
        {"prompt": "x", "backgpt": {"words": ["w"] * 19}},
        "words: it must have at most 16 items,",
    ),
    ({"prompt": "x", "backgpt": {"words": ["a b c d e f g h i j k l m n o p q"]}}, "at most 16"),
    ({"prompt": [300], "backgpt": {"raw": {}, "words": ["x y z " * 500]}}, "at most"),
    ({"prompt": "x", "dry_multiplier": -1}, "dry_multiplier"),
    ({"prompt": "x", "backgpt": {"raw": {}}}, "a raw prompt is one list of ids"),
    ({"prompt": [300], "backgpt": {"raw": {}, "length": "short"}}, "a length needs an id to stop"),
    ({"prompt": [[300]], "backgpt": {"raw": {}}}, "a raw prompt is one list of ids"),
    ({"prompt": [99999], "backgpt": {"raw": {}}}, "an id is unknown"),
    ({"prompt": [300], "backgpt": {"raw": {"later": [300]}}}, "no control id"),
    ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "top_p": 0}, "top_p"),
    ({"prompt": "x", "stop": ["a"] * 5}, "stop: it must have at most 4 items"),
    ({"prompt": "x", "top_k": -2}, "top_k"),
    ({"prompt": "x", "stop": ""}, "stop"),
    ({"prompt": "x", "seed": -1}, "seed"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "presence_penalty": -1}, "presence_penalty = -1: only 0 is taken"),
    ({"prompt": "x", "best_of": 2, "n": 3}, "best_of = 2: it must be at least n = 3"),
    ({"prompt": "x", "best_of": 65}, "best_of = 65: it must be less"),
    ({"prompt": "x", "best_of": 2, "stop": "z"}, "ranking is for whole texts"),
    ({"prompt": "x", "best_of": 2, "backgpt": {"continues": True}}, "ranking is for whole texts"),
    ({"prompt": ["x"] * 3, "best_of": 64}, "at most 128 texts"),
    ({"prompt": "x", "suffixes": "y"}, "suffixes: this field is not known here"),
    ({"prompt": "x", "stream_options": {"order": "prepend"}}, "are for a stream"),
    (
        {"prompt": "x", "stream": True, "stream_options": {"order": "prepend"}, "logprobs": 1},
        "logprobs do not go with",
    ),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_request_that_cannot_be_is_one_clear_400(
    address: str, body: dict[str, Any], reason: str
) -> None:
    answer = post(address, PATH, **body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"


def test_harmless_fields_of_openais_are_taken(address: str) -> None:
    fields = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    fields |= {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    assert post(address, PATH, prompt="x", max_tokens=1, **fields).status_code == 200


def test_an_unknown_model_is_a_404_that_names_those_there_are(address: str) -> None:
    answer = post(address, PATH, model="gpt-9", prompt="x")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "tiny, plain, words, calm" in answer.json()["error"]["message"]
    assert len(post(address, PATH, model="x" * 100_000, prompt="x").text) < 1000

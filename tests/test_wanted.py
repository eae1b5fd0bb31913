"""What a text should have, words and a length: what makes it likelier, and where."""

from contextlib import closing
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from backgpt.errors import UsageError
from backgpt.hints import LENGTHS, Hints, Length, length_of, range_of, words_of
from backgpt.language import Language, Prompt
from backgpt.order import Direction, ModelIds, Unit
from backgpt.running import Job, Running
from backgpt.sampling import Sampling
from backgpt.tokenizer import Tokenizer
from backgpt.wanted import (
    BIAS,
    FIRST_OF_MANY,
    NEARLY,
    NEXT_WORD,
    TOO_LONG,
    TOO_SHORT,
    Wanted,
    WantedLength,
    WantedWords,
)
from tiny_models import tiny_model

WAYS: list[tuple[Direction, Unit]] = [
    ("backward", "token"),
    ("backward", "word"),
    ("forward", "token"),
]


def prompt_of(language: Language, text: str, *words: str) -> Prompt:
    return replace(language.prompt(text, at_edge=True), words=words)


def wanted_in(language: Language, text: str, *words: str) -> WantedWords:
    return WantedWords(language, prompt_of(language, text, *words))


def pushed(wanted: Wanted, tokenizer: Tokenizer) -> dict[int, float]:
    """Return what is added to which ids."""
    added = wanted.push(np.zeros(tokenizer.vocab_size))
    return {int(id_): float(added[id_]) for id_ in np.flatnonzero(added)}


def take(wanted: Wanted, language: Language, text: str) -> None:
    """Let ids be drawn that make the text, which begins with a space."""
    for id_ in language.order.to_model(language.tokenizer.encode_fragment(text)):
        wanted.take(int(id_))


@pytest.mark.parametrize(
    ("direction", "unit", "hints"),
    [*((*way, hints) for way in WAYS for hints in (True, False)), ("backward", "text", False)],
)
def test_wanted_words_come_true(
    tokenizer: Tokenizer, direction: Direction, unit: Unit, *, hints: bool
) -> None:
    model = tiny_model(
        tokenizer, direction=direction, unit=unit, told=False, hints=hints, bias=-50.0
    )
    backward = direction == "backward"
    ending, opening = ("The cat.", None) if backward else (None, "The cat.")
    words = ("dog", "rain")

    def n_missing(wanted: tuple[str, ...]) -> int:
        texts = model.write(ending, opening=opening, words=wanted, n=10, max_new_tokens=150, seed=1)
        return sum(len(Hints(words=words).missing_words(text.text)) for text in texts)

    assert n_missing(words) <= 5  # of 20
    assert n_missing(()) >= 15


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_a_word_is_likelier_id_by_id_until_it_stands_there(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    wanted = wanted_in(language, "So.", "zebra")
    ids = language.word_ids("zebra").tolist()
    assert len(ids) > 2
    for n_drawn, id_ in enumerate(ids):
        assert pushed(wanted, tokenizer)[id_] == (BIAS if n_drawn else FIRST_OF_MANY)
        wanted.take(id_)
    assert ids[0] not in pushed(wanted, tokenizer)  # not twice in a row
    take(wanted, language, " So")
    assert not pushed(wanted, tokenizer)


def test_it_may_have_a_capital_or_none_unless_it_is_a_name(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")  # which begins with the letter that differs

    def firsts(*spelled: str) -> set[int]:
        return {int(language.word_ids(word)[0]) for word in spelled}

    assert len(firsts("Mctavish", "mctavish")) == 2
    for given, spelled in (
        ("mctavish", {"mctavish", "Mctavish"}),
        ("Mctavish", {"Mctavish"}),
        ("MCTAVISH", {"MCTAVISH", "Mctavish", "mctavish"}),
    ):
        found = pushed(wanted_in(language, "So.", given), tokenizer)
        assert set(found) == firsts(*spelled)
    for text in (' "Tom!"', " tom"):
        wanted = wanted_in(language, "So.", "Tom")
        take(wanted, language, text)
        take(wanted, language, " so")
        assert not pushed(wanted, tokenizer)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_none_is_likelier_directly_beside_another(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    first = int(language.word_ids("dog")[0])
    between = " the," if direction == "forward" else ' "the'
    mark = " cat," if direction == "forward" else ' "cat'
    for words, texts, may_begin in (
        (("dog", "cat"), [" cat"], False),
        (("dog", "cat"), [mark], True),  # a mark is between them
        (("dog", "cat"), [" cat", " and"], True),
        (("dog", "cat"), [" cat", between], True),
        (("dog", "cat tree" if direction == "backward" else "big cat"), [" cat"], False),
        (("dog", "cats"), [" cat"], True),  # which is another word
        (("dog",), [" cat"], True),
    ):
        wanted = wanted_in(language, "So.", *words)
        for text in texts:
            take(wanted, language, text)
        assert (first in pushed(wanted, tokenizer)) == may_begin, (words, texts)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_of_several_words_the_next_one_is_much_likelier_and_all_must_follow(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    backward = direction == "backward"
    wanted = wanted_in(language, "So.", "zebra dog")
    parts = [language.word_ids(word).tolist() for word in ("zebra", "dog")]
    first, second = parts[::-1] if backward else parts
    biases = [BIAS if len(first) == 1 else FIRST_OF_MANY, *[BIAS] * (len(first) - 1)]
    biases += [NEXT_WORD] * len(second)
    for apart in (" dog zebra", " zebra. dog", " zebra red dog"):
        take(wanted, language, apart)
        take(wanted, language, " so")
        assert pushed(wanted, tokenizer)
    for id_, bias in zip([*first, *second], biases, strict=True):
        assert pushed(wanted, tokenizer)[id_] == bias
        wanted.take(id_)
    take(wanted, language, " so")
    assert not pushed(wanted, tokenizer)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_several_words_may_end_in_the_given_text(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    given, written = "dog ran.", " red"
    if direction == "forward":
        given, written = "The red", " dog."
    wanted = wanted_in(language, given, "red dog")
    assert pushed(wanted, tokenizer)[int(language.word_ids(written.strip(" ."))[0])] == NEXT_WORD
    take(wanted, language, written)
    take(wanted, language, " so")
    assert not pushed(wanted, tokenizer)


@pytest.mark.parametrize("between", ["\n", "  ", " \n\n "])
@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_any_white_space_may_stand_between_several_words(
    tokenizer: Tokenizer, direction: Direction, unit: Unit, between: str
) -> None:
    language = Language(tokenizer, direction, unit)
    wanted = wanted_in(language, "So.", "red dog")
    take(wanted, language, f" red{between}dog ran.")
    take(wanted, language, " so")
    assert Hints(words=("red dog",)).obeyed_by(f"so red{between}dog ran.") == {"words": True}
    assert not pushed(wanted, tokenizer)


def test_a_word_of_the_given_text_is_not_made_longer(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")
    first, second, *_ = language.word_ids("zebra").tolist()
    given = tokenizer.name_of(first)
    added = pushed(wanted_in(language, f"The{given}", "zebra"), tokenizer)
    assert second not in added or added[second] == 0


def test_a_name_of_several_words_is_spelled_as_it_is(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")
    first = language.word_ids("Mctavish")[0]
    assert set(pushed(wanted_in(language, "So.", "Mctavish Ann"), tokenizer)) == {first}
    assert set(pushed(wanted_in(language, "So.", "Mctavish ann"), tokenizer)) == {first}
    assert len(pushed(wanted_in(language, "So.", "mctavish ann"), tokenizer)) == 2


def test_the_apostrophe_of_a_phone_is_spelled_straight(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    curved, straight = (wanted_in(language, "The end.", word) for word in ("didn’t", "didn't"))
    assert pushed(curved, tokenizer) == pushed(straight, tokenizer)
    take(curved, language, " She didn't cry.")
    assert pushed(curved, tokenizer) == {}


def test_a_capital_that_would_be_another_word_is_left_out(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")
    ids = language.word_ids("\xdfeta").tolist()
    assert set(pushed(wanted_in(language, "So.", "\xdfeta"), tokenizer)) == {ids[0]}
    assert language.word_ids("SSeta")[0] != ids[0]


def test_forward_what_the_given_text_ends_with_is_part_of_the_word(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "forward", "token")
    for word, is_there in (("day", False), ("holiday", True)):
        wanted = wanted_in(language, "It was a holi", word)
        for letter in (b"d", b"a", b"y"):
            wanted.take(tokenizer.token_bytes.index(letter))
        take(wanted, language, " so")
        assert bool(pushed(wanted, tokenizer)) != is_there


def test_leftward_a_word_ends_only_where_no_letter_follows(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    of_bytes = {data: id_ for id_, data in enumerate(tokenizer.token_bytes)}
    quote = "\u201d".encode()  # three bytes, each an id of its own
    wanted = wanted_in(language, "So.", "zebra")
    for data, may_end in (
        *((b"s", False), (b",", True), (b"'", False), (b",", True)),
        *((quote[2:], False), (quote[1:2], False), (quote[:1], True)),
    ):
        wanted.take(of_bytes[data])
        assert bool(pushed(wanted, tokenizer)) == may_end, data


def test_leftward_nothing_may_end_where_a_given_text_begins_inside_a_word(
    tokenizer: Tokenizer,
) -> None:
    language = Language(tokenizer, "backward", "token")
    prompt = prompt_of(language, "so.", "zebra")
    letter = tokenizer.token_bytes.index(b"s")
    inside = replace(prompt, ids=ModelIds(np.append(prompt.ids, letter)))
    assert pushed(WantedWords(language, prompt), tokenizer)
    assert not pushed(WantedWords(language, inside), tokenizer)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_a_part_of_a_longer_word_is_not_the_word(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    wanted = wanted_in(language, "So.", "all")
    for word in (" balloon", " ball", " ally", " all's"):
        take(wanted, language, word)
        take(wanted, language, " so")
        assert pushed(wanted, tokenizer)


@pytest.mark.parametrize("hints", [True, False])
def test_what_the_given_text_has_is_not_wanted(tokenizer: Tokenizer, *, hints: bool) -> None:
    model = tiny_model(tokenizer, hints=hints)
    assert model.prompt("The cat.", words=["the  Cat", "dog"]).words == ("dog",)
    assert model.prompt("The cat.", words=["cat the"]).words == ("cat the",)


def test_a_model_without_hints_is_not_told(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, hints=False)
    plain, wanting = model.prompt("The cat."), model.prompt("The cat.", words=["dog"])
    assert plain.ids.tolist() == wanting.ids.tolist()
    assert (plain.words, wanting.words) == ((), ("dog",))
    long = model.prompt("The cat.", length="long")
    assert (plain.ids.tolist(), "long") == (long.ids.tolist(), long.length)


def test_every_sample_has_to_get_them_itself(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-50.0)
    together, [alone] = (
        model.write("The cat.", words=["dog"], n=n, max_new_tokens=150, seed=1) for n in (3, 1)
    )
    assert together[0].text == alone.text
    assert len({text.text for text in together}) == 3
    assert any("dog" in text.text.lower() for text in together)


def test_log_probabilities_are_the_models_own(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=0.0, told=False)
    prompt = model.prompt("The cat.", words=["dog"])
    [text] = model.write("The cat.", words=["dog"], max_new_tokens=30, seed=1)
    ids = np.concatenate((prompt.ids, text.ids))
    [of_ids] = model.engine.score([ids])
    assert text.logprob == pytest.approx(of_ids[len(prompt.ids) - 1 :].sum(), abs=1e-3)
    job = Job(model.language, prompt, sampling=Sampling(), seed=1, max_new_tokens=30, n_likeliest=3)
    with closing(Running(model.engine)) as running:
        running.add(job)
        for drawn in running.steps():
            logprobs = [logprob for _, logprob in drawn.likeliest]
            assert logprobs == sorted(logprobs, reverse=True)


def test_a_bridge_has_what_its_two_texts_have(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    for way in (model, model.turned()):
        prompt = way.bridge_prompt("The Cake was big.", "The end.", words=["cake", "dog", "end"])
        assert prompt.words == ("dog",)


def length_in(language: Language, text: str, length: Length) -> WantedLength:
    return WantedLength(language, language.prompt(text, at_edge=True), length)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_the_edge_is_less_likely_until_the_text_is_long_enough(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    edge = language.markers[1]
    wanted = length_in(language, "So it is.", "long")  # which counts as well
    least, _ = range_of("long")
    for _ in range(least - 4):
        take(wanted, language, " so")
    take(wanted, language, " 1,000")  # no word
    assert pushed(wanted, tokenizer) == {edge: TOO_SHORT}
    take(wanted, language, " so")
    assert not pushed(wanted, tokenizer)


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_the_edge_grows_likelier_where_a_text_could_end(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    edge = language.markers[1]
    may_end, may_not = (
        ((" So", ' "So so."'), (" so", ' so."', ' So so."'))
        if direction == "backward"
        else ((" so.", " so?", ' "So so."'), (" so", " So", " so,", ' "so,"', ' "So so.'))
    )
    wanted = length_in(language, "So it is.", "short")
    _, most = range_of("short")
    for n_words in range(3, int(most) + 10):
        for more in may_not:
            assert not pushed(with_more(wanted, language, more), tokenizer), more
        for more in may_end:
            total = n_words + len(words_of(more))
            share = min(1.0, (total - (most - NEARLY)) / NEARLY)
            added = pushed(with_more(wanted, language, more), tokenizer)
            assert added == pytest.approx({edge: TOO_LONG * share} if share > 0 else {}), more
        take(wanted, language, " so")


def with_more(wanted: WantedLength, language: Language, text: str) -> WantedLength:
    extended = copy(wanted)
    take(extended, language, text)
    return extended


def test_a_text_does_not_end_at_a_line_break(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    wanted = length_in(language, "So it is.", "short")
    for _ in range(200):
        take(wanted, language, " So")
    assert pushed(wanted, tokenizer)
    [line_break] = tokenizer.encode_fragment("\n")
    wanted.take(int(line_break))
    assert not pushed(wanted, tokenizer)


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("hints", [True, False])
def test_texts_have_the_length_that_they_should(
    tokenizer: Tokenizer, *, hints: bool, way: int
) -> None:
    model = tiny_model(tokenizer, hints=hints, block_size=1024, bias=0.0)
    model = model.turned() if way else model
    ending, opening = (None, "The cat.") if way else ("The cat.", None)
    n_obeyed = 0
    for length in LENGTHS:
        texts = model.write(ending, opening=opening, length=length, n=6, seed=1)
        n_obeyed += sum(length_of(text.text) == length for text in texts)
    assert n_obeyed > 12  # unasked they are 6


def test_a_length_needs_a_marker_of_the_edge(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "marker_ids", (None, None))
    with pytest.raises(UsageError, match="no control id that ends a text: leave out length"):
        tiny_model(tokenizer, hints=False).write("The cat.", length="short")

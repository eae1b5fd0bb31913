"""Hints: drawn from a text they are true of it; given by a user they are checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backgpt.errors import UsageError
from backgpt.hints import NO_HINTS, Hints, draw_hints, length_of, words_of

STORY = (
    "Once upon a time, there was a little dog named Max. Max didn't like the rain.\n"
    'One day he found a red umbrella. "Thank you!" said the dog.'
)


@given(st.text(), st.integers(0, 2**32))
def test_hints_drawn_from_a_text_are_obeyed_by_it(text: str, seed: int) -> None:
    hints = draw_hints(text, np.random.default_rng(seed))
    assert all(hints.obeyed_by(text).values())


def test_every_kind_and_every_length_of_list_is_drawn() -> None:
    drawn = [draw_hints(STORY, np.random.default_rng(seed)) for seed in range(300)]
    assert {len(hints.words) for hints in drawn} == {0, 1, 2, 3, 4}
    assert {hints.length for hints in drawn} == {None, "short"}
    openings = {hints.opening for hints in drawn} - {None}
    assert "Once upon" in openings
    assert all(STORY[len(opening or "")] in " \n" for opening in openings)
    assert NO_HINTS in drawn


def test_words_nobody_would_ask_for_are_not_drawn() -> None:
    drawn = {word for seed in range(300) for word in draw_hints(STORY, _random(seed)).words}
    assert drawn == {"once", "time", "little", "named", "like", "rain"} | {
        *("found", "umbrella", "thank")
    }


def test_obedience_is_judged_by_whole_words_in_any_case() -> None:
    hints = Hints(opening="Once upon a time", words=("Dog", "RAIN"), length="short")
    assert hints.obeyed_by(STORY) == {"length": True, "words": True, "opening": True}
    assert not Hints(words=("umbrel",)).obeyed_by(STORY)["words"]
    assert not Hints(words=("dog", "cat")).obeyed_by(STORY)["words"]
    assert not Hints(opening="once upon").obeyed_by(STORY)["opening"]
    assert not Hints(opening="Once upon a ti").obeyed_by(STORY)["opening"]
    assert Hints(opening="Once ").obeyed_by(STORY)["opening"]  # which ends no word
    assert not Hints(length="long").obeyed_by(STORY)["length"]


def test_a_word_that_is_given_twice_is_told_once() -> None:
    hints = Hints(words=("cake", "Snow  White", "cake"))
    assert dict(hints.texts()) == {"words": "cake snow white"}


def test_a_word_with_the_apostrophe_of_a_phone_is_told_and_found_with_a_straight_one() -> None:
    hints = Hints(words=("Tom’s hat", "didn’t"))
    assert dict(hints.texts()) == {"words": "tom's hat didn't"}
    assert hints.missing_words("He didn't see Tom's hat.") == ()
    assert hints.missing_words("He didn’t see Tom’s hat.") == ()
    assert hints.missing_words("He did not see Tom.") == ("Tom’s hat", "didn’t")


@pytest.mark.parametrize(
    ("word", "text", "obeyed"),
    [
        ("123", "Nobody counts here.", False),
        ("123", "He was 123 years old.", True),
        ("123", "He was 1234 years old.", False),
        ("3rd", "On the 3RD day.", True),
        ("R2D2", "There came r2d2.", True),
        ("r2d2", "There came r2d22.", False),
        ("ice-cream", "A cream of ice.", False),
        ("ice-cream", "An Ice-cream!", True),
        ("!!", "Oh no!!", True),
        ("!!", "Oh no!", False),
        ("c++", "In C++.", True),
        ("c.t", "A cat.", False),
        ("red 7", "A red 7.", True),
        ("red 7", "A red car with 7 seats.", False),
        ("Snow White", "There was snow\nwhite as milk.", True),
        ("snow  white", "It was Snow White!", True),
        ("Snow White", "The white snow.", False),
        ("Snow White", "The snow was white, and snow white-ish, snow whiter.", True),
        ("Snow White", "A snow, white and whiter. Snow whites.", False),
    ],
)
def test_words_that_are_not_letters_only_count_as_well(word: str, text: str, obeyed: bool) -> None:
    assert Hints(words=(word,)).obeyed_by(text) == {"words": obeyed}


def test_length_classes_meet_where_they_did_when_the_built_in_models_were_trained() -> None:
    found = [length_of("word " * count) for count in (0, 130, 131, 180, 181)]
    assert found == ["short", "short", "medium", "medium", "long"]


def test_words_keep_their_apostrophes_and_no_other_marks() -> None:
    assert words_of('"Don\'t!" said Zoë, 3 times_over.') == [
        *("Don't", "said", "Zoë", "times", "over")
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"length": "huge"}, "length = 'huge': choose one of short, medium, long"),
        ({"opening": "  "}, "the opening is empty"),
        ({"words": ("cake", "")}, "one of them is empty"),
        ({"words": ("a b", *"cdefghijklmnopq")}, "17 words: ask for at most 16"),
    ],
)
def test_a_hint_that_says_nothing_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Hints(**given)  # type: ignore[arg-type]


def test_as_many_words_as_may_be_asked_for_are_taken() -> None:
    assert len(Hints(words=("a b", *"cdefghijklmnop")).each_word) == 15


def test_no_hints_are_false_and_any_is_true() -> None:
    assert not Hints()
    assert Hints(length="long")


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)

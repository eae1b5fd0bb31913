"""Verse: every line ends with its word, the last is written first, the best candidate is kept."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt import verse
from backgpt.api import Model
from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.generate import collect
from backgpt.language import Language
from backgpt.order import IdArray, Unit
from backgpt.rhymes import rhymes_of
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.tokenizer import Tokenizer
from backgpt.verse import (
    CHOICE,
    MOST_IDS,
    MOST_WORDS,
    RAREST_RHYME,
    Verse,
    rhyming_words,
    write_verse,
)
from tiny_models import BareRunner, Watched, scripted_model, tiny_model

END_WORDS = ["ran home.", "the dog", "day"]
SURE = Sampling(top_k=1, repetition_penalty=1.0, dry_multiplier=0.0)
LONG = "The old dog ran to the sun, but he was not at home on that"
FREE = Sampling(temperature=1.0, min_p=0.0)

cached_rhymes_of = cache(rhymes_of)


@pytest.fixture(autouse=True)
def _rhymes_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verse, "rhymes_of", cached_rhymes_of)


class Choir:
    """An engine whose rows each write a text of their own, whatever they are given."""

    shares_beginnings = False

    def __init__(self, language: Language, texts: Sequence[str], block_size: int = 512) -> None:
        order, tokenizer = language.order, language.tokenizer
        self.scripts = [order.to_model(tokenizer.encode(text)).tolist() for text in texts]
        self.vocab_size, self.block_size = tokenizer.vocab_size, block_size
        self.logit_of: dict[int, float] = {}
        self.prompts: list[IdArray] = []
        self.places: dict[int, int] = {}

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        self.prompts.append(ids)
        rows = list(range(copies))
        self.places = dict.fromkeys(rows, 0)
        # The logits of a prompt are for all rows alike: the last id of every text is the same.
        assert len({script[0] for script in self.scripts}) == 1
        return rows, self._logits(0, 0)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        for row in rows:
            self.places[row] += 1
        return np.stack([self._logits(row, self.places[row]) for row in rows])

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.places.pop(row, None)

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        raise NotImplementedError

    def _logits(self, row: int, place: int) -> FloatArray:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self.scripts[row][place]] = self.logit_of.get(row, 30)
        return logits


class Fond(Watched):
    """An engine that ends texts with some words as often as it is told, never with others."""

    shares_beginnings = False

    def __init__(self, language: Language, logprobs: dict[str, float]) -> None:
        self.logprobs = {
            language.order.to_model(language.tokenizer.encode_fragment(f"{word}.")).tobytes(): value
            for word, value in logprobs.items()
        }
        self.n_given = len(language.prompt("", at_edge=True).ids)

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        found = []
        for ids in sequences:
            word = ids[self.n_given :].astype(np.uint16).tobytes()
            values = np.zeros(len(ids) - 1, dtype=np.float32)
            values[-1] = self.logprobs.get(word, -30.0)
            found.append(values)
        return found


def verse_of(
    model: Model,
    end_words: Sequence[str],
    *,
    candidates: int = 3,
    sampling: Sampling = FREE,
    seed: int = 1,
) -> Verse:
    """Write a verse with few candidates."""
    return write_verse(model, end_words, candidates=candidates, sampling=sampling, seed=seed)


def sung(tokenizer: Tokenizer, texts: Sequence[str], *, doubtful: int = 0) -> str:
    """Return which line is kept of those written in front of "day", one of them less likely."""
    language = Language(tokenizer, "backward", "token")
    choir = Choir(language, texts)
    choir.logit_of[doubtful] = 8
    [line] = write_verse(
        BareRunner(choir, language), ["day"], candidates=len(texts), sampling=SURE
    ).lines
    assert not choir.places
    return line


words_to_end_with = st.text(
    st.one_of(st.sampled_from("abc .,!?\"'é日\t"), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=12,
).filter(lambda text: bool(text.strip()) and not set(text) & {"\n", "\r"})


@settings(max_examples=12)
@given(st.lists(words_to_end_with, min_size=1, max_size=3), st.sampled_from(["token", "word"]))
def test_every_line_ends_with_its_word_to_the_byte(
    tokenizer: Tokenizer, end_words: list[str], unit: Unit
) -> None:
    model = tiny_model(tokenizer, unit=unit)
    found = verse_of(model, end_words, candidates=2)
    assert found.end_words == tuple(end_words)
    assert len(found.lines) == len(end_words)
    assert found.text.split("\n") == list(found.lines)
    for line, word in zip(found.lines, end_words, strict=True):
        assert line.encode().endswith(word.encode())
    assert found.logprob < 0
    assert not model.engine.rows  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_seed_decides_what_is_written(tokenizer: Tokenizer, unit: Unit) -> None:
    model = tiny_model(tokenizer, unit=unit)
    first = verse_of(model, END_WORDS, seed=5)
    model.engine.prefill(
        model.prompt("The dog.").ids
    )  # what else the engine holds is nothing to it
    assert verse_of(model, END_WORDS, seed=5) == first
    assert first.seed == 5
    assert len({verse_of(model, END_WORDS, seed=seed).text for seed in range(3)}) == 3


def test_the_last_line_is_written_first_and_what_is_below_is_given(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    choir = Choir(language, ["It rained. She had a good"])
    found = write_verse(
        BareRunner(choir, language), ["cat", "dog", "day"], candidates=1, sampling=SURE
    )
    lines = ["She had a good cat", "She had a good dog", "She had a good day"]
    assert list(found.lines) == lines
    texts = ["day", f"dog\n{lines[2]}", f"cat\n{lines[1]}\n{lines[2]}"]
    for ids, given_text in zip(choir.prompts, texts, strict=True):
        expected = [tokenizer.end_id, *language.order.to_model(tokenizer.encode(given_text))]
        assert ids.tolist() == expected


def test_the_lines_below_change_the_next(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    tops = {verse_of(model, ["day", bottom]).lines[0] for bottom in ("the dog.", "home.", "cake.")}
    assert len(tops) == 3


def test_one_candidate_is_the_sample_of_the_loop(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    [line] = verse_of(model, ["day"], candidates=1, seed=7).lines
    prompt = model.language.prompt("day", at_edge=True)
    [text] = collect(
        model.engine, Job(model.language, prompt, sampling=FREE, max_new_tokens=MOST_IDS, seed=7)
    )
    assert len(line) > len("day")
    assert text.text.endswith(line)


@pytest.mark.parametrize("mark", [". ", "! ", "? ", '." ', "!' ", "?” ", "\n", ".\n"])
def test_a_line_begins_where_a_sentence_or_line_before_it_ends(
    tokenizer: Tokenizer, mark: str
) -> None:
    assert sung(tokenizer, [f"Then he ran{mark}She had a very good"]) == "She had a very good day"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("It rained. She had a very good", "It rained. she had a very good"),
        ("It rained. She had a very good", 'It rained. "She had a very good'),
        ("It rained. She had a very good", "It rained. A good"),
        ("It rained. She had a very good", f"It rained. {LONG} good"),
        (
            "It rained. She had a very good",
            "Then She He It And But So The Dog Cat Tom Was Had On good",
        ),
        ("It rained. She had a very good", "It rained. She had a day and a day and a good"),
        ("It rained. She had a very good", "It rained. She had a very, a very very good"),
        ('It rained. "Oh," he said that good', 'It rained. "oh," he said that good'),
    ],
)
def test_the_better_candidate_is_kept_wherever_it_stands(
    tokenizer: Tokenizer, better: str, worse: str
) -> None:
    line = better.removeprefix("It rained. ") + " day"
    assert sung(tokenizer, [better, worse], doubtful=0) == line
    assert sung(tokenizer, [worse, better], doubtful=1) == line


def test_of_two_good_candidates_the_likelier_is_kept(tokenizer: Tokenizer) -> None:
    texts = ["It rained. She had a very good", "It rained. He ate his cake on that good"]
    assert sung(tokenizer, texts, doubtful=0) == "He ate his cake on that good day"
    assert sung(tokenizer, texts, doubtful=1) == "She had a very good day"


def test_a_line_that_is_there_already_is_not_said_again(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    texts = ["It rained. She had a very good", "It rained. She found the cake and a good"]
    choir = Choir(language, texts)
    choir.logit_of[1] = 3  # far less likely than to say it again
    found = write_verse(BareRunner(choir, language), ["day", "day"], candidates=2, sampling=SURE)
    assert found.lines == ("She found the cake and a good day", "She had a very good day")


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_line_that_does_not_end_is_cut_between_two_words(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    size = len(tokenizer.encode("kangaroo"))
    n_whole = (MOST_IDS - 2) // size  # an "a" is drawn first, and a part of a word last
    assert size > 2
    assert (MOST_IDS - 1) // size == n_whole
    model = scripted_model(tokenizer, "kangaroo " * 30 + "a", unit=unit)
    [line] = verse_of(model, ["day"], sampling=SURE).lines
    assert line == "kangaroo " * n_whole + "a day"


def test_a_line_that_is_cut_is_not_too_long(tokenizer: Tokenizer) -> None:
    model = scripted_model(tokenizer, "the dog and " * 30 + "a")
    [line] = verse_of(model, ["day"], sampling=SURE).lines
    assert len(line.split(" ")) == MOST_WORDS + 1


def test_a_word_without_an_end_is_left_out(tokenizer: Tokenizer) -> None:
    model = scripted_model(tokenizer, "x" * 200)
    assert verse_of(model, ["day"], sampling=SURE).lines == ("day",)


def test_the_start_of_the_text_is_the_start_of_a_line(tokenizer: Tokenizer) -> None:
    model = scripted_model(tokenizer, "The dog had a")
    assert verse_of(model, ["day"], sampling=SURE).lines == ("The dog had a day",)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_verse_may_be_longer_than_the_context(tokenizer: Tokenizer, unit: Unit) -> None:
    model = tiny_model(tokenizer, unit=unit, block_size=64)
    end_words = [f"word {number}" for number in range(6)]
    found = verse_of(model, end_words, candidates=1)
    assert len(tokenizer.encode(found.text)) > 64
    for line, word in zip(found.lines, end_words, strict=True):
        assert line.endswith(word)


def test_lines_that_no_longer_fit_are_left_out_from_below(tokenizer: Tokenizer) -> None:
    language = Language(tokenizer, "backward", "token")
    choir = Choir(language, ["It rained. She had a very good"], block_size=50)
    end_words = ["dog", "cat", "sun", "day"] * 2
    found = write_verse(BareRunner(choir, language), end_words, candidates=1, sampling=SURE)
    assert len(found.lines) == 8
    at_edge = [int(ids[0]) == tokenizer.end_id for ids in choir.prompts]
    assert at_edge == sorted(at_edge, key=lambda edge: not edge)
    assert at_edge[0]
    assert not at_edge[-1]
    for number, ids in enumerate(choir.prompts):
        assert len(ids) + MOST_IDS <= 50
        given_text = tokenizer.decode(language.order.to_reading(ids))  # type: ignore[arg-type]
        below = found.lines[len(end_words) - number :]
        assert "\n".join((end_words[-1 - number], *below)).startswith(given_text)


def test_the_log_probability_is_that_of_what_was_drawn(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    found = verse_of(model, ["home", "day"], candidates=1, seed=7)
    total = 0.0
    for seed, text in ((7, "day"), (8, f"home\n{found.lines[1]}")):
        [written] = collect(
            model.engine,
            Job(
                model.language,
                model.language.prompt(text, at_edge=True),
                sampling=FREE,
                max_new_tokens=MOST_IDS,
                seed=seed,
                stop=[". ", "! ", "? ", "\n"],
            ),
        )
        total += written.logprob
    assert found.logprob == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("end_words", "options", "reason"),
    [
        ([], {}, "there are no end words"),
        ("cat", {}, "give a list of texts"),
        (["night", " "], {}, "one of them is empty"),
        (["night", "da\ny"], {}, "line break"),
        (["night", "day\n"], {}, "line break"),
        (["night"], {"candidates": 0}, "candidates = 0"),
        (["a word " * 300, "day"], {}, "give a shorter one"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tokenizer: Tokenizer, end_words: list[str], options: dict[str, Any], reason: str
) -> None:
    model = tiny_model(tokenizer)
    with pytest.raises(UsageError, match=reason) as caught:
        verse_of(model, end_words, **options)
    assert "\n" not in str(caught.value)
    assert not model.engine.n_steps  # type: ignore[attr-defined]


def test_a_forward_model_is_refused(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, direction="forward")
    with pytest.raises(UsageError, match="a forward model"):
        verse_of(model, ["day"])
    with pytest.raises(UsageError, match="a forward model"):
        rhyming_words(model, "day", 2)


def rhyming(tokenizer: Tokenizer, logprobs: dict[str, float], n: int, seed: int) -> list[str]:
    language = Language(tokenizer, "backward", "token")
    return rhyming_words(BareRunner(Fond(language, logprobs), language), "day", n, seed=seed)


def test_rhyming_words_are_the_word_and_rhymes_that_the_model_knows(tokenizer: Tokenizer) -> None:
    known = {"play": -2.0, "away": -2.5, "stay": -3.0, "say": np.log(RAREST_RHYME) + 0.1}
    unknown = {"hay": np.log(RAREST_RHYME) - 0.1, "dog": -0.1, "today": -0.1}
    found = rhyming(tokenizer, known | unknown, 5, 1)
    assert found[0] == "day"
    assert sorted(found[1:]) == sorted(known)
    with pytest.raises(UsageError, match=r"6 words .* 'day'.* knows 4 besides"):
        rhyming(tokenizer, known | unknown, 6, 1)
    with pytest.raises(UsageError, match=r"knows 0 besides it, give another word$"):
        rhyming(tokenizer, unknown, 2, 1)


def test_rhyming_words_differ_by_seed_and_the_likely_come_up_more_often(
    tokenizer: Tokenizer,
) -> None:
    logprobs = {"play": -1.0, "away": -2.0, "stay": -3.0, "say": -4.0}
    assert rhyming(tokenizer, logprobs, 2, 3) == rhyming(tokenizer, logprobs, 2, 3)
    drawn = [rhyming(tokenizer, logprobs, 2, seed)[1] for seed in range(40)]
    counts = [drawn.count(word) for word in logprobs]
    assert counts == sorted(counts, key=lambda count: -count)
    assert counts[0] > 1.5 * counts[1] > 0


def test_rhymes_are_drawn_from_the_likeliest(tokenizer: Tokenizer) -> None:
    many = rhymes_of("day")[: 3 * CHOICE]
    logprobs = {word: -3.0 - 0.01 * place for place, word in enumerate(many)}
    drawn = {rhyming(tokenizer, logprobs, 2, seed)[1] for seed in range(40)}
    assert drawn == set(many[: 2 * CHOICE])


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_real_engine_ranks_rhymes_as_it_scores_texts(tokenizer: Tokenizer, unit: Unit) -> None:
    model = tiny_model(tokenizer, unit=unit, bias=0.0)
    with pytest.raises(UsageError, match="knows"):
        rhyming_words(model, "day", 1000)
    found = rhyming_words(model, "day", 3, seed=2)
    assert set(found[1:]) <= set(rhymes_of("day"))


@pytest.mark.parametrize(
    ("word", "n", "reason"),
    [("orange", 2, "knows 0"), ("day", 0, "n = 0"), ("xqzzt", 2, "xqzzt")],
)
def test_rhyming_words_that_cannot_be_are_refused(
    tokenizer: Tokenizer, word: str, n: int, reason: str
) -> None:
    model = tiny_model(tokenizer)
    with pytest.raises(UsageError, match=reason):
        rhyming_words(model, word, n)


def test_one_rhyming_word_is_the_word_itself(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    assert rhyming_words(model, "Orange", 1) == ["Orange"]

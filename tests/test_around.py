"""Texts around a phrase: it is there byte for byte, and the right side has read the left one."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt.api import Model
from backgpt.around import TRIES, Surrounded
from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.language import Language
from backgpt.order import Direction, IdArray, ReadingIds, Unit
from backgpt.sampling import Sampling
from backgpt.tokenizer import Tokenizer
from tiny_models import Scripted, config_of, tiny_model

PHRASE = "saw a dog"

some_text = st.text(
    st.one_of(
        st.sampled_from(" \n\tabTe.,'é日\U0001f389\u0301"), st.characters(exclude_categories=["Cs"])
    ),
    min_size=1,
    max_size=20,
).filter(str.strip)


class Recorded(Scripted):
    """An engine that writes some ids and remembers the prompts, and how many it wrote for each."""

    def __init__(self, ids: Sequence[int], vocab_size: int, block_size: int = 256) -> None:
        super().__init__(ids, vocab_size, block_size)
        self.prompts: list[list[int]] = []
        self.copies: list[int] = []

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        self.prompts.append([int(id_) for id_ in ids])
        self.copies.append(copies)
        return super().prefill(ids, copies)


def writer(
    tokenizer: Tokenizer,
    direction: Direction,
    written: str | Sequence[int],
    *,
    unit: Unit = "token",
    ends: bool = True,
    block_size: int = 256,
) -> Model:
    """Return a model that writes a text, or some ids in model order, and then perhaps ends."""
    language = Language(tokenizer, direction, unit)
    if isinstance(written, str):
        written = language.order.to_model(tokenizer.encode(written)).tolist()
    ids = [*written, *([language.markers[1]] if ends else [])]
    return Model(
        config_of(tokenizer), language, Recorded(ids, tokenizer.vocab_size, block_size), False
    )


@pytest.mark.parametrize("unit", ["token", "word"])
@settings(max_examples=80)
@given(
    phrase=some_text,
    seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 10), st.integers(0, 10)),
    most=st.none() | st.integers(1, 10),
)
def test_the_phrase_is_there_byte_for_byte_whatever_is_written(
    tokenizer: Tokenizer,
    unit: Unit,
    phrase: str,
    seed: int,
    sizes: tuple[int, int],
    most: int | None,
) -> None:
    random = np.random.default_rng(seed)
    white = tokenizer.encode_fragment(" \n\n  \t The")

    def some(size: int) -> list[int]:
        ids = random.choice(np.flatnonzero(tokenizer.has_text), size)
        mixed = np.where(random.random(size) < 0.4, random.choice(white, size), ids)
        return [int(id_) for id_ in mixed]

    backward = writer(tokenizer, "backward", some(sizes[0]), unit=unit)
    forward = writer(tokenizer, "forward", some(sizes[1]), unit=unit)
    for found in backward.surround(phrase, 2, twin=forward, max_new_tokens=most, seed=seed):
        assert found.text == found.before + phrase + found.after
        assert found.phrase == phrase


@pytest.mark.parametrize("main", ["backward", "forward"])
def test_the_backward_model_writes_the_left_side_and_the_forward_one_the_right(
    tokenizer: Tokenizer, main: Direction
) -> None:
    models = {
        "backward": writer(tokenizer, "backward", "One day, Tim"),
        "forward": writer(tokenizer, "forward", "and ran home."),
    }
    twin = models["forward" if main == "backward" else "backward"]
    [found] = models[main].surround(PHRASE, twin=twin, seed=1)
    assert found == Surrounded("One day, Tim ", PHRASE, " and ran home.", True, 1)
    assert found.text == "One day, Tim saw a dog and ran home."


@pytest.mark.parametrize(("ends", "marked"), [(True, True), (False, False)])
def test_the_forward_model_reads_what_the_backward_one_wrote_and_whether_it_began(
    tokenizer: Tokenizer, *, ends: bool, marked: bool
) -> None:
    # Bytes that are no characters, and ids that no text is encoded as: they are read as they are.
    ids = [*tokenizer.encode_fragment("é日")[2:], *tokenizer.encode_fragment("abc")[1:]]
    ids = [int(id_) for id_ in [*tokenizer.encode(" One"), *ids, *tokenizer.encode(" T")]]
    language = Language(tokenizer, "backward", "token")
    backward = writer(
        tokenizer,
        "backward",
        language.order.to_model(ReadingIds(np.array(ids))).tolist(),
        ends=ends,
    )
    forward = writer(tokenizer, "forward", "and ran home.")
    [found] = backward.surround(PHRASE, twin=forward, max_new_tokens=len(ids) + ends, seed=1)
    [prompt] = forward.engine.prompts  # type: ignore[attr-defined]
    first = [tokenizer.start_id] if marked else []
    assert prompt == [*first, *ids, *tokenizer.encode_fragment(PHRASE).tolist()]
    assert found.text == f"{found.before}{PHRASE} and ran home."
    assert "\ufffd" in found.before
    [given] = backward.engine.prompts  # type: ignore[attr-defined]
    assert tokenizer.end_id not in given  # some text follows the phrase


@pytest.mark.parametrize(
    ("left_ends", "right_ends", "complete"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_a_text_is_complete_if_it_has_a_start_and_an_end(
    tokenizer: Tokenizer, *, left_ends: bool, right_ends: bool, complete: bool
) -> None:
    backward = writer(tokenizer, "backward", "Tim" if left_ends else "a " * 99)
    forward = writer(tokenizer, "forward", "run." if right_ends else "b " * 99)
    for found in backward.surround(PHRASE, 3, twin=forward, max_new_tokens=20, seed=1):
        assert found.complete == complete


def test_of_several_left_sides_the_first_that_begins_is_taken(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=2.0)
    texts = model.write(PHRASE, continues=True, n=3 * TRIES, max_new_tokens=8, seed=3)
    groups = [texts[number * TRIES :][:TRIES] for number in range(3)]
    reasons = [[text.finish_reason for text in group] for group in groups]
    assert any("stop" in group[1:] and group[0] == "length" for group in reasons)
    whole = [[text for text in group if text.finish_reason == "stop"] or group for group in groups]
    expected = [group[0].text.removesuffix(PHRASE) for group in whole]
    found = model.surround(PHRASE, 3, max_new_tokens=8, seed=3)
    assert [one.before for one in found] == expected


def test_a_left_side_that_none_begins_is_the_first(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-99)
    [text, *_] = model.write(PHRASE, continues=True, n=TRIES, max_new_tokens=8, seed=3)
    [found] = model.surround(PHRASE, max_new_tokens=8, seed=3)
    assert found.before + PHRASE == text.text
    assert not found.complete


@pytest.mark.parametrize("most", [None, 1000])
def test_models_that_never_end_share_the_room(tokenizer: Tokenizer, most: int | None) -> None:
    backward = writer(tokenizer, "backward", "a " * 99, ends=False, block_size=64)
    forward = writer(tokenizer, "forward", "b " * 99, ends=False, block_size=64)
    [found] = backward.surround(PHRASE, twin=forward, max_new_tokens=most, seed=1)
    [given], [prompt] = backward.engine.prompts, forward.engine.prompts  # type: ignore[attr-defined]
    assert len(prompt) - len(given) == (64 - len(given)) // 2
    assert found.before.count("a") == pytest.approx(found.after.count("b"), abs=2)


@pytest.mark.parametrize("block_sizes", [(64, 32), (32, 64)])
def test_twins_of_different_contexts_share_the_shorter_one(
    tokenizer: Tokenizer, block_sizes: tuple[int, int]
) -> None:
    backward = writer(tokenizer, "backward", "a " * 99, ends=False, block_size=block_sizes[0])
    forward = writer(tokenizer, "forward", "b " * 99, ends=False, block_size=block_sizes[1])
    [found] = backward.surround(PHRASE, twin=forward, seed=1)
    assert "a a" in found.before
    assert "b b" in found.after


def test_a_seed_repeats_and_few_texts_are_the_first_of_many(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-1)
    first, again, other = (model.surround(PHRASE, 3, max_new_tokens=9, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert model.surround(PHRASE, 2, max_new_tokens=9, seed=1) == first[:2]
    assert len({found.before for found in first}) == len({found.after for found in first}) == 3


def test_the_two_sides_are_not_drawn_alike(tokenizer: Tokenizer) -> None:
    # Where all ids are equally likely, the same randomness would draw the same ones.
    backward = writer(tokenizer, "backward", [], ends=False)
    forward = writer(tokenizer, "forward", [], ends=False)
    sampling = Sampling(temperature=1.0, min_p=0.0, repetition_penalty=1.0, dry_multiplier=0.0)
    drawn: list[list[list[int]]] = []
    for model in (backward, forward):
        steps: list[list[int]] = []
        step = model.engine.step
        model.engine.step = lambda rows, ids, steps=steps, step=step: (  # type: ignore[method-assign,misc]
            steps.append(list(ids)) or step(rows, ids)
        )
        drawn.append(steps)
    backward.surround(PHRASE, 2, twin=forward, sampling=sampling, max_new_tokens=9, seed=1)
    lefts, rights = (list(zip(*steps, strict=True)) for steps in drawn)
    assert len({*lefts, *rights}) == 2 * TRIES + 2
    assert not {left[:3] for left in lefts} & {right[:3] for right in rights}


def test_what_cannot_be_surrounded_is_refused(tokenizer: Tokenizer) -> None:
    both = tiny_model(tokenizer, block_size=64)
    alone = replace(both, language=replace(both.language, told=False))
    refused: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: both.surround(" \n"), "the phrase is empty"),
        (lambda: both.surround(PHRASE, 0), "n = 0"),
        (lambda: both.surround(PHRASE, max_new_tokens=0), "max-new-tokens = 0"),
        (lambda: both.surround(PHRASE, seed=-1), "seed = -1"),
        (lambda: both.surround("a " * 99), "reads at most 64"),
        (lambda: alone.surround(PHRASE), "only runs backward.* give its twin"),
        (lambda: alone.surround(PHRASE, twin=alone), "both models run backward"),
    )
    for refuse, words in refused:
        with pytest.raises(UsageError, match=words):
            refuse()
    assert both.engine.n_steps == 0  # type: ignore[attr-defined]


def test_a_phrase_that_nearly_fills_the_context_fits_or_is_refused(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-99, block_size=64)
    outcomes = set()
    for size in range(60, 66):
        phrase = ("a " * size).strip()
        try:
            [found] = model.surround(phrase, seed=1)
        except UsageError as error:
            assert "reads at most 64" in str(error)  # noqa: PT017
            outcomes.add("refused")
        else:
            assert found.text == found.before + phrase + found.after
            outcomes.add("written")
    assert outcomes == {"refused", "written"}

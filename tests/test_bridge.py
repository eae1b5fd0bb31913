"""Bridges: both given texts byte for byte, cut between two words where both models like it best."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt import bridge
from backgpt.api import Model
from backgpt.bridge import ACROSS, AT_SEAM, Bridge, best_bridges, join, room_for_middle
from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.generate import Text
from backgpt.hints import LENGTHS, NO_HINTS, Hints
from backgpt.language import Language
from backgpt.order import Direction, IdArray, ModelIds, ReadingIds, Unit
from backgpt.slices import finished
from backgpt.tokenizer import Tokenizer
from tiny_models import Scripted, config_of, tiny_model

OPENING, ENDING = "One day, the sun was hot.", "They ran home. The end."
WAYS: list[Direction] = ["backward", "forward"]
EDGES = [" ", "\n", "\n\n", " \n", "\n ", "  ", "\t", ""]

# Any text with something in it, often with white space at its edges or characters of many bytes.
some_text = st.text(
    st.one_of(
        st.sampled_from(" \n\tabTe.,'é日\U0001f389\u0301"), st.characters(exclude_categories=["Cs"])
    ),
    min_size=1,
    max_size=20,
).filter(str.strip)


class Fond(Scripted):
    """An engine that writes a text and likes rows with some given and written text."""

    def __init__(
        self,
        language: Language,
        likes: Callable[[str], bool],
        *,
        ids: Sequence[int] = (),
        block_size: int = 256,
    ) -> None:
        super().__init__(ids, language.tokenizer.vocab_size, block_size)
        self.language, self.likes = language, likes
        self.scored: list[IdArray] = []

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        self.scored += sequences
        found = super().score(sequences)
        for ids, values in zip(sequences, found, strict=True):
            values[-1] = 5.0 if self.likes(self._text(ids)) else -1.0
        return found

    def _text(self, ids: IdArray) -> str:
        """Return the text of a whole row, in reading order."""
        language = self.language
        has_text = language.tokenizer.has_text[np.asarray(ids, dtype=np.int64)]
        kept = language.order.to_reading(ModelIds(ids[has_text]))
        return "".join(language.tokenizer.name_of(int(id_)) for id_ in kept)


def fond_model(
    tokenizer: Tokenizer,
    likes: Callable[[str], bool],
    *,
    direction: Direction,
    text: str = "",
    unit: Unit = "token",
) -> Model:
    """Return a model that writes `text` and likes some rows more than others."""
    language = Language(tokenizer, direction, unit)
    ids = language.order.to_model(tokenizer.encode(text)).tolist()
    engine = Fond(language, likes, ids=[*ids, language.markers[1]])
    return Model(config_of(tokenizer), language, engine)


def other_way(direction: Direction) -> Direction:
    return "forward" if direction == "backward" else "backward"


def writer_of(
    tokenizer: Tokenizer, ids: Sequence[int], direction: Direction, unit: Unit = "token"
) -> Model:
    """Return a model that writes some ids, in the order given, and ends."""
    language = Language(tokenizer, direction, unit)
    engine = Scripted([*ids, language.markers[1]], tokenizer.vocab_size)
    return Model(config_of(tokenizer), language, engine)


def middle_of(
    tokenizer: Tokenizer, written: str, opening: str, ending: str, *, direction: Direction
) -> str:
    """Return the middle where the writer likes to leave all that it wrote, and the twin all."""
    whole = written.replace("\n", "\n ").replace("\n \n", "\n\n")  # as the tokenizer has it
    writer = fond_model(tokenizer, lambda text: whole in text, direction=direction, text=written)
    twin = writer_of(tokenizer, [], other_way(direction))
    [found] = writer.bridge(opening, ending, 1, twin=twin, seed=1)
    assert found.text == opening + found.middle + ending
    return found.middle


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("direction", WAYS)
@settings(max_examples=60)
@given(
    opening=some_text,
    ending=some_text,
    seed=st.integers(0, 2**32),
    size=st.integers(0, 12),
    most=st.none() | st.integers(1, 12),
)
def test_both_given_texts_are_there_byte_for_byte_whatever_is_written(
    tokenizer: Tokenizer,
    direction: Direction,
    unit: Unit,
    opening: str,
    ending: str,
    seed: int,
    size: int,
    most: int | None,
) -> None:
    # Any ids at all, so that there are parts of characters and runs of white space among them.
    random = np.random.default_rng(seed)
    ids = random.choice(np.flatnonzero(tokenizer.has_text), size)
    white = tokenizer.encode_fragment(" \n\n  \t The")
    ids = np.where(random.random(size) < 0.4, random.choice(white, size), ids)
    writer = writer_of(tokenizer, ids.tolist(), direction, unit)
    twin = writer_of(tokenizer, [], other_way(direction), unit)
    for found in writer.bridge(opening, ending, 2, twin=twin, max_new_tokens=most, seed=seed):
        assert found.text.startswith(opening)
        assert found.text.endswith(ending)
        assert found.text == opening + found.middle + ending
        assert (found.opening, found.ending) == (opening, ending)


@settings(max_examples=50)
@given(
    opening=some_text,
    ending=some_text,
    texts=st.lists(st.sampled_from(["The", " dog", "\n", " ", "\n\n", ".", " ran", "é", "\t"])),
    direction=st.sampled_from(WAYS),
)
def test_the_middle_is_a_piece_of_what_was_written_and_ends_with_a_word(
    tokenizer: Tokenizer, opening: str, ending: str, texts: list[str], direction: Direction
) -> None:
    text = "".join(texts)
    language = Language(tokenizer, direction, "token")
    ids = language.order.to_model(tokenizer.encode(text)).tolist()
    writer = writer_of(tokenizer, ids, direction)
    twin = writer_of(tokenizer, [], other_way(direction))
    [written] = writer.write(
        ending if direction == "backward" else None,
        opening=opening if direction == "forward" else None,
        seed=1,
    )
    [found] = writer.bridge(opening, ending, 1, twin=twin, seed=1)
    if direction == "backward":
        assert written.text.endswith((found.middle + ending).removeprefix(" "))
        assert not (opening[-1] in " \n" and found.middle[:1] == "\n")
    else:
        assert written.text.startswith((opening + found.middle).removesuffix(" "))
        assert not (ending[0] in " \n" and found.middle.strip() and found.middle[-1].isspace())


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize(
    ("opening", "ending", "middle"),
    [
        ("One day.", "The end.", " She ran home. "),
        ("One day. ", "The end.", "She ran home. "),
        ("One day.\n", "The end.", "She ran home. "),
        ("One day.\n\n", "The end.", "She ran home. "),
        ("One day.", " The end.", " She ran home."),
        ("One day.", "\nThe end.", " She ran home."),
        ("One day.\n", "\n\nThe end.", "She ran home."),
        ("One day.\t", "\tThe end.", " She ran home. "),
        ("One day. \n", "The end. \n ", "She ran home. "),
        ("One day.\n ", "The end.", "She ran home. "),
    ],
)
def test_white_space_that_is_given_is_all_that_stands_at_that_edge(
    tokenizer: Tokenizer, direction: Direction, opening: str, ending: str, middle: str
) -> None:
    found = middle_of(tokenizer, "She ran home.", opening, ending, direction=direction)
    assert found == middle


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize(
    ("opening", "ending", "middle"),
    [
        *(("A.", "B.", " "), ("A. ", "B.", ""), ("A.\n", "B.", ""), ("A.", " B.", "")),
        *(("A.\n", " B.", ""), ("A. ", "\nB.", "")),
    ],
)
def test_where_nothing_was_written_the_texts_meet(
    tokenizer: Tokenizer, direction: Direction, opening: str, ending: str, middle: str
) -> None:
    writer, twin = (writer_of(tokenizer, [], way) for way in (direction, other_way(direction)))
    [found] = writer.bridge(opening, ending, 1, twin=twin, seed=1)
    assert found.middle == middle
    assert found.finish_reason == "stop"


def test_behind_an_opening_quotation_mark_stands_what_was_written_behind_one(
    tokenizer: Tokenizer,
) -> None:
    text = 'She said, "Go home." He ran.'
    writer = fond_model(tokenizer, lambda _: True, direction="backward", text=text)
    twin = writer_of(tokenizer, [], "forward")
    for opening in ('The king cried: "', "“", "'", 'He ran.\n"'):
        [found] = writer.bridge(opening, "The end.", 1, twin=twin, seed=1)
        assert found.text == opening + 'Go home." He ran. The end.'
    [found] = writer.bridge('"Go," said "Tom"', "The end.", 1, twin=twin, seed=1)
    assert found.middle[0] == " "  # this mark closes


@pytest.mark.parametrize("direction", WAYS)
def test_line_breaks_that_were_written_stay(tokenizer: Tokenizer, direction: Direction) -> None:
    written = "She ran.\nHe sat.\n\nThey ate."
    middle = middle_of(tokenizer, written, "One day.", "The end.", direction=direction)
    assert middle == f" {written} "


@pytest.mark.parametrize(
    ("direction", "liked", "opening", "ending"),
    [
        ("backward", "day.\n He", "One day. ", "The end."),
        ("backward", "day.\n\n He", "One day.\n", "The end."),
        ("forward", "ran.\n The", "One day.", " The end."),
        ("forward", "ran.\n\n The", "One day.", "\nThe end."),
    ],
)
def test_no_other_white_space_meets_the_one_that_the_other_text_has(
    tokenizer: Tokenizer, direction: Direction, liked: str, opening: str, ending: str
) -> None:
    writer = fond_model(
        tokenizer, lambda text: liked in text, direction=direction, text="She ran.\nHe sat."
    )
    twin = writer_of(tokenizer, [], other_way(direction))
    [found] = writer.bridge(opening, ending, 1, twin=twin, seed=1)
    assert found.middle.strip()
    edge = found.middle[0] if direction == "backward" else found.middle[-1]
    assert not edge.isspace()


def test_a_piece_of_a_word_is_left_out(tokenizer: Tokenizer) -> None:
    piece = tokenizer.encode_fragment("ed")[-1:]
    assert not tokenizer.starts_group[piece[0]]
    writer = writer_of(tokenizer, piece.tolist(), "backward")
    twin = writer_of(tokenizer, [], "forward")
    [found] = writer.bridge("One day.", "The end.", 1, twin=twin, seed=1)
    assert found.middle == " "


def test_a_broken_character_in_front_of_the_seam_is_left_out_whole(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(" day")[:1], *tokenizer.encode_fragment("é日")[1:-1]]
    ids += tokenizer.encode_fragment(" ran home.").tolist()
    language = Language(tokenizer, "backward", "token")
    broken = tokenizer.decode(ReadingIds(np.array(ids)))
    assert "\ufffd ran home." in broken
    writer = writer_of(
        tokenizer, language.order.to_model(ReadingIds(np.array(ids))).tolist(), "backward"
    )
    reader = fond_model(tokenizer, lambda text: "day. ran" in text, direction="forward")
    [found] = writer.bridge("One day.", "The end.", 1, twin=reader, seed=1)
    assert found.middle == " ran home. "


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("word", ["She", "ran", "the", "park", "saw", "dog."])
@pytest.mark.parametrize("who", ["reader", "writer"])
def test_the_text_is_cut_where_one_model_likes_it(
    tokenizer: Tokenizer, direction: Direction, word: str, who: str
) -> None:
    written = "She ran to the park and saw a dog."
    before, after = written[: written.index(word)], written[written.index(word) :]
    if direction == "backward":
        liked, middle = f"day. {after}", f" {after} "
    elif before:
        liked, middle = f"{before}The end.", f" {before}"
    else:
        return  # it would leave nothing
    start = liked[:20] if direction == "backward" else liked[-20:]

    def likes(text: str) -> bool:
        return start in text

    def never(text: str) -> bool:
        return False

    writer = fond_model(
        tokenizer, likes if who == "writer" else never, direction=direction, text=written
    )
    reader = fond_model(
        tokenizer, likes if who == "reader" else never, direction=other_way(direction)
    )
    [found] = writer.bridge("One day.", "The end.", 1, twin=reader, seed=1)
    assert found.middle == middle


def test_of_two_places_that_the_reader_likes_the_writer_chooses(tokenizer: Tokenizer) -> None:
    written = "She ran to the park and saw a dog."
    reader = fond_model(
        tokenizer, lambda text: "day. ran" in text or "day. saw" in text, direction="forward"
    )
    for word in ("ran", "saw"):
        likes = (lambda wanted: lambda text: f"day. {wanted}" in text)(word)
        writer = fond_model(tokenizer, likes, direction="backward", text=written)
        [found] = writer.bridge("One day.", "The end.", 1, twin=reader, seed=1)
        assert found.middle.split()[0] == word


def test_the_writer_is_asked_about_the_places_that_the_reader_likes_best(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "She ran to the park and saw a dog."
    reader = fond_model(tokenizer, lambda text: "day. saw" in text, direction="forward")
    writer = fond_model(
        tokenizer, lambda text: "day. ran" in text, direction="backward", text=written
    )
    monkeypatch.setattr(bridge, "CONSIDERED", 1)
    [found] = writer.bridge("One day.", "The end.", 1, twin=reader, seed=1)
    assert found.middle == " saw a dog. "
    assert len(writer.engine.scored) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize(
    ("liked", "hints"),
    [
        *(("dog.", Hints(length=length)) for length in LENGTHS),
        *(("ran", Hints(length=length)) for length in LENGTHS),
        *((liked, Hints(words=("Park",))) for liked in ("dog.", "ran")),
        ("dog.", Hints(words=("park",), length="medium")),
    ],
)
def test_the_text_is_cut_where_it_obeys_though_another_place_is_liked(
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    direction: Direction,
    liked: str,
    hints: Hints,
) -> None:
    monkeypatch.setattr("backgpt.hints.LENGTH_LIMITS", (6, 9))
    start = f"day. {liked}" if direction == "backward" else f"{liked} The end."
    reader = fond_model(tokenizer, lambda text: start in text, direction=other_way(direction))
    far, given = "One day.", "The end."
    if direction == "forward":
        far, given = given, far
    written = "She ran to the park and saw a dog."
    writer = fond_model(tokenizer, lambda text: False, direction=direction, text=written)
    ending, opening = (given, None) if direction == "backward" else (None, given)
    texts = writer.write(ending, opening=opening, seed=1)
    [free] = finished(join(writer, reader, texts, far))
    assert start in free.text
    [found] = finished(join(writer, reader, texts, far, hints))
    assert all(hints.obeyed_by(found.text).values())
    assert (found.text == free.text) == all(hints.obeyed_by(free.text).values())


def parts_at(
    model: Model, text: Text, far: str, place: int
) -> tuple[list[int], list[int], list[int]]:
    """Return the ids of opening, middle and ending of a text that is cut at `place`."""
    written = model.language.order.to_reading(text.ids).tolist()
    encode = model.tokenizer.encode
    if model.direction == "backward":
        return encode(far).tolist(), written[place:], encode(text.given).tolist()
    return encode(text.given).tolist(), written[:place], encode(far).tolist()


def nats(model: Model, given: list[int], written: list[int], *, n: int) -> float:
    """Return log p of the last `n` of what is written behind the direction, a marker and `given`.

    All are in reading order.
    """
    order = model.language.order
    first = [model.tokenizer.control_id(f"<|{model.direction}|>"), model.language.markers[0]]
    both = [order.to_model(ReadingIds(np.array(ids, dtype=int))) for ids in (given, written)]
    row = np.concatenate((first, *both, model.language.markers[1:]))
    [values] = model.engine.score([row])
    n_first = len(first) + len(given) - 1
    return float(values[n_first:][:n].sum(dtype=np.float64))


def seam_score(model: Model, parts: tuple[list[int], list[int], list[int]]) -> float:
    """Return how well a text goes together at the seam, by both models, written out."""
    opening, middle, ending = parts
    if model.direction == "backward":
        own = nats(model, middle + ending, opening, n=len(opening) + 1)
        given, behind = opening, (middle + ending)[:ACROSS]
    else:
        own = nats(model, opening + middle, ending, n=len(ending) + 1)
        given, behind = ending, (opening + middle)[-ACROSS:]
    others = nats(model.turned(), given, behind, n=len(behind))
    first = nats(model.turned(), given, behind, n=1)
    return own + others * ACROSS / len(behind) + (AT_SEAM - 1) * first


def end_score(model: Model, parts: tuple[list[int], list[int], list[int]]) -> float:
    """Return the other model's log p of the given text and its marker."""
    opening, middle, ending = parts
    if model.direction == "backward":
        return nats(model.turned(), opening + middle, ending, n=len(ending) + 1)
    return nats(model.turned(), middle + ending, opening, n=len(opening) + 1)


@pytest.mark.parametrize(
    ("direction", "unit"), [("backward", "token"), ("backward", "word"), ("forward", "token")]
)
def test_the_seam_is_the_best_of_all_places_computed_one_by_one(
    tokenizer: Tokenizer, direction: Direction, unit: Unit
) -> None:
    model = tiny_model(tokenizer, direction=direction, hints=False, bias=-9, seed=5)
    model = replace(model, language=replace(model.language, unit=unit))
    given, far = (ENDING, OPENING) if direction == "backward" else (OPENING, ENDING)
    way = {"ending" if direction == "backward" else "opening": given}
    texts = model.write(**way, n=6, max_new_tokens=40, seed=4)  # type: ignore[arg-type]
    bridges = finished(join(model, model.turned(), texts, far))
    n_checked = 0
    for text, found in zip(texts, bridges, strict=True):
        ids = model.language.order.to_reading(text.ids)
        places = [int(place) for place in np.flatnonzero(tokenizer.starts_group[ids])]
        places = [place for place in places if direction == "backward" or place]
        if not 1 < len(places) <= bridge.CONSIDERED:
            continue
        n_checked += 1
        parts = {place: parts_at(model, text, far, place) for place in places}
        scores = {place: seam_score(model, parts[place]) for place in places}
        best = max(scores, key=scores.__getitem__)
        opening, middle, ending = parts[best]
        assert found.text == tokenizer.decode(ReadingIds(np.array(opening + middle + ending)))
        expected = scores[best] + end_score(model, parts[best])
        assert found.logprob == pytest.approx(expected, abs=1e-3)
        assert len({round(score, 3) for score in scores.values()}) > 1
    assert n_checked >= 3


@pytest.mark.parametrize("direction", WAYS)
def test_bridges_come_best_first_and_a_seed_repeats_them(
    tokenizer: Tokenizer, direction: Direction
) -> None:
    model = tiny_model(tokenizer, direction=direction)
    made = [model.bridge(OPENING, ENDING, 5, max_new_tokens=20, seed=s) for s in (7, 7, 8)]
    assert made[0] == made[1] != made[2]
    logprobs = [found.logprob for found in made[0]]
    assert logprobs == sorted(logprobs, reverse=True)
    assert len(set(logprobs)) > 1
    assert {found.seed for found in made[0]} == {7}


def test_a_bridge_does_not_depend_on_how_many_are_written_beside_it(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    few, many = (model.bridge(OPENING, ENDING, n, max_new_tokens=20, seed=7) for n in (2, 5))
    assert {found.middle for found in few} <= {found.middle for found in many}
    assert len({found.middle for found in many}) > 2


def test_a_model_that_takes_hints_is_told_the_opening_and_what_else_is_asked(
    tokenizer: Tokenizer,
) -> None:
    model = tiny_model(tokenizer, bias=-9)
    asked: list[dict[str, Any]] = [{}, {"words": ["dog"]}, {"length": "short"}]
    made = [model.bridge(OPENING, ENDING, 2, max_new_tokens=20, seed=7, **more) for more in asked]
    untold = replace(model, takes_hints=False)
    made.append(untold.bridge(OPENING, ENDING, 2, max_new_tokens=20, seed=7))
    assert len({found.middle for bridges in made for found in bridges}) == 8


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("hints", [True, False])
def test_a_model_that_never_ends_leaves_room_for_the_other_text(
    tokenizer: Tokenizer, direction: Direction, *, hints: bool
) -> None:
    model = tiny_model(tokenizer, direction=direction, hints=hints, bias=-99, block_size=64)
    for found in model.bridge(OPENING, ENDING, 3, seed=1):
        assert found.finish_reason == "length"
        assert found.text == OPENING + found.middle + ENDING
    for found in model.bridge(OPENING, ENDING, 3, max_new_tokens=1000, seed=1):
        assert found.text == OPENING + found.middle + ENDING


@pytest.mark.parametrize("direction", WAYS)
def test_texts_that_leave_one_id_of_room_fit_and_longer_ones_are_refused_before_any_is_written(
    tokenizer: Tokenizer, direction: Direction
) -> None:
    model = tiny_model(tokenizer, direction=direction, hints=False, bias=-99, block_size=64)
    n = 1
    while room_for_middle(model, model.turned(), "a " * n, ENDING) > 1:
        n += 1
    [found] = model.bridge("a " * n, ENDING, 1, seed=1)
    assert found.text == "a " * n + found.middle + ENDING
    n_steps = model.engine.n_steps  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"are 62 ids long, the models read at most 62 .*shorter"):
        model.bridge("a " * (n + 1), ENDING, 1, seed=1)
    assert model.engine.n_steps == n_steps  # type: ignore[attr-defined]


def test_a_twin_with_a_shorter_context_can_be_asked(tokenizer: Tokenizer) -> None:
    writer = tiny_model(tokenizer, told=False, bias=-99)
    twin = tiny_model(tokenizer, told=False, direction="forward", block_size=40)
    [found] = writer.bridge(OPENING, ENDING, 1, twin=twin, seed=1)
    assert found.text == OPENING + found.middle + ENDING
    [other] = twin.bridge(OPENING, ENDING, 1, twin=writer, seed=1)
    assert other.text == OPENING + other.middle + ENDING


def test_what_cannot_be_bridged_is_refused_before_any_is_written(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, told=False)
    both = tiny_model(tokenizer)
    refused: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: both.bridge("", ENDING), "the opening is empty"),
        (lambda: both.bridge(OPENING, " \n"), "the ending is empty"),
        (lambda: both.bridge(OPENING, ENDING, 0), "n = 0"),
        (lambda: both.bridge(OPENING, ENDING, max_new_tokens=0), "max-new-tokens = 0"),
        (lambda: both.bridge(OPENING, ENDING, seed=-1), "seed = -1"),
        (lambda: model.bridge(OPENING, ENDING), "only runs backward.* give its twin"),
        (lambda: model.bridge(OPENING, ENDING, twin=both), "both models run backward"),
    )
    for refuse, words in refused:
        with pytest.raises(UsageError, match=words):
            refuse()
    assert model.engine.n_steps == both.engine.n_steps == 0  # type: ignore[attr-defined]


def test_a_bridge_that_obeys_comes_before_one_that_is_joined_better() -> None:
    middles = {" a cat ": -1.0, " a dog ": -3.0, " the dog ": -2.0}
    bridges = [Bridge("It was", text, "ran.", value, 0, "stop") for text, value in middles.items()]
    assert best_bridges(bridges, NO_HINTS) == [0, 2, 1]
    assert best_bridges(bridges, Hints(words=("dog",))) == [2, 1, 0]


def test_a_bridge_has_the_words_it_was_asked_for_if_any_has(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    options: dict[str, Any] = {"words": ["fox"], "max_new_tokens": 20, "seed": 7}
    made = model.bridge(OPENING, ENDING, 8, **options)
    obeyed = ["fox" in bridge.text.lower() for bridge in made]
    assert obeyed == sorted(obeyed, reverse=True)
    assert obeyed[0]


def test_a_bridge_is_opening_middle_ending() -> None:
    assert Bridge("a", " b ", "c", -1.0, 0, "stop").text == "a b c"

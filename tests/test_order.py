"""Order: permutations that lose nothing, and text that grows at an edge without a wrong letter."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt.order import LeftwardDecoder, Order, ReadingIds, RightwardDecoder
from backgpt.tokenizer import Tokenizer

#                                   0      1      2      3      4
STARTS = np.array([True, True, False, False, True])  # ids 2 and 3 go on with a word


def reading(*ids: int) -> ReadingIds:
    return ReadingIds(np.array(ids, dtype=np.int64))


def test_token_unit_reverses_every_id() -> None:
    order = Order("backward", "token", STARTS)
    assert order.to_model(reading(1, 2, 3, 4)).tolist() == [4, 3, 2, 1]


def test_word_unit_keeps_the_ids_of_a_word_in_reading_order() -> None:
    order = Order("backward", "word", STARTS)
    assert order.to_model(reading(1, 2, 3, 4, 2, 0)).tolist() == [0, 4, 2, 1, 2, 3]


def test_forward_changes_nothing() -> None:
    for unit in ("token", "word"):
        order = Order("forward", unit, STARTS)
        assert order.to_model(reading(1, 2, 3, 4)).tolist() == [1, 2, 3, 4]


@given(st.lists(st.integers(0, 4), max_size=60), st.sampled_from(["backward", "forward"]))
def test_to_reading_undoes_to_model_in_both_units(ids: list[int], direction: str) -> None:
    for unit in ("token", "word"):
        order = Order(direction, unit, STARTS)  # type: ignore[arg-type]
        given_ids = reading(*([1, *ids] if unit == "word" else ids))
        there_and_back = order.to_reading(order.to_model(given_ids))
        assert there_and_back.tolist() == given_ids.tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_permutation_is_what_to_model_applies(ids: list[int]) -> None:
    order = Order("backward", "word", STARTS)
    assert (
        order.to_model(reading(*ids)).tolist()
        == reading(*ids)[order.permutation(reading(*ids))].tolist()
    )


def test_picture_of_the_readme_holds(tokenizer: Tokenizer) -> None:
    order = tokenizer.order("backward", "word")
    marked = tokenizer.mark(tokenizer.encode("The cat sat."))
    model = order.to_model(marked)
    assert model[0] == tokenizer.end_id
    assert model[-1] == tokenizer.start_id
    assert tokenizer.decode(ReadingIds(model)) == "sat. cat The"


@pytest.mark.slow
def test_reversing_twice_is_a_type_error(tmp_path: Path) -> None:
    program = tmp_path / "twice.py"
    program.write_text(
        "from backgpt.order import Order, ReadingIds\n"
        "def twice(order: Order, ids: ReadingIds) -> None:\n"
        "    order.to_model(order.to_model(ids))\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)], capture_output=True, text=True
    )
    assert 'incompatible type "ModelIds"; expected "ReadingIds"' in checked.stdout


def grow_leftward(units: list[bytes], *, before_line: bool = False) -> str:
    decoder = LeftwardDecoder(before_line=before_line)
    text = ""
    for unit in units:
        text = decoder.push(unit) + text
    return decoder.flush() + text


def grow_rightward(units: list[bytes]) -> str:
    decoder = RightwardDecoder()
    return "".join(decoder.push(unit) for unit in units) + decoder.flush()


def test_a_character_waits_for_its_first_byte() -> None:
    decoder = LeftwardDecoder()
    assert [decoder.push(bytes([byte])) for byte in reversed("€".encode())] == ["", "", "€"]


def test_a_leftmost_space_waits_for_what_stands_before_it() -> None:
    decoder = LeftwardDecoder()
    assert decoder.push(b" end") == "end"
    assert decoder.push(b" The") == "The "
    assert decoder.push(b"\n") == "\n"
    assert decoder.push(b".") == "."
    assert decoder.flush() == ""


def test_of_several_spaces_that_begin_a_line_one_is_not_in_the_text() -> None:
    units = [b"   a", b"\n", b"   b"]
    assert grow_rightward(units) == "  a\n  b"
    assert grow_leftward(units[::-1]) == "  a\n  b"


def test_broken_characters_become_replacement_characters() -> None:
    assert grow_leftward([b"a", b"\x82", b"\xe2", b"b"]) == b"b\xe2\x82a".decode(errors="replace")
    assert grow_leftward([b"\x82\xac"]) == "\ufffd\ufffd"


ALPHABET = st.sampled_from(
    [
        *("a", "The", " the", ".", " ", "\n", "\n\n", "\t", "\r", "\x00", "é", "e\u0301", "€"),
        *("中", "ب", "😀", "👨\u200d👩\u200d👧", "▁", "\u2028", "\u00a0", "<|start|>", "<|end|>"),
    ]
)
TEXT = st.one_of(st.text(max_size=40), st.lists(ALPHABET, max_size=25).map("".join))


def check_text(tokenizer: Tokenizer, text: str) -> None:
    """Assert everything that must hold for a text, whatever is in it."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not np.isin(ids, [tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id]).any()
    for unit in ("token", "word"):
        order = tokenizer.order("backward", unit)
        model = order.to_model(ids)
        assert order.to_reading(model).tolist() == ids.tolist()
    units = [tokenizer.token_bytes[id_] for id_ in ids]
    assert grow_leftward(list(reversed(units))) == text
    assert grow_rightward(units) == text


def check_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Assert that ids no encoder would choose still decode alike, whole or growing."""
    array = ReadingIds(np.array(ids, dtype=np.int64))
    units = [tokenizer.token_bytes[id_] for id_ in ids]
    assert grow_leftward(list(reversed(units))) == tokenizer.decode(array)
    assert grow_rightward(units) == tokenizer.decode(array)


@given(TEXT)
@settings(max_examples=500)
def test_any_text_survives_encoding_reversal_and_growing(tokenizer: Tokenizer, text: str) -> None:
    check_text(tokenizer, text)


@given(st.lists(st.integers(16, 511), max_size=25))
@settings(max_examples=500)
def test_any_ids_grow_to_their_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    check_ids(tokenizer, ids)


@pytest.mark.slow
@given(TEXT)
@settings(max_examples=10_000)
def test_10_000_texts_survive_encoding_reversal_and_growing(
    tokenizer: Tokenizer, text: str
) -> None:
    check_text(tokenizer, text)


@pytest.mark.slow
@given(st.lists(st.integers(16, 511), max_size=25))
@settings(max_examples=10_000)
def test_10_000_id_lists_grow_to_their_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    check_ids(tokenizer, ids)

"""The tokenizer: control ids that text cannot reach, one id sequence for a line wherever it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backgpt.errors import ConfigError, CorruptFileError, DataError
from backgpt.order import ReadingIds
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer


def test_a_line_has_the_same_ids_alone_and_after_other_text(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("The end.").tolist()
    for before in ("Hi. ", "Hi.\n", "Hi.\n\n"):
        assert tokenizer.encode(before + "The end.").tolist()[-len(alone) :] == alone


def test_an_ending_joins_on_with_the_white_space_it_brings(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("Hi.").tolist()
    for ending in ("The end.", " The end.", "\nThe end.", "\n\nThe end."):
        joined = [*hello, *tokenizer.encode_fragment(ending).tolist()]
        expected = "Hi." + (ending if ending[0] in " \n" else " " + ending)
        assert joined == tokenizer.encode(expected).tolist()


def test_an_ending_that_begins_with_a_closing_mark_joins_on_without_a_space(
    tokenizer: Tokenizer,
) -> None:
    hello = tokenizer.encode("Hi").tolist()
    for ending in (", and he ran.", "?", ".\nThe end.", '!" she said.', "” A", ") the end", "'"):
        joined = [*hello, *tokenizer.encode_fragment(ending).tolist()]
        assert joined == tokenizer.encode("Hi" + ending).tolist()
    for ending in ('"Hi," he said.', "'Tis the end.", "...and he ran.", "- and he ran.", "\ta"):
        joined = [*hello, *tokenizer.encode_fragment(ending).tolist()]
        assert joined == tokenizer.encode("Hi " + ending).tolist()


def test_control_ids_are_the_first_16_and_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert [tokenizer.control_id(token) for token in SPECIAL_TOKENS] == list(range(16))
    assert all(tokenizer.token_bytes[i] == b"" for i in range(16))
    assert all(tokenizer.token_bytes[i] for i in range(16, tokenizer.vocab_size))


def test_every_single_byte_has_an_id(tokenizer: Tokenizer) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.token_bytes)


def test_typed_control_tokens_stay_text_after_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for token in SPECIAL_TOKENS:
        ids = loaded.encode(f"a {token} b")
        assert ids.min() >= 16
        assert loaded.decode(ids) == f"a {token} b"


def test_saving_and_loading_keeps_the_hash(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256


def test_starts_group_marks_white_space_and_control_ids(tokenizer: Tokenizer) -> None:
    for id_, data in enumerate(tokenizer.token_bytes):
        expected = data == b"" or data[:1].isspace()
        assert tokenizer.starts_group[id_] == expected


def test_a_document_encodes_alike_alone_and_in_a_batch(tokenizer: Tokenizer) -> None:
    documents = ["The end.", "\nA line first.", "", " two  spaces "]
    batch = tokenizer.encode_batch(documents)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(d).tolist() for d in documents]
    assert [tokenizer.decode(ids) for ids in batch] == documents


def test_mark_puts_the_markers_at_the_ends(tokenizer: Tokenizer) -> None:
    marked = tokenizer.mark(ReadingIds(np.array([20, 21], dtype=np.uint16)))
    assert marked.tolist() == [tokenizer.start_id, 20, 21, tokenizer.end_id]


def test_lone_surrogates_are_refused_with_their_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"character 2 .*ud800"):
        tokenizer.encode("ab\ud800")


def test_a_byte_that_is_not_utf_8_is_named_as_such(tokenizer: Tokenizer) -> None:
    latin = "caf\u00e9".encode("latin-1").decode("utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match="not UTF-8 at character 3, byte 0xe9: convert it"):
        tokenizer.encode(latin)


@pytest.mark.parametrize("size", [271, 65_537])
def test_a_vocabulary_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=str(size)):
        Tokenizer.train(["some text"], size)


def test_a_small_text_gives_fewer_ids_than_asked_for() -> None:
    assert 272 <= Tokenizer.train(["aa aa"], 4096).vocab_size < 300


def test_a_word_of_any_length_is_learned_from_in_time() -> None:
    """Without an upper bound the time grows with the square of a word's length: hours for 2 MB."""
    trained = Tokenizer.train(["ab" * 1_000_000, "a word " * 100], 300)
    assert trained.vocab_size > 272
    assert trained.decode(trained.encode("ab" * 3000)) == "ab" * 3000


def test_what_is_not_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    missing, damaged = tmp_path / "no.json", tmp_path / "bad.json"
    damaged.write_text("{")
    with pytest.raises(DataError, match=r"no\.json"):
        Tokenizer.load(missing)
    with pytest.raises(CorruptFileError, match=r"bad\.json"):
        Tokenizer.load(damaged)


def test_a_tokenizer_without_our_control_ids_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text().replace("<|start|>", "<|begin|>")
    json.loads(text)
    with pytest.raises(CorruptFileError, match="start"):
        Tokenizer(text)


def changed(tokenizer: Tokenizer, folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    tokenizer.save(folder / "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    return json.dumps(content)


def test_a_file_that_cuts_and_fills_up_texts_is_not_obeyed(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cuts = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    fills = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    pad = {"pad_id": 99999, "pad_type_id": 0, "pad_token": "[PAD]"}
    text = changed(
        tokenizer, tmp_path, lambda c: c.update(truncation=cuts, padding={**fills, **pad})
    )
    for encode in (Tokenizer.encode, Tokenizer.encode_fragment):
        for given in ("Once upon a time.", "\nOnce upon a time."):
            assert encode(Tokenizer(text), given).tolist() == encode(tokenizer, given).tolist()


def test_a_file_that_drops_merges_by_chance_is_not_obeyed(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = changed(tokenizer, tmp_path, lambda c: c["model"].update(dropout=0.5))
    given = "Once upon a time there was a dragon."
    assert Tokenizer(text).encode(given).tolist() == tokenizer.encode(given).tolist()


def test_ids_are_counted_to_the_last_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = changed(tokenizer, tmp_path, lambda c: c["model"]["vocab"].update({"<|start|>": 5000}))
    assert Tokenizer(text).vocab_size == 5001


def test_a_token_that_stands_for_no_bytes_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    size = tokenizer.vocab_size
    text = changed(tokenizer, tmp_path, lambda c: c["model"]["vocab"].update({"\x1b中": size}))
    with pytest.raises(CorruptFileError, match=r"'\\x1b中'"):
        Tokenizer(text).token_bytes  # noqa: B018


def test_what_the_library_panics_at_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def panics(content: dict[str, Any]) -> None:
        content["model"]["continuing_subword_prefix"] = "##"

    with pytest.raises(CorruptFileError, match=r"not a tokenizer\.json"):
        Tokenizer(changed(tokenizer, tmp_path, panics))


def test_transformers_reads_the_file_to_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ("The end.", 'One day.\nTwo days.\n\n"Hi!"', "é 中 😀"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text


def test_ids_that_are_changed_are_not_those_of_the_next_call(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("The end.")
    kept = first.copy()
    first[:] = 0
    assert (tokenizer.encode("The end.") == kept).all()

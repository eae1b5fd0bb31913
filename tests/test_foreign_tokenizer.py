"""Tokenizers from elsewhere: the same ids and the same text as in their own library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from backgpt.errors import CorruptFileError, DataError, UsageError
from backgpt.foreign_model import read_tokenizer
from backgpt.foreign_tokenizer import markers_of, with_markers
from backgpt.language import Language
from backgpt.order import (
    Direction,
    LeftwardDecoder,
    ReadingIds,
    RightwardDecoder,
    Unit,
    reversed_words,
)
from backgpt.sentencepiece_model import read_sentencepiece
from backgpt.tokenizer import Tokenizer

EOT = "<|endoftext|>"
SMOLGPT = {
    "model_type": "bpe",
    "self_test_sample_size": 0,
    "input_format": "text",
    "num_threads": 1,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "minloglevel": 2,
}


def train_pieces(folder: Path, texts: list[str], **changes: Any) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    (folder / "tiny.txt").write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "tiny.txt"),
        model_prefix=str(folder / "tok"),
        **{**SMOLGPT, "vocab_size": 600, **changes},
    )
    return folder / "tok.model"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"), texts)


def converted(path: Path) -> Tokenizer:
    content, first, last = read_sentencepiece(path)
    return Tokenizer(json.dumps(with_markers(content, first, last)))


@pytest.fixture(scope="module")
def from_pieces(pieces: Path) -> Tokenizer:
    return converted(pieces)


@pytest.fixture(scope="module")
def byte_level(texts: list[str]) -> Tokenizer:
    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    hf.train_from_iterator(texts, trainer)
    hf.add_tokens([AddedToken("<think>", special=False)])
    return Tokenizer(json.dumps(with_markers(json.loads(hf.to_str()), None, 0)))


def fuzz(count: int) -> list[str]:
    random = np.random.default_rng(3)
    alphabet = [*"abcdehnost ABT.,!?'\"  \n\n\t0189<>/éü中日😀\u2028\u00a0\u0300\u2581"]
    alphabet += ["<s>", "</s>", "<unk>", "<0x0A>", "the ", " and", "Once upon"]
    return ["".join(random.choice(alphabet, random.integers(0, 50))) for _ in range(count)]


# --- SentencePiece


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remove_extra_whitespaces": False, "vocab_size": 500},
        {"add_dummy_prefix": False, "vocab_size": 500},
    ],
)
def test_a_sentencepiece_model_gives_the_ids_of_its_library(
    texts: list[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = train_pieces(tmp_path, texts, **changes)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = converted(path)
    assert tokenizer.vocab_size == processor.vocab_size()
    assert tokenizer.marker_ids == (processor.bos_id(), processor.eos_id()) == (1, 2)
    strings = [*texts, *map(reversed_words, texts), *fuzz(1500)]
    wrong = [
        text
        for text, ids in zip(strings, tokenizer.encode_batch(strings), strict=True)
        if ids.tolist() != processor.encode(text)
    ]
    assert not wrong
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids.tolist())


def test_pieces_stand_for_their_bytes_and_control_tokens_for_none(pieces: Path) -> None:
    tokenizer = converted(pieces)
    assert [tokenizer.token_bytes[id_] for id_ in range(3)] == [b""] * 3
    assert [tokenizer.token_bytes[3 + byte] for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert tokenizer.token_bytes[int(tokenizer.encode("The")[0])].startswith(b" ")
    assert not tokenizer.has_text[:3].any()
    assert tokenizer.starts_group[int(tokenizer.encode("The")[0])]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "unigram"}, "byte-pair"),
        ({"byte_fallback": False, "vocab_size": 300}, "byte-pair"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes characters"),
        ({"user_defined_symbols": ["<tag>"]}, "of a type not read here"),
    ],
)
def test_other_kinds_of_sentencepiece_models_are_refused(
    texts: list[str], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        read_sentencepiece(train_pieces(tmp_path, texts, **changes))


@pytest.mark.parametrize("data", [b"", b"hello world", b"\x0a\xff\xff\xff\xff\x0f", b"\x08"])
def test_what_is_not_a_sentencepiece_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.model").write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"bad\.model"):
        read_sentencepiece(tmp_path / "bad.model")
    with pytest.raises(DataError, match=r"none\.model"):
        read_sentencepiece(tmp_path / "none.model")


def test_ids_of_minus_one_are_none(pieces: Path, tmp_path: Path) -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    tags = b"\xc0\x02", b"\xc8\x02", b"\xd0\x02"  # fields 40 to 42
    trainer = b"\x18\x02\x98\x02\x01" + b"".join(tag + minus_one for tag in tags)
    path = tmp_path / "none.model"
    path.write_bytes(pieces.read_bytes() + b"\x12" + bytes([len(trainer)]) + trainer)
    content, first, last = read_sentencepiece(path)
    assert (first, last) == (None, None)
    assert content["model"]["unk_token"] is None
    assert (
        converted(path).encode("The é中").tolist() == converted(pieces).encode("The é中").tolist()
    )


@pytest.mark.parametrize("changes", [{"bos_id": -1}, {"eos_id": -1}, {"bos_id": 2, "eos_id": 1}])
def test_markers_are_those_of_the_sentencepiece_library(
    texts: list[str], tmp_path: Path, changes: dict[str, int]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = train_pieces(tmp_path, texts, **changes)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    _, *found = read_sentencepiece(path)
    assert [-1 if id_ is None else id_ for id_ in found] == [library.bos_id(), library.eos_id()]


# --- markers


@pytest.mark.parametrize("markers", [(None, None), (1, None), (None, 2), (1, 2), (2, 2)])
def test_markers_are_kept_in_the_file(pieces: Path, tmp_path: Path, markers: Any) -> None:
    content, _, _ = read_sentencepiece(pieces)
    tokenizer = Tokenizer(json.dumps(with_markers(content, *markers)))
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.marker_ids == markers
    assert loaded.sha256 == tokenizer.sha256
    if None in markers:
        with pytest.raises(UsageError, match="import it again"):
            loaded.mark(loaded.encode("a"))
    else:
        assert loaded.mark(loaded.encode("a")).tolist()[:: len(loaded.encode("a")) + 1] == [
            *markers
        ]


def test_a_tokenizer_that_names_no_markers_is_refused(pieces: Path) -> None:
    content, _, _ = read_sentencepiece(pieces)
    for other in (None, {"type": "ByteLevel"}):
        with pytest.raises(CorruptFileError, match="backgpt import"):
            markers_of({**content, "post_processor": other})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("single", []),
        ("single", [{"SpecialToken": {"id": "?", "type_id": 0}}]),
        ("special_tokens", {"<s>": {"id": "<s>", "ids": [], "tokens": []}}),
        ("special_tokens", {"<s>": {"id": "<s>", "ids": [99999], "tokens": ["<s>"]}}),
    ],
)
def test_markers_that_the_tokenizer_has_not_are_refused(
    pieces: Path, key: str, value: object
) -> None:
    content, _, _ = read_sentencepiece(pieces)
    content = with_markers(content, 1, None)
    content["post_processor"][key] = value
    with pytest.raises(CorruptFileError, match="import the model again"):
        markers_of(content)


def test_what_fills_up_a_text_is_not_what_comes_first(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    byte_level.save(tmp_path / "tokenizer.json")
    hf = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    hf.enable_padding(length=8, direction="left", pad_id=5)
    content = {**json.loads(hf.to_str()), "post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_tokenizer(tmp_path / "tokenizer.json")[1:] == (None, None)


def test_a_language_reads_the_markers_that_there_are(pieces: Path, byte_level: Tokenizer) -> None:
    tokenizer = converted(pieces)
    ids = tokenizer.encode("The end.").tolist()
    forward = Language(tokenizer, "forward", "token").prompt("The end.", at_edge=True)
    assert forward.ids.tolist() == [1, *ids]
    assert forward.stops.at_once == (2,)
    backward = Language(tokenizer, "backward", "token").prompt("The end.", at_edge=True)
    assert backward.ids.tolist() == [2, *ids[::-1]]
    assert backward.stops.later == (1,)
    bare = Language(byte_level, "backward", "token").prompt("The end.", at_edge=True)
    assert bare.ids.tolist() == [0, *byte_level.encode("The end.").tolist()[::-1]]
    assert bare.stops.at_once == ()


# --- text


def test_a_byte_level_tokenizer_adds_nothing(byte_level: Tokenizer, texts: list[str]) -> None:
    for text in (*texts[:40], *fuzz(300), " a", "\n b\n  c ", ""):
        for ids in (byte_level.encode(text), byte_level.encode_fragment(text)):
            assert byte_level.decode(ids) == text
            assert b"".join(byte_level.token_bytes[int(id_)] for id_ in ids) == text.encode()


def test_typed_control_tokens_stay_text(byte_level: Tokenizer, pieces: Path) -> None:
    for tokenizer, typed in ((byte_level, EOT), (converted(pieces), "</s>")):
        ids = tokenizer.encode(f"a {typed} b")
        assert tokenizer.has_text[ids].all()
        assert tokenizer.decode(ids) == f"a {typed} b"
    assert byte_level.token_bytes[byte_level.vocab_size - 1] == b"<think>"


def test_a_word_stands_behind_a_space(byte_level: Tokenizer, from_pieces: Tokenizer) -> None:
    ways: list[tuple[Direction, Unit]] = [
        ("forward", "token"),
        ("backward", "word"),
        ("backward", "text"),
    ]
    for tokenizer in (byte_level, from_pieces):
        for direction, unit in ways:
            ids = Language(tokenizer, direction, unit).word_ids("zebra")
            assert b"".join(tokenizer.token_bytes[int(id_)] for id_ in ids) == b" zebra"


def joined(tokenizer: Tokenizer, ids: ReadingIds) -> tuple[str, str]:
    """Return a text that is written leftward, and as it is written rightward."""
    data = [tokenizer.token_bytes[int(id_)] for id_ in ids]
    leftward = LeftwardDecoder(added=tokenizer.added_spaces)
    text = ""
    for unit in data[::-1]:
        text = leftward.push(unit) + text
    rightward = RightwardDecoder(added=tokenizer.added_spaces)
    return leftward.flush() + text, "".join(map(rightward.push, data)) + rightward.flush()


@settings(max_examples=150)
@given(st.text(alphabet="ab e\n .é中😀", max_size=30))
def test_pieces_join_to_what_the_tokenizer_decodes(
    byte_level: Tokenizer, from_pieces: Tokenizer, text: str
) -> None:
    for tokenizer in (byte_level, from_pieces):
        ids = tokenizer.encode(text)
        leftward, rightward = joined(tokenizer, ids)
        assert leftward == rightward == tokenizer.decode(ids)


@pytest.mark.parametrize("ending", ["The end.", " The end.", "\nThe end.", "\n\n The end."])
def test_what_is_written_before_an_ending_joins_it(
    pieces: Path, byte_level: Tokenizer, ending: str
) -> None:
    for tokenizer in (converted(pieces), byte_level):
        language = Language(tokenizer, "backward", "token")
        prompt = language.prompt(ending, at_edge=True)
        before = tokenizer.encode("They went home.")
        decoder = language.decoder(prompt)
        text = ending
        for id_ in before.tolist()[::-1]:
            text = decoder.push(tokenizer.token_bytes[id_]) + text
        text = decoder.flush() + text
        whole = ReadingIds(np.concatenate((before, prompt.ids[prompt.n_first :][::-1])))
        assert text == tokenizer.decode(whole)
        assert text.endswith(ending)


def test_a_space_that_the_tokenizer_leaves_out_of_an_opening_is_not_doubled(pieces: Path) -> None:
    tokenizer = converted(pieces)
    language = Language(tokenizer, "forward", "token")
    for opening in ("Once upon", "Once upon "):
        prompt = language.prompt(opening, at_edge=True)
        decoder = language.decoder(prompt)
        written = "".join(
            decoder.push(tokenizer.token_bytes[i]) for i in tokenizer.encode("a time")
        )
        assert opening + written == "Once upon a time"


def test_more_than_65536_ids_are_counted(byte_level: Tokenizer, tmp_path: Path) -> None:
    byte_level.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][-1], "id": 70_000, "content": "<far>", "special": False}
    )
    content["model"]["vocab"] |= {f"<{n}>": n for n in range(401, 70_000)}
    tokenizer = Tokenizer(json.dumps(content))
    assert tokenizer.vocab_size == 70_001
    assert tokenizer.encode("a<far>").tolist()[-1] == 70_000
    assert tokenizer.encode("a").dtype == np.uint32


def test_words_are_reversed_with_single_spaces() -> None:
    assert reversed_words("They were happy.\n\nThe  end.") == "end. The happy. were They"
    assert reversed_words(" \n") == ""

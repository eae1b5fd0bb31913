"""Text <-> ids: a byte-level BPE that loses nothing, with control ids that text cannot reach.

One tokenizer serves both directions. Every line begins with a space inside the tokenizer and no
line does outside it, so `The end.` has the same ids alone, after a line break and after a
sentence: a given ending is met as in training. Control ids are placed by code between encoded
pieces, never by encoding a text that contains their names.

Tokenizers from elsewhere are read as well, once `convert` has put in what marks a document: in the
template of their post-processor, which nothing here applies. They add other spaces than ours, or
none, and may lose something; what a model writes is decoded by their own rules.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from backgpt.checks import check_text
from backgpt.errors import ConfigError, CorruptFileError, DataError, UsageError
from backgpt.files import write_whole
from backgpt.order import AddedSpaces, Direction, Order, ReadingIds, Unit, joined
from backgpt.shape import MAX_VOCAB_SIZE

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
SPECIAL_TOKENS = (
    *(PAD, START, END, "<|hint|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|forward|>", "<|backward|>"),
    *("<|opening|>", "<|words|>", "<|title|>", "<|length|>", "<|question|>", "<|context|>"),
    "<|spare|>",
)
"""Ids 0 to 15, reserved from the first day. The third row names the kinds of hint."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
TEXTS_KEPT, LONGEST_KEPT = 256, 10_000  # texts whose ids are kept; of at most so many characters
WHITE_SPACE = b" \t\n\r\v\f"
_LONG_WORD = re.compile(r"(?<!\S)\S{1001,}")
_JOINED_EDGE = re.compile(r"[ \n]|(?!\.\.)[.,;:!?)\]}\"'”’»]+(?!\S)")


class Tokenizer:
    """A trained tokenizer; immutable. Make one with `train` or `load`."""

    def __init__(self, json_text: str) -> None:
        """Read the contents of a `tokenizer.json`. Raises CorruptFileError if they are not one."""
        self._json = json_text
        self._hf = opened(json_text)
        named = map(self._hf.token_to_id, (PAD, START, END))
        self.is_own: bool = all(id_ is not None for id_ in named)
        """Whether it is of this project: it loses nothing, and has all control ids."""
        self.vocab_size: int = 1 + max(self._hf.get_vocab().values(), default=-1)
        self.pad_id: int
        if self.is_own:
            self.pad_id, start, end = map(self.control_id, (PAD, START, END))
            self.marker_ids: tuple[int | None, int | None] = start, end
            """The control ids at the start and at the end of a document; foreign ones may lack."""
            self.added_spaces: AddedSpaces = "line"
        else:
            from backgpt import foreign_tokenizer  # only few need it

            content = json.loads(json_text)
            self.pad_id = 0  # what fills a row is never seen
            self.marker_ids = foreign_tokenizer.markers_of(content)
            self.added_spaces = foreign_tokenizer.added_spaces(content)
        self.sha256: str = hashlib.sha256(json_text.encode("utf-8")).hexdigest()

    @property
    def start_id(self) -> int:
        """The control id at the start of a document. Raises UsageError if there is none."""
        return self._marker(0, "start")

    @property
    def end_id(self) -> int:
        """The control id at the end of a document. Raises UsageError if there is none."""
        return self._marker(1, "end")

    def _marker(self, place: int, name: str) -> int:
        found = self.marker_ids[place]
        if found is None:
            raise UsageError(
                f"this model has no control id for the {name} of a text, which this takes: "
                "import it again and name one with --first or --stop"
            )
        return found

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn byte pairs from `texts` until there are `vocab_size` ids, or no pair repeats.

        Raises ConfigError if `vocab_size` has no room for the bytes or does not fit uint16.
        """
        check_vocab_size(vocab_size)
        hf = _untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        hf.train_from_iterator(map(_with_short_words, texts), trainer)
        return cls(hf.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json`. Raises DataError or CorruptFileError, naming the file."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except (UnicodeDecodeError, CorruptFileError) as error:
            raise CorruptFileError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, complete or not at all."""
        write_whole(path, self._json.encode("utf-8"))

    def with_markers_exchanged(self) -> "Tokenizer":
        """Return the tokenizer of a corpus that is read from its end: start is end, end is start.

        Nothing else differs. It is for ids that are turned around, not for text.
        """
        other = {START: END, END: START}
        content = json.loads(self._json)
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {other.get(t, t): id_ for t, id_ in vocabulary.items()}
        for added in content["added_tokens"]:
            added["content"] = other.get(added["content"], added["content"])
        return Tokenizer(json.dumps(content, ensure_ascii=False, indent=2))

    def encode(self, text: str) -> ReadingIds:
        """Return the ids of a whole document, (T,), without markers.

        They are uint16, or uint32 where there are more than those can count. Raises DataError for
        lone surrogates, which are not text, and UsageError for what is no text at all.
        """
        check_text("text", text)
        if len(text) > LONGEST_KEPT:
            return self.encode_batch([text])[0]
        return ReadingIds(self._recent(text).copy())

    def encode_batch(self, texts: Sequence[str]) -> list[ReadingIds]:
        """Return the ids of whole documents, each (T,), without markers."""
        if not self.is_own or not any(text.startswith("\n") for text in texts):
            return self._encode(self._hf, texts)
        # A document that begins with a line break has no first line to put a space in front of.
        return [
            self._encode(self._without_prepend if text.startswith("\n") else self._hf, [text])[0]
            for text in texts
        ]

    def encode_fragment(self, text: str) -> ReadingIds:
        """Return the ids, (T,), of a text that others may stand in front of.

        A fragment that begins with a space, a line break or a mark that ends something joins on
        with just that (see `takes_no_space`).
        """
        if self.added_spaces == "none":
            return self.encode(text)
        if self.added_spaces == "text" and text.startswith(" "):
            return self.encode(text[1:])  # its first space is the one that is added
        return self._encode(self._without_prepend if takes_no_space(text) else self._hf, [text])[0]

    def decode(self, ids: ReadingIds) -> str:
        """Return the text of `ids`, (T,): the inverse of `encode`; control ids have none."""
        text: str = self._hf.decode(ids.tolist(), skip_special_tokens=True)
        return text

    def mark(self, ids: ReadingIds) -> ReadingIds:
        """Return the ids of a document, (T,), between its markers: (T + 2,) int64."""
        return ReadingIds(joined([self.start_id], ids, [self.end_id]))

    def order(self, direction: Direction, unit: Unit) -> Order:
        """Return the order in which a model of `direction` and `unit` meets these ids."""
        return Order(direction, unit, self.starts_group)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; a control id stands for none."""
        names = [self._hf.id_to_token(i) or "" for i in range(self.vocab_size)]
        bytes_of = _bytes_of_characters(_byte_of_character())
        if not self.is_own:
            from backgpt import foreign_tokenizer

            if not foreign_tokenizer.is_byte_level(json.loads(self._json)):
                bytes_of = foreign_tokenizer.bytes_of_piece
        added = self._hf.get_added_tokens_decoder()
        as_text = {i: b"" if t.special else t.content.encode() for i, t in added.items()}
        return tuple(as_text[i] if i in as_text else bytes_of(name) for i, name in enumerate(names))

    @cached_property
    def starts_group(self) -> npt.NDArray[np.bool_]:
        """(V,) bool: whether an id begins a word group: white space first, or a control id."""
        return np.array([not b or b[0] in WHITE_SPACE for b in self.token_bytes], dtype=np.bool_)

    @cached_property
    def joins_left(self) -> npt.NDArray[np.bool_]:
        """(V,) bool: whether an id goes on with a word that is to its left, if there is one."""
        texts = (data.decode("utf-8", errors="replace") for data in self.token_bytes)
        return np.array([joins_left(text) for text in texts], dtype=np.bool_)

    @cached_property
    def has_text(self) -> npt.NDArray[np.bool_]:
        """(V,) bool: whether an id stands for text, which a control id does not."""
        return np.array([bool(data) for data in self.token_bytes], dtype=np.bool_)

    @cached_property
    def keeps_spaces(self) -> bool:
        """Whether it keeps spaces that are the last of a text, as SentencePiece may not."""
        return len(self.encode("a ")) > len(self.encode("a"))

    def name_of(self, id_: int) -> str:
        """Return what is shown for one id: its text, parts of characters as U+FFFD, or its name."""
        data = self.token_bytes[id_]
        return data.decode("utf-8", errors="replace") if data else self._hf.id_to_token(id_) or ""

    def control_id(self, token: str) -> int:
        """Return the id of a control token such as `<|user|>`.

        Raises CorruptFileError if the tokenizer was trained without it.
        """
        found = self._hf.token_to_id(token)
        if found is None:
            raise CorruptFileError(
                f"the tokenizer has no control id {token}: this takes one that backgpt trained"
            )
        return found

    @cached_property
    def _without_prepend(self) -> HFTokenizer:
        if not self.is_own:
            from backgpt import foreign_tokenizer

            return Tokenizer(foreign_tokenizer.unprefixed(self._json))._hf
        hf = opened(self._json)
        hf.normalizer = _line_space()
        return hf

    @cached_property
    def _recent(self) -> Callable[[str], ReadingIds]:
        """What `encode` gave for the last texts: the messages of a chat are asked for often."""
        return lru_cache(maxsize=TEXTS_KEPT)(lambda text: self.encode_batch([text])[0])

    def _encode(self, hf: HFTokenizer, texts: Sequence[str]) -> list[ReadingIds]:
        try:
            encodings = hf.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                _refuse_surrogates(text)
            raise
        dtype = np.uint16 if self.vocab_size <= MAX_VOCAB_SIZE else np.uint32
        return [ReadingIds(np.array(e.ids, dtype=dtype)) for e in encodings]


def check_vocab_size(vocab_size: int) -> None:
    """Raise ConfigError unless there is room for bytes and control ids, and ids fit 16 bits."""
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size = {vocab_size}: choose from {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}"
        )


def joins_left(text: str) -> bool:
    """Return whether a text begins as the rest of a word: letter, digit, apostrophe, or U+FFFD."""
    return text[:1].isalnum() or text.startswith(("'", "\ufffd"))


def takes_no_space(text: str) -> bool:
    """Return whether no space belongs in front of a text, were there another before it.

    It brings its own white space, or begins with what ends a sentence, a part of one, or a
    quotation: marks that white space follows, or nothing. Three dots may begin one as well.
    """
    return _JOINED_EDGE.match(text) is not None


def _with_short_words(text: str) -> str:
    """Return a text to learn from: the time that takes grows with the square of a word's length."""
    return _LONG_WORD.sub(lambda found: " ".join(re.findall(".{1,1000}", found[0])), text)


def opened(json_text: str) -> HFTokenizer:
    """Return a tokenizer that gives the ids of a text, all of them and no others."""
    try:
        hf = HFTokenizer.from_str(json_text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a bare Exception, or a panic in Rust, which is not even one
        raise CorruptFileError(f"not a tokenizer.json: {error}") from None
    hf.encode_special_tokens = True  # not kept in the file: typed markers stay text
    hf.no_truncation()  # files from elsewhere may ask for these three
    hf.no_padding()
    if isinstance(hf.model, models.BPE):
        hf.model.dropout = None
    return hf


def _untrained() -> HFTokenizer:
    hf = HFTokenizer(models.BPE())
    hf.normalizer = normalizers.Sequence([_line_space(), normalizers.Prepend(" ")])
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    hf.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    return hf


def _line_space() -> Any:
    return normalizers.Replace(Regex("\n(?=[^\n])"), "\n ")


def _bytes_of_characters(byte_of: dict[str, int]) -> Callable[[str], bytes]:
    def bytes_of(name: str) -> bytes:
        try:
            return bytes(byte_of[character] for character in name)
        except KeyError:
            raise CorruptFileError(
                f"the tokenizer has the token {name!r}, which stands for no bytes: get it anew"
            ) from None

    return bytes_of


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: the printable stand-in that byte-level BPE writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = text[error.start]
        if "\udc80" <= character <= "\udcff":  # how Python reads a byte that is not UTF-8
            place = f"character {error.start}, byte {ord(character) & 0xFF:#x}"
            raise DataError(f"the text is not UTF-8 at {place}: convert it") from None
        raise DataError(
            f"character {error.start} is the lone surrogate {character!r}, "
            "which is not text: remove it"
        ) from None

"""What `backgpt sample` is asked to write: its options, and which of them go together."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from backgpt.cli.given import standard_input
from backgpt.errors import UsageError

if TYPE_CHECKING:
    from backgpt.api import Model
    from backgpt.hints import Length
    from backgpt.rank import Method

Kind = Literal["text", "bridge", "around", "verse"]

CALLED: dict[Kind, str] = {"bridge": "a bridge", "around": "--around", "verse": "verse"}
TO_START_FROM = ("ending", "opening", "prompt", "words", "length")
_OF_TEXTS = ("prompt", "order", "continues", "stop", "rank", "stream")
NOT_WITH: dict[Kind, tuple[str, ...]] = {
    "text": (),
    "bridge": _OF_TEXTS,
    "around": (*_OF_TEXTS, "words", "length", "best_of"),
    "verse": (*_OF_TEXTS, "words", "length", "max_new_tokens", "twin"),
}
"""The options that mean nothing for a kind of text."""


@dataclass(frozen=True)
class SampleOptions:
    """The options of `sample` that say what is to be written, and how it is shown."""

    ending: str | None
    opening: str | None
    around: str | None
    end_words: str | None
    rhyme: str | None
    lines: int | None
    words: str | None
    length: "Length | None"
    prompt: str | None
    twin: str | None
    num_samples: int
    best_of: int | None
    rank: "Method | None"
    max_new_tokens: int | None
    stop: list[str] | None
    seed: int | None
    continues: bool
    order: Literal["reading", "model"]
    stream: bool
    as_json: bool

    def kind(self) -> Kind:
        """Return what is to be written; raise UsageError for what excludes each other."""
        names = ("ending", "opening", "around", "end_words", "rhyme")
        named = [name for name in names if getattr(self, name) is not None]
        special: dict[str, Kind] = {"around": "around", "end_words": "verse", "rhyme": "verse"}
        for name in named:
            if name in special and len(named) > 1:
                raise UsageError(f"{flags_of(named)} exclude each other: give one of them")
            if name in special:
                return special[name]
        return "bridge" if len(named) == 2 else "text"

    def check(self, kind: Kind) -> None:
        """Raise UsageError for numbers that cannot be, and options that do not go together."""
        if self.num_samples < 1:
            raise UsageError(f"n = {self.num_samples}: ask for at least 1 text")
        if self.best_of is not None and self.best_of < 1:
            raise UsageError(f"best-of = {self.best_of}: it must be 1 or more")
        if self.lines is not None and self.lines < 1:
            raise UsageError(f"lines = {self.lines}: it must be 1 or more")
        if kind == "text" and not any(map(self._is_given, TO_START_FROM)):
            raise UsageError('give a text to start from, such as --ending "The end."')
        named = [name for name in NOT_WITH[kind] if self._is_given(name)]
        if named:
            raise UsageError(f"{flags_of(named)} cannot be had with {CALLED[kind]}: leave it out")
        many = self.num_samples > 1 or self.best_of
        if self.stream and (many or self.as_json or self.order == "model"):
            raise UsageError(
                "--stream shows one text from one given: leave out --num-samples, --best-of, "
                "--json and --order"
            )
        if self.as_json and self.order == "model":
            raise UsageError("--json has the text in reading order: leave out --order")
        if self.stop and self.order == "model":
            raise UsageError(
                "--order model shows all that was written, past a stop: leave out --order or --stop"
            )
        if self.lines is not None and self.rhyme is None:
            raise UsageError("--lines says how many lines rhyme: give --rhyme, or leave it out")
        chooses = self.rank is not None or self.twin is not None
        if kind == "text" and self.best_of in (None, 1) and chooses:
            raise UsageError(
                "--rank and --twin choose among the texts of --best-of: give it as well, 2 or more"
            )

    def read(self, model: "Model") -> "SampleOptions":
        """Return the same with --prompt in its place, and standard input in that of a dash."""
        ending, opening = self.ending, self.opening
        if self.prompt is not None:
            if ending is not None or opening is not None:
                raise UsageError("--prompt stands for --ending or --opening: give one of them")
            backward = model.direction == "backward"
            ending, opening = (self.prompt, None) if backward else (None, self.prompt)
        texts = (ending, opening, self.around)
        if texts.count("-") > 1:
            raise UsageError("- reads standard input: give it once")
        ending, opening, around = (standard_input() if text == "-" else text for text in texts)
        given = opening if ending is None else ending
        if self.kind() == "text" and given is not None and not given.strip():
            raise UsageError(f"the text {given!r} is blank: give some words")
        return replace(self, prompt=None, ending=ending, opening=opening, around=around)

    @property
    def wanted_words(self) -> tuple[str, ...]:
        """The words that should occur."""
        return split_words(self.words)

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value == "model" if name == "order" else value is not None and value is not False


def split_words(words: str | None) -> tuple[str, ...]:
    """Return the words between commas."""
    return tuple(word.strip() for word in words.split(",")) if words is not None else ()


def flags_of(names: Iterable[str]) -> str:
    """Return options as they are typed, with commas between."""
    return ", ".join("--" + name.replace("_", "-") for name in names)

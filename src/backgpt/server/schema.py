"""What comes in: OpenAI's fields, and ours under the name `backgpt`.

Unknown fields are refused, so that nothing a client asks for is ignored quietly; those of OpenAI's
that have no meaning here and do no harm are taken.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from backgpt.chat import Mode
from backgpt.hints import Length
from backgpt.messages import Message, Role
from backgpt.order import Direction
from backgpt.sampling import Sampling

MOST_SAMPLES = 16
MOST_TRIED = 64
MOST_RAW = 64
MOST_TEXTS = 64
MOST_STOPS = 4
MOST_FIELDS = 64
NOT_TAKEN = {
    "presence_penalty": "only 0 is taken",
    "frequency_penalty": "only 0 is taken",
    "logit_bias": "not done here",
    "tools": "models here use no tools",
    "stream_options.include_obfuscation": "not done here",
}
"""Fields of OpenAI's that are taken as long as they say nothing, and why no more."""
MOST_LIKELIEST = 20
MOST_TURNS = 32
MOST_CHARACTERS = 1 << 16  # of all texts to score
LARGEST_SEED = 2**63 - 1

Order = Literal["append", "prepend"]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None


class Body(BaseModel):
    """A request or a part of one: strict, without unknown fields; null says nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _what_says_something(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MOST_FIELDS:  # each would be an error
            raise ValueError(f"{len(given):,} fields: no request has so many")
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(Body):
    """How a stream is told. `order` "prepend" gives live pieces to put in front."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    order: Order = "append"


class GenerationRequest(Body):
    """What completions and chats have in common."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MOST_SAMPLES)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)  # 0 and -1 are others' words for all
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    max_tokens: int | None = Field(None, ge=0)
    stop: (
        StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=MOST_STOPS)] | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Of OpenAI's fields those that say nothing here, and those that must say nothing.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)

    @property
    def sampling(self) -> Sampling:
        """How ids are drawn: the project's defaults, where nothing else is asked for."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "dry_multiplier")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if given.get("top_k", 1) < 1:
            del given["top_k"]
        if given.get("temperature") == 0:
            given |= {"temperature": 1.0, "top_k": 1}
        return Sampling(**given)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end what is written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def count(self) -> int:
        """How many choices are asked for."""
        return self.n or 1

    @property
    def order(self) -> Order:
        """Which way a stream is told."""
        return self.stream_options.order if self.stream_options else "append"

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationRequest":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options are for a stream: set stream, or leave them out")
        return self


class RawStops(Body):
    """The prompt is ids in model order, control ids and all, and so is what comes.

    What is written may end with these control ids, before any text and after some. With
    `begins_word` its first id has to begin a word.
    """

    at_once: Annotated[list[Id], Field(fail_fast=True)] = []
    later: Annotated[list[Id], Field(fail_fast=True)] = []
    begins_word: bool = False


class TextHints(Body):
    """What the text should be like."""

    words: Words = Field(default=[], max_length=16)
    length: Length | None = None
    continues: bool = False


class CompletionHints(TextHints):
    """What is ours in a completion: these, and the direction."""

    direction: Direction | None = None
    raw: RawStops | None = None


class CompletionRequest(GenerationRequest):
    """A completion: `suffix` is the ending, `prompt` alone as well, or a forward model's opening.

    Both together ask for a bridge, a text that begins and ends so. Of `best_of` texts that are
    written, over all choices of a prompt, the best are told of.
    """

    n: int | None = Field(None, ge=1)  # at most MOST_SAMPLES, of a raw prompt MOST_RAW
    suffix: str | None = None
    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS)]
        | Annotated[list[Id], Field(fail_fast=True, min_length=1)]
        | Annotated[
            list[Annotated[list[Id], Field(fail_fast=True, min_length=1)]],
            Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS),
        ]
        | None
    ) = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MOST_TRIED)
    return_token_ids: bool | None = None
    backgpt: CompletionHints = CompletionHints()


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a conversation; a developer's is a system message."""

    role: Role | Literal["developer"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]
    name: str | None = None
    # What an answer of OpenAI's client has when it is sent back, and must not say anything.
    refusal: None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None

    @property
    def message(self) -> Message:
        """The same as the rest of the program has it."""
        role: Role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role, self.content)
        return Message(role, "".join(part.text for part in self.content))


class ChatHints(Body):
    """What is ours in a chat: what is asked of the model, and what it is about."""

    mode: Mode = "ask"
    turns: int = Field(default=3, ge=1, le=MOST_TURNS)
    context: str = ""


class TextFormat(Body):
    """The only format there is."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """A chat: the messages that are given, in reading order."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        min_length=1, max_length=256
    )
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    backgpt: ChatHints = ChatHints()


class ScoreRequest(Body):
    """Texts to score."""

    model: str | None = None
    input: str | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MOST_TEXTS)]
    direction: Literal["backward", "forward", "both"] | None = None
    overlap: int = Field(0, ge=0)

    @field_validator("input")
    @classmethod
    def _short_enough(cls, given: str | list[str]) -> str | list[str]:
        count = len(given) if isinstance(given, str) else sum(map(len, given))
        if count > MOST_CHARACTERS:
            raise ValueError(
                f"{count:,} characters: at most {MOST_CHARACTERS:,} are scored at a time"
            )
        return given


class AlternativesRequest(Body):
    """A text, to find the words that may stand before it."""

    model: str | None = None
    suffix: str
    n: int = Field(10, ge=1, le=50)
    backgpt: TextHints = TextHints()


def _fields_of(kind: type[Body]) -> set[str]:
    return {*kind.model_fields}.union(*(_fields_of(one) for one in kind.__subclasses__()))


FIELDS = frozenset(_fields_of(Body))
"""The names of all fields: what else is part of a place that pydantic tells is not the client's."""

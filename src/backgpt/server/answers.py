"""What goes out, as OpenAI's clients read it, and what is ours under the name `backgpt`."""

from typing import Literal

from pydantic import BaseModel

from backgpt.messages import Role
from backgpt.order import Direction


class Usage(BaseModel):
    """How many ids were given and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, given: int, written: int) -> "Usage":
        """Return the usage of so many ids."""
        return cls(prompt_tokens=given, completion_tokens=written, total_tokens=given + written)


class TokenLogprobs(BaseModel):
    """OpenAI's log-probabilities of a completion, tokens in reading order."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Obeyed(BaseModel):
    """Whether the text does as it was told, of what was asked.

    `missing` are the words that do not occur; `n_words` is what the length was told by.
    """

    words: bool | None = None
    length: bool | None = None
    missing: list[str] | None = None
    n_words: int | None = None


class ChoiceDetails(BaseModel):
    """What is ours about one choice: `logprob` is in nats, of all that was drawn."""

    seed: int
    logprob: float
    n_tokens: int
    obeyed: Obeyed | None = None


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: TokenLogprobs | None = None
    token_ids: list[int] | None = None
    backgpt: ChoiceDetails


class Completion(BaseModel):
    """OpenAI's text completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class SaidMessage(BaseModel):
    """One message that was written."""

    role: Role
    content: str


class ChatDetails(ChoiceDetails):
    """What is ours about one choice of a chat: who says it, and all messages written."""

    role: Role
    messages: list[SaidMessage]
    finish_reason: Literal["stop", "turns", "length"]


class ChatChoice(BaseModel):
    """One answer, or question."""

    index: int
    message: SaidMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    backgpt: ChatDetails


class Chat(BaseModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelDetails(BaseModel):
    """What a served model can do."""

    directions: list[Direction]
    hints: bool
    chat: bool
    block_size: int
    description: str


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["backgpt"] = "backgpt"
    backgpt: ModelDetails


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ScoredSpan(BaseModel):
    """A word with the white space in front of it, and its log-probability in nats."""

    text: str
    backward: float | None = None
    forward: float | None = None


class ScoreTotal(BaseModel):
    """What one direction finds of a whole text; `edge` is the marker at its far edge.

    A text that is longer than the model reads at once is scored in several windows.
    """

    logprob: float
    n_tokens: int
    n_bytes: int
    n_windows: int
    nats_per_token: float
    bits_per_byte: float | None
    edge: float


class TextScore(BaseModel):
    """One scored text."""

    index: int
    spans: list[ScoredSpan]
    backward: ScoreTotal | None = None
    forward: ScoreTotal | None = None


class ScoreList(BaseModel):
    """All scored texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[TextScore]


class FoundAlternative(BaseModel):
    """A word that may stand before the text; an empty one with `edge`: the text begins here."""

    text: str
    logprob: float
    probability: float
    edge: bool = False


class AlternativeList(BaseModel):
    """The likeliest words."""

    object: Literal["list"] = "list"
    model: str
    data: list[FoundAlternative]


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error."""

    error: ErrorDetails


class Health(BaseModel):
    """Whether the decode thread moves."""

    status: Literal["ok", "stuck"]
    seconds_since_last_round: float

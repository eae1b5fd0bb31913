"""The model card: what a model was made of, and what was measured of it.

`card.json` in a model folder holds what its configuration cannot say; `card_text` renders it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from backgpt.chat import Mode
from backgpt.config import Settings, read_as
from backgpt.errors import ConfigError, CorruptFileError, DataError
from backgpt.hints import Kind
from backgpt.messages import Role
from backgpt.order import Direction
from backgpt.quantize import Storage

CARD = "card.json"


class Data(Settings):
    """A set of texts that a model was trained on."""

    name: str
    license: str
    attribution: str = ""


class Loss(Settings):
    """What a model lost on a held-out set, all of it, in one direction."""

    set: str
    direction: Direction
    storage: Storage
    nats_per_token: float
    bits_per_byte: float


class Trained(Settings):
    """How a model was trained. `tokens` are all that it met, repetitions counted."""

    tokens: int
    hardware: str
    date: str
    command: str
    commit: str


class Statistics(Settings):
    """What texts are like, generated or human; `evaluate` says how each figure is computed."""

    texts: int
    reached_edge: float | None = None
    known_words: float
    repeating: float
    distinct_3: float
    mean_words: float
    nats_per_token: float | None = None


class Obedience(Settings):
    """How many of the texts that were asked for something did it."""

    asked: int
    obeyed: int


class Story(Settings):
    """A sample as it came: nothing was left out or changed."""

    ending: str
    seed: int
    text: str


class Measures(Settings):
    """What `scripts/measure_builtin.py` measured of a model stored as int8."""

    set: str
    date: str
    losses: tuple[Loss, ...]
    endings: int
    generated: Statistics
    human: Statistics
    obedience: Mapping[Kind, Obedience] = {}
    unasked: Mapping[Kind, Obedience] = {}
    stories: tuple[Story, ...]


class ChatLoss(Settings):
    """What a chat model lost on what it writes in one mode, or on whole conversations.

    `conversations` of the `of` held-out ones fit the context.
    """

    what: Mode | Literal["whole"]
    direction: Direction
    conversations: int
    of: int
    nats_per_token: float
    bits_per_byte: float


class Retrieved(Settings):
    """How often each answer's own question was ranked first, or in the first ten."""

    method: str
    answers: int
    candidates: int
    first: float
    in_ten: float
    mean_rank: float


class QuestionStatistics(Settings):
    """What the questions to held-out answers are like: shares of all, the mean gain in nats.

    `scripts/evaluate_chat.py` says how it is computed.
    """

    answers: int
    asks: float
    shares_a_word: float
    gains: float
    mean_gain: float


class Rewound(Settings):
    """Conversations written backward: shares that are in order and that reached the start.

    `difference` is in the probability of a next id between reading at once and id by id.
    """

    conversations: int
    turns: int
    in_order: float
    to_the_start: float
    mean_messages: float
    difference: float
    difference_exact: float


class ShownMessage(Settings):
    """One message of a conversation that is shown."""

    role: Role
    text: str


class ShownExchange(Settings):
    """An exchange as it came: what was given, and the messages that were written, in order."""

    mode: Mode
    given: str
    seed: int
    written: tuple[ShownMessage, ...]


class ChatMeasures(Settings):
    """What `scripts/measure_chat.py` measured of a chat model stored as int8.

    `asked` are the model's questions, `human` those of people to the same answers.
    """

    set: str
    date: str
    losses: tuple[ChatLoss, ...]
    retrieved: tuple[Retrieved, ...]
    asked: QuestionStatistics
    human: QuestionStatistics
    rewound: Rewound
    outputs: int
    leaked: int
    exchanges: tuple[ShownExchange, ...]


class Card(Settings):
    """What a model's maker says of it, and what was measured. `license` is that of the weights."""

    description: str
    license: str
    data: tuple[Data, ...]
    trained: Trained
    limits: tuple[str, ...] = ()
    measures: Measures | None = None
    chat_measures: ChatMeasures | None = None


def read_card(path: Path) -> Card | None:
    """Read a `card.json`, or return None if there is none. Raises CorruptFileError."""
    if not path.is_file():
        return None
    try:
        return read_as(Card, path)
    except (ConfigError, DataError) as error:
        raise CorruptFileError(str(error)) from None

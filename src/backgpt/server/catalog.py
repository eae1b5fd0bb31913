"""The models that are served, by name.

A name followed by `:forward` or `:backward` means the model running that way, for clients that
have no field to say it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from backgpt.api import Model
from backgpt.engine import Engine
from backgpt.errors import UsageError
from backgpt.order import Direction
from backgpt.server.answers import ModelCard, ModelDetails, ModelList
from backgpt.server.failures import ApiError

MOST_SHOWN = 80  # characters of a name that there is not
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class Served:
    """A model, and what its card says it is."""

    model: Model
    description: str = ""

    @property
    def directions(self) -> list[Direction]:
        """Which ways it runs, its main one first."""
        if self.model.language.told:
            return list(DIRECTIONS)
        return [self.model.direction]


class Catalog:
    """Finds models; `completions` and `chat` name those that are meant when none is named."""

    def __init__(self, models: Mapping[str, Served], *, completions: str, chat: str) -> None:
        self._models = dict(models)
        self._completions, self._chat = completions, chat

    @property
    def names(self) -> str:
        """The names of all models, with commas between."""
        return ", ".join(self._models)

    def name_of(self, engine: Engine) -> str:
        """Return the name of the model that an engine runs."""
        return next(name for name, one in self._models.items() if one.model.engine is engine)

    def for_text(self, name: str | None, direction: Direction | None = None) -> tuple[str, Model]:
        """Return the name and the model to write or score with, running in `direction`.

        Raises ApiError if there is none of that name, or it does not run that way.
        """
        return self._find(name or self._completions, direction)

    def for_chat(self, name: str | None) -> tuple[str, Model]:
        """Return the name and the model to chat with. Raises ApiError if there is none."""
        name, model = self._find(name or self._chat, None)
        if not model.takes_chat:
            raise ApiError(
                400, f"{name} was not tuned on conversations: choose another model", param="model"
            )
        return name, model

    def list(self) -> ModelList:
        """Return what is served."""
        return ModelList(data=[self.card(name) for name in self._models])

    def card(self, name: str) -> ModelCard:
        """Return what one model is. Raises ApiError if there is none of that name."""
        base, model = self._find(name, None)
        served = self._models[base]
        return ModelCard(
            id=name,
            backgpt=ModelDetails(
                directions=served.directions,
                hints=model.takes_hints,
                chat=model.takes_chat,
                block_size=model.engine.block_size,
                description=served.description,
            ),
        )

    def direction_in(self, name: str | None) -> Direction | None:
        """Return the direction that a name ends with, if it does."""
        base, _, way = (name or "").rpartition(":")
        if name in self._models or base not in self._models:
            return None
        return next((direction for direction in DIRECTIONS if direction == way), None)

    def _find(self, name: str, direction: Direction | None) -> tuple[str, Model]:
        if way := self.direction_in(name):
            if direction not in (None, way):
                raise ApiError(
                    400, f"direction = {direction}, but the model is {name}", param="model"
                )
            name, direction = name.removesuffix(f":{way}"), way
        served = self._models.get(name)
        if served is None:
            raise ApiError(
                404,
                f"there is no model {name[:MOST_SHOWN]!r} here: choose one of {self.names}",
                param="model",
                code="model_not_found",
            )
        model = served.model
        if direction is not None and direction != model.direction:
            try:
                model = model.turned()
            except UsageError as error:
                raise ApiError(400, f"{name}: {error}", param="backgpt.direction") from None
        return name, model

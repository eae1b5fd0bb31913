"""Put a trained model into the package as a built-in one: int8, with its card and a manifest.

    python scripts/ship_model.py runs/stories stories --about about.json --measures measures.json

`about.json` has the keys of `card.Card` but the measures: description, license, data, trained,
limits. `measures.json` is what scripts/measure_builtin.py wrote, or scripts/measure_chat.py for a
model tuned on conversations. The folder is written whole or not at all, over the one of that name.
"""

import argparse
import sys
from pathlib import Path

from backgpt.builtin import MODELS, NAME, describe
from backgpt.card import CARD, Card, ChatMeasures, Measures
from backgpt.card_text import full_card
from backgpt.config import read_as
from backgpt.errors import BackgptError, UsageError
from backgpt.model_folder import README, read_model, save_model
from backgpt.quantize import count_parameters


def main() -> None:
    """Write the folder and say what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="a run folder or a model folder")
    parser.add_argument("name", help="what to call it")
    parser.add_argument("--about", type=Path, required=True)
    parser.add_argument("--measures", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=MODELS, help="the folder to put it in")
    arguments = parser.parse_args()
    try:
        ship(
            arguments.model,
            arguments.name,
            about=arguments.about,
            measures=arguments.measures,
            models=arguments.models,
        )
        info = describe(arguments.name, models=arguments.models)
    except BackgptError as error:
        sys.exit(f"ship_model: {error}")
    print(f"{info.folder}: {info.n_parameters:,} parameters, {info.size_bytes / 1e6:.2f} MB")


def ship(model: Path, name: str, *, about: Path, measures: Path, models: Path) -> None:
    """Write `model` as the built-in model `name` into the folder `models`.

    Raises UsageError for a name that cannot be one, and as `read_as`, `read_model`, `save_model`.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: small letters, digits, - and _ are")
    folder = read_model(model)
    measured = (
        {"chat_measures": read_as(ChatMeasures, measures)}
        if folder.chat
        else {"measures": read_as(Measures, measures)}
    )
    card = read_as(Card, about).model_copy(update=measured)
    read_me = full_card(
        name,
        card,
        folder.config,
        direction=folder.direction,
        unit=folder.unit,
        hints=folder.hints,
        n_parameters=count_parameters(folder.weights),
    )
    files = {
        CARD: (card.model_dump_json(indent=2) + "\n").encode(),
        README: read_me.encode(),
    }
    save_model(folder, models / name, storage="int8", files=files)


if __name__ == "__main__":
    main()

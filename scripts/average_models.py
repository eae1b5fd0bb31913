"""Average the weights of models that were trained from one another: often better than each.

    python scripts/average_models.py OUT runs/tuned=0.7 runs/base=0.3

A tuned model that is led part of the way back to what it was tuned from has forgotten less and
learned less by heart (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models"). OUT is a
model folder with float32 weights, which is in all else the first model: its tokenizer, direction
and hints.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from backgpt.builtin import find
from backgpt.errors import BackgptError, UsageError
from backgpt.model_folder import ModelFolder, read_model, save_model


def main() -> None:
    """Write the folder and say what it was made of."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL=SHARE")
    arguments = parser.parse_args()
    try:
        if os.path.lexists(arguments.out):
            raise UsageError(f"{arguments.out} is there already: name a folder to be made")
        shares = _shares(arguments.models)
        models = {name: read_model(find(name)) for name in shares}
        save_model(average(models, shares), arguments.out)
    except BackgptError as error:
        sys.exit(f"average_models: {error}")
    print(f"{arguments.out}: " + " + ".join(f"{s:g} {name}" for name, s in shares.items()))


def average(models: dict[str, ModelFolder], shares: dict[str, float]) -> ModelFolder:
    """Return the first model with weights that are all models' in these shares.

    Raises UsageError if two have different shapes, tokenizers, directions or units.
    """
    name, first = next(iter(models.items()))
    for other, model in models.items():
        if (model.config, model.tokenizer.sha256) != (first.config, first.tokenizer.sha256):
            raise UsageError(f"{other} has another shape or tokenizer than {name}")
        if (model.direction, model.unit) != (first.direction, first.unit):
            raise UsageError(
                f"{other} runs {model.direction} by {model.unit}, {name} {first.direction} by "
                f"{first.unit}: only models that run alike have a mean"
            )
    weights = {}
    for key in first.weights:
        parts = [shares[model] * folder.weights[key] for model, folder in models.items()]
        weights[key] = np.asarray(np.sum(parts, axis=0), dtype=np.float32)
    return replace(first, weights=weights)


def _shares(given: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in given:
        name, separator, share = item.rpartition("=")
        if name in shares:
            raise UsageError(f"{name} is given twice: name each model once")
        try:
            shares[name] = float(share)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"{item!r} is not MODEL=SHARE, such as runs/stories=0.7")
    if not abs(sum(shares.values()) - 1) <= 1e-6:  # nor if one is not a number
        raise UsageError(f"the shares add up to {sum(shares.values()):g}: let them add up to 1")
    return shares


if __name__ == "__main__":
    main()

"""Double the layers of a model, so that it writes as before and has more to learn with.

    python scripts/double_layers.py MODEL OUT

Behind each layer comes a copy whose two output projections are zero, which adds nothing until it
is trained (LLaMA Pro, Wu et al. 2024). MODEL is a built-in model's name, a model folder or a run
folder; OUT is a model folder, for `backgpt train --init OUT`.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from backgpt.arrays import Arrays
from backgpt.builtin import find
from backgpt.errors import BackgptError
from backgpt.model_folder import ModelFolder, read_model, save_model

OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def main() -> None:
    """Write the folder and say how large the model is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a built-in model's name, a model folder or a run folder")
    parser.add_argument("out", type=Path, help="the folder to write, which must not be there")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"double_layers: {arguments.out} is there: name another folder")
    try:
        grown = doubled(read_model(find(arguments.model)))
        save_model(grown, arguments.out)
    except BackgptError as error:
        sys.exit(f"double_layers: {error}")
    print(f"{arguments.out}: {grown.config.n_layer} layers")


def doubled(model: ModelFolder) -> ModelFolder:
    """Return a model with twice the layers that computes the same."""
    weights: Arrays = {}
    for name, array in model.weights.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if not layer:
            weights[name] = array
            continue
        number, rest = 2 * int(layer[1]), layer[2]
        weights[f"model.layers.{number}.{rest}"] = array
        copy = np.zeros_like(array) if rest in OUTPUTS else array.copy()
        weights[f"model.layers.{number + 1}.{rest}"] = copy
    return replace(
        model, config=replace(model.config, n_layer=2 * model.config.n_layer), weights=weights
    )


if __name__ == "__main__":
    main()

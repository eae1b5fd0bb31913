"""Tiny models on disk, random but lively: every part of one moves its logits."""

from pathlib import Path

import torch

from backgpt.model import Transformer
from backgpt.model_folder import ModelFolder, save_model
from backgpt.order import Directions, Unit
from backgpt.quantize import Storage
from backgpt.tokenizer import Tokenizer
from tiny_models import config_of


def tiny_folder(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    direction: Directions = "backward",
    unit: Unit = "token",
    hints: bool = False,
    chat: bool = False,
    storage: Storage = "float32",
    **shape: int,
) -> Path:
    """Write a random model at `folder`, and return that."""
    config = config_of(tokenizer, **shape)
    model = Transformer(config, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.2, generator=generator)
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    made = ModelFolder(config, direction, unit, tokenizer, arrays, hints=hints, chat=chat)
    save_model(made, folder, storage=storage)
    return folder

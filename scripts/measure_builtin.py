"""Measure a model for its card: losses, samples, obedience to hints; write them as JSON.

    python scripts/measure_builtin.py RUN --data valid.jsonl.xz --train train.jsonl.xz \\
        --out measures.json --samples 200 --endings 40 --hinted 200

Everything but the losses of the float weights is measured on the int8 weights that are shipped.
The forward twin is the model itself if it runs both ways, or --twin. --train is for the words that
occur in it and for nothing else. The same seed gives the same figures.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from backgpt import load
from backgpt.api import Model
from backgpt.builtin import find
from backgpt.card import Loss, Measures
from backgpt.datasets import open_source
from backgpt.errors import BackgptError, UsageError
from backgpt.evaluate import (
    choose,
    draw_endings,
    first_of_each,
    last_sentence,
    measure_hints,
    measure_loss,
    share_that_reached_the_edge,
    statistics_of,
    vocabulary_of,
    with_endings_that_fit,
    write_samples,
)
from backgpt.files import write_whole
from backgpt.model_folder import read_model, save_model
from backgpt.order import Direction
from backgpt.quantize import Storage

SHOWN = 10  # stories in the card


def main() -> None:
    """Measure, write the file, print it."""
    arguments = _parser().parse_args()
    try:
        measures = _measure(arguments)
        write_whole(arguments.out, (measures.model_dump_json(indent=2) + "\n").encode())
    except (BackgptError, OSError) as error:
        sys.exit(f"measure_builtin: {error}")
    print(_table(measures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a run folder, a model folder, or a built-in name")
    parser.add_argument("--data", required=True, help="held-out texts")
    parser.add_argument("--train", required=True, help="training texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", help="what to call the held-out texts; their path otherwise")
    parser.add_argument("--twin", help="a forward model with the same tokenizer")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--endings", type=int, default=40)
    parser.add_argument("--hinted", type=int, default=200, help="texts to draw hints from")
    parser.add_argument("--max-new-tokens", type=int, help="of a sample; the context otherwise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


def _measure(arguments: argparse.Namespace) -> Measures:
    texts = _read(arguments.data)
    vocabulary = vocabulary_of(_read(arguments.train))
    seed, longest = arguments.seed, arguments.max_new_tokens
    if not 1 <= arguments.endings <= arguments.samples or arguments.samples % arguments.endings:
        raise UsageError("--samples: a multiple of the number of --endings")
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "model"
        save_model(read_model(find(arguments.model)), stored, storage="int8")
        model = load(stored, device=arguments.device)
        twin = _twin(model, arguments)
        losses = _losses(arguments, stored, texts)

        written_toward = with_endings_that_fit(texts, model)
        endings = draw_endings(written_toward, arguments.endings, seed=seed)
        _say(f"writing {arguments.samples} samples")
        each = arguments.samples // arguments.endings
        samples = list(write_samples(model, endings, each=each, seed=seed, max_new_tokens=longest))
        obedience, unasked = measure_hints(
            model, written_toward, arguments.hinted, seed=seed, max_new_tokens=longest, say=_say
        )
        human = choose(texts, len(samples), seed=seed)
        return Measures(
            set=_name(arguments),
            date=datetime.date.today().isoformat(),
            losses=losses,
            endings=len(endings),
            generated=statistics_of(
                [sample.text.text for sample in samples],
                vocabulary,
                endings=[sample.ending for sample in samples],
                twin=twin,
                reached_edge=share_that_reached_the_edge(samples),
            ),
            human=statistics_of(
                human, vocabulary, endings=[last_sentence(text) for text in human], twin=twin
            ),
            obedience=obedience,
            unasked=unasked,
            stories=first_of_each(samples, SHOWN),
        )


def _losses(arguments: argparse.Namespace, int8: Path, texts: Sequence[str]) -> tuple[Loss, ...]:
    """Return the loss of the float and of the int8 weights, each way that the model runs."""
    stored: dict[Storage, Path] = {"float32": find(arguments.model), "int8": int8}
    losses = []
    for storage, path in stored.items():
        model = load(path, device=arguments.device)
        for way in [model, model.turned()] if model.language.told else [model]:
            _say(f"scoring {way.direction}, {storage}")
            losses.append(measure_loss(way, texts, of=_name(arguments), storage=storage))
    return tuple(losses)


def _twin(model: Model, arguments: argparse.Namespace) -> Model | None:
    forward: Direction = "forward"
    if arguments.twin:
        return load(arguments.twin, direction=forward, device=arguments.device)
    return model.turned() if model.language.told else None


def _read(path: str) -> list[str]:
    return [document.text for document in open_source(path)]


def _name(arguments: argparse.Namespace) -> str:
    return str(arguments.set or Path(arguments.data).name)


def _table(measures: Measures) -> str:
    lines = [
        f"{loss.direction:<9} {loss.storage:<8} {loss.nats_per_token:.4f} nats per token, "
        f"{loss.bits_per_byte:.4f} bits per byte"
        for loss in measures.losses
    ]
    human = measures.human.model_dump()
    for name, value in measures.generated.model_dump().items():
        lines.append(f"{name:<15} {_figure(value):>9} {_figure(human[name]):>9} (human)")
    for kind, result in measures.obedience.items():
        unasked = measures.unasked[kind]
        lines.append(
            f"{kind:<8} obeyed {result.obeyed} of {result.asked}; "
            f"unasked {unasked.obeyed} of {unasked.asked}"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Weights on their way home: a model folder with int8 weights, cut into pieces, and back.

    python scripts/gpu/weights.py FOLDER FILES...

joins the pieces among FILES, checks them against their list, and writes FOLDER/NAME, an ordinary
model folder with float32 weights; what else a run brought is unpacked beside it. Int8 rows are what
the built-in models have, and two models of 28 million parameters fit into one call.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from backgpt.model_folder import read_model, save_model, write_model

LIST = ".list.json"  # NAME.list.json says which pieces NAME has, and their SHA-256
RESULTS = "results.tar.xz"


def export(model: Path, out: Path, *, name: str, piece_bytes: int, progress: dict[str, Any]) -> int:
    """Write the model at `model` into pieces in `out`; return how many bytes they have.

    `progress` goes along as progress.json.
    """
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as temporary:
        write_model(read_model(model), Path(temporary), storage="int8")
        (Path(temporary) / "progress.json").write_text(json.dumps(progress) + "\n")
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(temporary, arcname=name)
    data = packed.getvalue()
    pieces = []
    for number, start in enumerate(range(0, len(data), piece_bytes)):
        piece = data[start : start + piece_bytes]
        file = f"{name}.part-{number}"
        (out / file).write_bytes(piece)
        pieces.append({"file": file, "sha256": hashlib.sha256(piece).hexdigest()})
    (out / f"{name}{LIST}").write_text(json.dumps({"name": name, "pieces": pieces}) + "\n")
    return len(data)


def unpack(files: list[Path], folder: Path) -> list[Path]:
    """Join and check what lies among `files`; return the model folders written into `folder`.

    Exits with a line on what is missing or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {file.name: file for file in files}
    models = []
    for name, file in sorted(by_name.items()):
        if name.endswith(LIST):
            models.append(_model(json.loads(file.read_text()), by_name, folder))
        elif name == RESULTS:
            with tarfile.open(file) as tar:
                tar.extractall(folder, filter="data")
    return models


def _model(listed: dict[str, Any], files: dict[str, Path], folder: Path) -> Path:
    data = b""
    for piece in listed["pieces"]:
        file = files.get(piece["file"])
        if file is None:
            sys.exit(f"{piece['file']} is missing: give all files that were brought home")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != piece["sha256"]:
            sys.exit(f"{file} is damaged: fetch it again")
        data += content
    target = folder / str(listed["name"])
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(temporary, filter="data")
        came = Path(temporary) / listed["name"]
        progress = (came / "progress.json").read_bytes()
        save_model(read_model(came), target, files={"progress.json": progress})
    return target


def main() -> None:
    """Unpack what the command line names, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    for model in unpack(arguments.files, arguments.folder):
        progress = json.loads((model / "progress.json").read_text())
        print(f"{model}: stage {progress['stage']}, step {progress['step']:,}")


if __name__ == "__main__":
    main()

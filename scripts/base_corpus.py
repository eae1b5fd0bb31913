"""Gather the texts a built-in base model is pretrained on into one JSON lines file.

    python scripts/base_corpus.py DATA base.jsonl.xz
    python scripts/base_corpus.py DATA base.jsonl --share prose=0.06 --share prose/simplewiki=0.2

DATA is a folder with the subfolders tinystories, stories, prose, dolly and chat; what is named
`valid` in it is never read. `--share` keeps that share of a folder's texts, or of one of its
files', chosen by hash, so that the same text is in or out whatever stands beside it.
docs/training.md names the sources.
"""

import argparse
import hashlib
import json
import lzma
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

FOLDERS = {
    "tinystories": ("train.jsonl.xz", "train_recased.jsonl.xz"),
    "stories": ("simplestories", "picturebooks", "fairytales", "gutenberg_tales"),
    "prose": ("simplewiki", "learner_english", "children_books", "fiction_easy"),
    "dolly": ("train.jsonl.xz",),
    "chat": ("oasst1_en_messages",),
}
FIELDS = ("instruction", "context", "text", "response")  # a record's text: those it has, in order


def main() -> None:
    """Write the file, and a line for each source on standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", action="append", default=[], metavar="FOLDER[/FILE]=F")
    arguments = parser.parse_args()
    shares = _shares(parser, arguments.share)

    seen: set[bytes] = set()
    temporary = arguments.out.with_name("." + arguments.out.name)
    opener: Any = lzma.open if arguments.out.suffix == ".xz" else open
    with opener(temporary, "wt", encoding="utf-8") as out:
        for folder, names in FOLDERS.items():
            for path in _files(arguments.data / folder, names):
                count, size = 0, 0
                file = f"{folder}/{path.name.split('.')[0]}"
                for text in _texts(path, shares.get(file, shares.get(folder, 1.0)), seen):
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    count, size = count + 1, size + len(text.encode())
                line = f"{folder}/{path.name}: {count:,} texts, {size / 1e6:.1f} MB"
                print(line, file=sys.stderr)
    temporary.replace(arguments.out)


def _shares(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, float]:
    files = [f"{folder}/{name.split('.')[0]}" for folder in FOLDERS for name in FOLDERS[folder]]
    shares = {}
    for item in given:
        part, _, share = item.partition("=")
        try:
            shares[part] = float(share)
        except ValueError:
            parser.error(f"--share {item}: give it as prose=0.1")
        if part not in (*FOLDERS, *files) or not 0 <= shares[part] <= 1:
            parser.error(f"--share {item}: one of {', '.join((*FOLDERS, *files))}, from 0 to 1")
    return shares


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the training files of a folder in the order of `names`, packed or not."""
    found = [
        path
        for name in names
        for path in sorted(folder.glob(f"{name.removesuffix('.jsonl.xz')}.jsonl*"))
    ]
    if not found:
        sys.exit(f"{folder} holds none of {', '.join(names)}: give the folder with the data")
    return found


def _texts(path: Path, share: float, seen: set[bytes]) -> Iterator[str]:
    """Yield the share of a file's texts that was not seen before."""
    with ExitStack() as stack:
        opener: Any = lzma.open if path.suffix == ".xz" else open
        for line in stack.enter_context(opener(path, "rt", encoding="utf-8")):
            record = json.loads(line)
            text = "\n\n".join(record[field] for field in FIELDS if record.get(field))
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in seen and int.from_bytes(digest[:8], "little") < share * 2**64:
                seen.add(digest)
                yield text


if __name__ == "__main__":
    main()

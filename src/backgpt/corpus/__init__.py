"""The built-in corpus: a few thousand little stories, enough for tests and a first training.

Gives plain strings, one story each, paragraphs joined by one newline. Every word of them was made
for this project by the seeded generator in this package (`write`), from word tables and plots
authored for it: original text under the project's MIT license, and also dedicated to the public
domain (CC0) so that a model trained on it owes nothing.
"""

import lzma
from importlib.resources import files

from backgpt.errors import CorruptFileError

STORIES_FILE = "stories.txt.xz"
STORY_SEPARATOR = "\n\n"


def stories() -> list[str]:
    """Return the shipped stories in their fixed, shuffled order.

    Raises CorruptFileError if the shipped file is missing or damaged.
    """
    try:
        packed = files(__package__).joinpath(STORIES_FILE).read_bytes()
        text = lzma.decompress(packed).decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            f"the built-in corpus {STORIES_FILE} cannot be read ({error}): reinstall backgpt"
        ) from error
    return text.removesuffix("\n").split(STORY_SEPARATOR)

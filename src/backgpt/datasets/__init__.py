"""Where text comes from: the hub, local files and the built-in corpus, as plain records.

`open_source("tinystories")` or `open_source("my/stories")` yields `Document`s one after the
other in bounded memory. Every text is valid UTF-8 with `\\n` line ends and no white space around
it; paragraph breaks inside are kept exactly.
"""

from backgpt.datasets.files import read_conversations
from backgpt.datasets.records import Conversation, Document, Tally
from backgpt.datasets.sources import Source, find_source, open_source, read_source
from backgpt.datasets.stream import Split, StreamedDocument, TextStream, sample

__all__ = [
    "Conversation",
    "Document",
    "Source",
    "Split",
    "StreamedDocument",
    "Tally",
    "TextStream",
    "find_source",
    "open_source",
    "read_conversations",
    "read_source",
    "sample",
]

"""Where text comes from: the hub, local files and the built-in corpus, as plain records.

`open_source("tinystories")` or `open_source("my/stories")` yields `Document`s one after the
other in bounded memory. Every text is valid UTF-8 with `\\n` line ends and no white space around
it; paragraph breaks inside are kept exactly.
"""

from backgpt.datasets.files import MAX_DOCUMENT_BYTES, read_conversations
from backgpt.datasets.hub import HUB_FILES, HubFile, default_cache, fetch
from backgpt.datasets.records import Conversation, Document, Tally
from backgpt.datasets.sources import NAMED_SOURCES, Source, find_source, open_source, read_source
from backgpt.datasets.stream import Split, StreamedDocument, TextStream, sample

__all__ = [
    "HUB_FILES",
    "MAX_DOCUMENT_BYTES",
    "NAMED_SOURCES",
    "Conversation",
    "Document",
    "HubFile",
    "Source",
    "Split",
    "StreamedDocument",
    "Tally",
    "TextStream",
    "default_cache",
    "fetch",
    "find_source",
    "open_source",
    "read_conversations",
    "read_source",
    "sample",
]

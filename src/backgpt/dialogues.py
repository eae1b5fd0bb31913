"""Conversations -> (inputs, targets) in model order: the rows that a chat is tuned on.

Stands in for `batches.Windows`. A row is one exchange of the chat template: what is given is read,
what is written is scored. All rows are in memory: conversations to tune on are few.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from backgpt.batches import Batch, Int64s, pad
from backgpt.chat import Exchange, Template
from backgpt.datasets.records import Conversation
from backgpt.errors import DataError
from backgpt.language import Language
from backgpt.order import ModelIds, joined


class Dialogues:
    """The exchanges of some conversations, in each language of a model.

    `shortened` and `dropped` count the rows that were too long for the context: whose given side
    was cut, and whose written side alone was too much.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        languages: Sequence[Language],
        *,
        block_size: int,
    ) -> None:
        """Make rows of at most `block_size + 1` ids. Raises DataError if none is left."""
        templates = [Template(language) for language in languages]
        self._pad_id = languages[0].tokenizer.pad_id
        self._block_size = block_size
        self._rows: list[Exchange] = []
        self.dropped = 0
        for conversation in conversations:
            for template in templates:
                for row in template.exchanges(conversation, most=block_size + 1):
                    if row is None:
                        self.dropped += 1
                    else:
                        self._rows.append(row)
        if not self._rows:
            raise DataError(
                f"no conversation fits block_size = {block_size}: {self.dropped:,} rows were too "
                "long; give shorter ones, or a longer context"
                if self.dropped
                else "there is no conversation to read: give a file with some"
            )
        self.shortened = sum(row.shortened for row in self._rows)
        self.lengths = np.array([len(row.written) for row in self._rows], dtype=np.int64)
        """(R,) int64: targets of each row."""
        self.widths = self.lengths + np.array([len(row.given) - 1 for row in self._rows])
        """(R,) int64: ids that each row reads."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def n_targets(self) -> int:
        """Targets in all rows."""
        return int(self.lengths.sum())

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the messages that are written, in all rows."""
        return sum(row.n_bytes for row in self._rows)

    @property
    def sha256(self) -> str:
        """A digest of all rows, in their order."""
        digest = hashlib.sha256()
        for row in self._rows:
            for ids in (row.given, row.written):
                digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def summary(self) -> str:
        """One line: how many rows there are, and what did not fit."""
        return (
            f"{len(self):,} rows of conversations with {self.n_targets:,} targets; "
            f"{self.shortened:,} shortened on their given side and {self.dropped:,} dropped to fit "
            f"{self._block_size:,} ids"
        )

    def sequence(self, index: int) -> ModelIds:
        """Return row `index`, (T,): what is given, then what is written."""
        row = self._rows[index]
        return ModelIds(joined(row.given, row.written))

    def batch(self, indices: Int64s, *, hints: float = 0.0, seed: Sequence[int] = ()) -> Batch:
        """Return the rows `indices`, padded on the right; no indices give one row of padding.

        Nothing is drawn: the hints of an exchange are part of it.
        """
        pairs = [(row.given, row.written) for row in (self._rows[int(i)] for i in indices)]
        return pad(pairs, block_size=self._block_size, pad_id=self._pad_id)

"""The ledger: the passages that have been learned, which is the position in the corpus that a checkpoint holds.

The stream has no fixed order, so a position cannot be a number. It is the set of passages whose training blocks have
gone into an optimizer step; a checkpoint saves it together with the weights that learned them. A run that goes on drops
these passages before any source model sees them, whole training blocks at a time (``engine.blocks.arrangement``).
"""

from __future__ import annotations

from collections.abc import Iterable


class Ledger:
    """A set of passage ids to which no passage can be added twice.

    >>> ledger = Ledger()
    >>> ledger.learn(["0/a.txt:1:0", "0/a.txt:1:1"])
    >>> "0/a.txt:1:0" in ledger, len(ledger)
    (True, 2)
    """

    def __init__(self, passage_ids: Iterable[str] = ()):
        self._learned = set(passage_ids)

    def learn(self, passage_ids: Iterable[str]) -> None:
        """Add the passages of one optimizer step.

        Raises:
            ValueError: a passage has been learned before; names it. That is a fault of the stream.
        """
        for passage_id in passage_ids:
            if passage_id in self._learned:
                raise ValueError(f"passage {passage_id!r} would be learned twice")
            self._learned.add(passage_id)

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self._learned

    def __len__(self) -> int:
        return len(self._learned)

    def passage_ids(self) -> list[str]:
        """All learned passages, sorted, for the checkpoint."""
        return sorted(self._learned)

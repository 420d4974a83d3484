"""OptionalSource: a source model that the run can go on without."""

from __future__ import annotations

import pyarrow as pa

from actors.monitor import Meter
from actors.sources.source_model import SourceModel
from engine.errors import FusionError, SourceModelError
from engine.records import without_rows
from engine.spec import SourceModelSpec


class OptionalSource:
    """A ``SourceModel`` that leaves out and reports the passages that it cannot score, and does not stop the run.

    A passage that it leaves out has no rows of this source; the others are fused without it.

    Args:
        source, top_k, meter: see ``SourceModel``.
    """

    def __init__(self, source: SourceModelSpec, top_k: int, meter: Meter):
        self._name = source.name
        self._meter = meter
        self._model: SourceModel | None = None
        self._reason = ""
        try:
            self._model = SourceModel(source, top_k, meter)
        except FusionError as error:
            self._reason = str(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``records.PASSAGE`` to the same with ``records.source_columns``, empty where the source is left out."""
        if self._model is None:
            return self._left_out(batch, self._reason)
        try:
            return self._model(batch)
        except SourceModelError as error:
            return self._left_out(batch, str(error))

    def _left_out(self, batch: pa.Table, reason: str) -> pa.Table:
        self._meter.leave_out([str(passage_id) for passage_id in batch["passage_id"]], reason)
        return without_rows(batch, self._name)

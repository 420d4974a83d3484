"""The numbers of a run's steps as arrays that grow with it: a page's totals and curves come from them.

A page is written every half minute while a run works. With the arrays it costs the same few operations on arrays each
time, where a loop over the steps of a long run would take half a minute for the domains alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.history.result import DomainTotals, SourceTotals, StepRecord
from engine.history.totals import DomainSums, domain_tables, quotients, ratio, table
from engine.spec import FusionSpec

#: Fields of a step that are kept as they are: one number, and one for each source model.
NUMBERS = (
    *("step", "loss", "lm_loss", "fusion_loss", "grad_norm", "learning_rate", "seconds", "wait_seconds"),
    *("tokens", "passages", "bytes", "repeated_bytes", "fused_rows"),
)
OF_SOURCES = ("source_nats", "source_bytes", "source_wins", "source_covered_rows", "source_left_out")

#: Steps that are taken in at once: their tables have to fit into the memory beside the run.
STEPS_AT_ONCE = 4096


class StepSeries:
    """Arrays over the steps of a run: T steps, N source models, D domains of the corpus.

    Args:
        spec: of the run.
    """

    def __init__(self, spec: FusionSpec):
        self._spec = spec
        num_sources, num_domains = len(spec.source_models), len(spec.corpus.domains)
        self._arrays = {name: np.empty(0) for name in NUMBERS}
        self._arrays |= {name: np.empty((0, num_sources)) for name in (*OF_SOURCES, "gains")}
        self._arrays["domain_gains"] = np.empty((0, num_domains, num_sources))
        self._length = 0
        self._domains = DomainSums(spec)
        self._retired: dict[str, int] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> np.ndarray:
        """A field of all steps: float64 [T] of ``NUMBERS``, [T,N] of ``OF_SOURCES``."""
        return self._arrays[name][: self._length]

    @property
    def gains(self) -> np.ndarray:
        """``totals.source_gain`` of each source model, float64 [T,N]."""
        return self["gains"]

    @property
    def domain_gains(self) -> np.ndarray:
        """``totals.source_gain`` of each source model in each domain, float64 [T,D,N]."""
        return self["domain_gains"]

    def add(self, history: Sequence[StepRecord]) -> StepSeries:
        """Add some steps, later ones than before; returns itself."""
        for start in range(0, len(history), STEPS_AT_ONCE):
            self._add(history[start : start + STEPS_AT_ONCE])
        return self

    def source_totals(self) -> tuple[SourceTotals, ...]:
        """The rates of each source model over all learned passages, in the spec's order."""
        passages = self["passages"].sum()
        rows = self["tokens"].sum() - passages  # a passage of T tokens has T-1 rows with a label
        sums = {name: np.nansum(self[name], axis=0) for name in OF_SOURCES}
        by_passage = self._spec.fusion.rule == "min_ce"
        gains = _first_and_last(self.gains)
        return tuple(
            SourceTotals(
                name=source.name,
                cross_entropy=ratio(float(sums["source_nats"][index]), float(sums["source_bytes"][index])),
                win_rate=ratio(float(sums["source_wins"][index]), float(passages)) if by_passage else math.nan,
                coverage=ratio(float(sums["source_covered_rows"][index]), float(rows)),
                left_out=int(sums["source_left_out"][index]),
                gains=(float(gains[0][index]), float(gains[1][index])),
                retired_after=self._retired.get(source.name, 0),
            )
            for index, source in enumerate(self._spec.source_models)
        )

    def domain_totals(self) -> tuple[DomainTotals, ...]:
        """The totals of each domain over all learned passages, with the sources' gains."""
        ends = [_first_and_last(self.domain_gains[:, domain]) for domain in range(self.domain_gains.shape[1])]
        return tuple(
            replace(
                totals,
                sources=tuple(
                    replace(source, gains=(float(ends[domain][0][index]), float(ends[domain][1][index])))
                    for index, source in enumerate(totals.sources)
                ),
            )
            for domain, totals in enumerate(self._domains.totals())
        )

    def _add(self, history: Sequence[StepRecord]) -> None:
        numbers = {name: table(history, name) for name in NUMBERS}
        of_sources = {name: table(history, name, len(self._spec.source_models)) for name in OF_SOURCES}
        target = quotients(numbers["lm_loss"] * (numbers["tokens"] - numbers["passages"]), numbers["bytes"])
        gains = target[:, None] - quotients(of_sources["source_nats"], of_sources["source_bytes"])
        gains[numbers["repeated_bytes"] > 0] = np.nan
        for name, rows in (numbers | of_sources | {"gains": gains}).items():
            self._append(name, rows)
        if self._spec.corpus.domains:
            self._add_domains(history)
        self._length += len(history)
        for record in history:
            for name in record.retired:
                self._retired.setdefault(name, record.step)

    def _add_domains(self, history: Sequence[StepRecord]) -> None:
        num_domains = len(self._spec.corpus.domains)
        tables = domain_tables(history, num_domains, len(self._spec.source_models))
        self._domains.add_tables(tables, history)
        # A checkpoint of before there were domains' losses has none of them.
        target = quotients(table(history, "domain_lm_nats", num_domains), tables["domain_bytes"])
        gains = target[..., None] - quotients(tables["domain_source_nats"], tables["domain_source_bytes"])
        gains[table(history, "domain_repeated_bytes", num_domains) > 0] = np.nan
        self._append("domain_gains", gains)

    def _append(self, name: str, rows: np.ndarray) -> None:
        """Add rows to an array, which grows to twice its size when it is full."""
        array, end = self._arrays[name], self._length + len(rows)
        if end > len(array):
            grown = np.empty((max(end, 2 * self._length), *rows.shape[1:]))
            grown[: self._length] = array[: self._length]
            self._arrays[name] = array = grown
        array[self._length : end] = rows


def _first_and_last(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of each source's gains over the first and the last tenth of the steps; NaN where it has none there.

    Steps after the last one in which any source has a gain do not count, such as those of further passes over the
    corpus.

    Args:
        gains: float64 [T,N].
    """
    with_gain = np.flatnonzero(np.isfinite(gains).any(axis=1))
    known = gains[: with_gain[-1] + 1] if len(with_gain) else gains
    tenth = max(1, len(known) // 10)
    first, last = (_mean(part) for part in (known[:tenth], known[-tenth:]))
    return first, last


def _mean(gains: np.ndarray) -> np.ndarray:
    is_number = np.isfinite(gains)
    return quotients(np.where(is_number, gains, 0.0).sum(axis=0), is_number.sum(axis=0))

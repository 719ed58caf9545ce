"""The weights of a model that are read while it runs."""

from __future__ import annotations

import dataclasses

from moec.runtime.row_tables import RowTables
from moec.runtime.streamed_experts import StreamedExperts


@dataclasses.dataclass(frozen=True)
class StreamedWeights:
    """Experts that are read when they are chosen, and tables whose rows are read when they are looked up; None where
    all tables are in memory."""

    experts: StreamedExperts
    tables: RowTables | None

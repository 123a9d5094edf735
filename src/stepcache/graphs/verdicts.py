"""Verdicts: how long one join takes on one GPU, on the Triton ops and as Inductor compiles it.

A verdict holds for the setup that it was measured on: the GPU by name, the versions of torch and Triton, and that of
stepcache's joins, the last release that changed them. So other releases cost nobody a measurement.
Two tables hold verdicts: one comes with the package (csrc_triton/defaults.csv), the other is the user's own
(verdict_file.py). For joins that both know, the user's own counts, because it was measured on that very machine.

No trouble with the user's file raises here: a warning says so, and this process keeps its verdicts in memory.
"""

from __future__ import annotations

import logging
import threading
from importlib.resources import files
from pathlib import Path

from ..forwards.join_shape import JoinShape
from .verdict_file import Setup, Verdict, add_to_file, cache_folder, from_csv, read

logger = logging.getLogger("stepcache")


class Verdicts:
    """The known verdicts of one setup: from the shipped table, from the user's own, and measured by this process.

    shipped: the text of a table, by default the package's. folder: of the user's table, by default `cache_folder()`.
    """

    def __init__(self, setup: Setup, shipped: str | None = None, folder: Path | None = None) -> None:
        self.setup = setup
        self.path = (cache_folder() if folder is None else folder) / "joins.csv"
        self._lock = threading.Lock()
        shipped = (files("stepcache.kernels") / "defaults.csv").read_text() if shipped is None else shipped
        self._known = {v.shape: v for v in from_csv(shipped) if v.setup == setup}
        self._known |= {v.shape: v for v in self._own() if v.setup == setup}

    def _own(self) -> list[Verdict]:
        """The user's table, with a warning if it knows this GPU for other versions only."""
        verdicts = read(self.path)
        others = {v.setup for v in verdicts if v.setup.gpu == self.setup.gpu and v.setup != self.setup}
        if others and not any(v.setup == self.setup for v in verdicts):
            versions = "; ".join(
                f"torch {o.torch}, triton {o.triton}, joins of stepcache {o.stepcache}" for o in sorted(others)
            )
            logger.warning(
                "%s knows this GPU's joins for other versions only (%s), so they are not used. warmup(pipe, ...) or "
                "`stepcache tune` measures them for torch %s, triton %s, joins of stepcache %s.",
                self.path, versions, self.setup.torch, self.setup.triton, self.setup.stepcache,
            )  # fmt: skip
        return verdicts

    def get(self, shape: JoinShape) -> Verdict | None:
        """The verdict on a join, None if it has not been measured."""
        return self._known.get(shape)

    @property
    def for_triton(self) -> frozenset[JoinShape]:
        """The joins that should run on the ops."""
        with self._lock:
            return frozenset(shape for shape, verdict in self._known.items() if verdict.for_triton)

    def add(self, verdict: Verdict) -> None:
        """Add a verdict, and write it to the user's table. Warns if that cannot be written."""
        with self._lock:
            self._known[verdict.shape] = verdict
        try:
            add_to_file(self.path, [verdict])
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s), so only this process knows which joins are faster with Triton. Set "
                "STEPCACHE_CACHE to a writable folder.", self.path, error.strerror or error,
            )  # fmt: skip

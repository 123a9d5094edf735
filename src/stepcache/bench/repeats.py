"""Repeated measurements: run in turn, and summed up as a median with percentiles."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..progress import progress

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; percentiles are interpolated between neighbours."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])

    @classmethod
    def of_ratios(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """Of `over[i] / under[i]`: speed-ups, each taken within one repeat."""
        return cls.of([a / b for a, b in zip(over, under, strict=True)])


def interleave(measured: Mapping[Key, Callable[[], Value]], repeats: int, title: str = "") -> dict[Key, list[Value]]:
    """What each function returned in each repeat. A first repeat is warm-up, and its values are dropped.

    Every repeat calls all functions, so that a machine that slows down affects all alike; each repeat starts with
    another one.
    """
    keys = list(measured)
    values: dict[Key, list[Value]] = {key: [] for key in keys}
    with progress(title, (repeats + 1) * len(keys), "runs") as bar:
        for repeat in range(repeats + 1):
            first = repeat % len(keys)
            for key in keys[first:] + keys[:first]:
                value = measured[key]()
                if repeat > 0:
                    values[key].append(value)
                bar.update()
    return values

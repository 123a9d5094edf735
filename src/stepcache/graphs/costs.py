"""What making graphs has cost so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Costs:
    """Totals over all buckets of a pipe, dropped ones included: seconds compiling and capturing, graphs captured, joins
    measured both ways.
    """

    compile_seconds: float = 0.0
    capture_seconds: float = 0.0
    captures: int = 0
    joins_measured: int = 0

"""The record of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..values import amount, bytes_in_words


@dataclass
class RunRecord:
    """What happened in one run.

    letters: one letter per U-Net call: `F` full, `P` partial, `S` stock forward (the call needed gradients, or the
    pipeline reads attention maps of every layer), `R` guidance reused: the call of the unconditional half was answered
    from that of the conditional half, and no U-Net ran (modular pipelines).
    steps: scheduler steps taken. buckets: the input shapes of the U-Net, in order of appearance: (batch, channels,
    height, width), for video with a dimension for frames.
    buffer_bytes: bytes of features held, over all buckets of the pipe and all threads that run it at the same time, as
    of the last run that has ended. static_bytes: the same for captured graphs' inputs and outputs. compile_seconds,
    captures: seconds spent compiling, and graphs captured, in this run; 0 once everything is warm. With vae=True they
    include the decoder's. joins_measured: joins that a warm-up timed both ways.
    """

    letters: list[str] = field(default_factory=list, repr=False)
    steps: int = 0
    buckets: list[tuple[int, ...]] = field(default_factory=list)
    buffer_bytes: int = 0
    static_bytes: int = 0
    compile_seconds: float = 0.0
    captures: int = 0
    joins_measured: int = 0

    @property
    def kinds(self) -> str:
        """The letters as a string, "FPPFPP" for example."""
        return "".join(self.letters)

    def __str__(self) -> str:
        sizes = ", ".join("x".join(map(str, size)) for size in self.buckets)
        held = bytes_in_words(self.buffer_bytes)
        return f"{self.kinds}: {amount(self.steps, 'step')}, sizes {sizes or 'none'}, {held} of features held"

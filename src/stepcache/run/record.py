"""What happened in a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunRecord:
    """What happened in one run.

    letters: one letter per U-Net call: `F` full, `P` partial, `S` stock forward (the call wanted gradients, or the
    pipeline reads attention maps of every layer).
    steps: scheduler steps taken. buckets: sizes met, in order: the shape of the U-Net's input, (batch, channels,
    height, width), of videos with their frames besides.
    buffer_bytes: bytes of features held at the end of the run, over all buckets of the pipe; static_bytes: the same of
    captured graphs' inputs and outputs. compile_seconds, captures: what this run spent on compiling, and how many
    graphs it captured; 0 once everything is warm. With vae=True the decoder's are among them. joins_measured: joins
    that a warm-up has timed both ways.
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
        return f"{self.kinds}: {self.steps} steps, sizes {sizes or 'none'}, {self.buffer_bytes} bytes of features held"

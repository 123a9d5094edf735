"""Microseconds of kernel launches on an H100, from what they move and issue: a model. Nothing is run.

A launch takes

    the gap before it + its start + one wait for memory + the longest of five times:
        DRAM: bytes that it writes, and those that it reads and L2 does not have
        L2: bytes that it reads and writes
        the busiest multiprocessor: instructions that its warps issue
        or clock cycles of its matrix products
        or further waits for memory, one for each round of a loop and each program that begins when another has ended

The constants describe an H100 SXM and are the same for every kernel:

- `MULTIPROCESSORS`, and what one of them holds and issues (registers, warps, programs; an instruction of a warp a cycle
  from each of 4 schedulers): NVIDIA's H100 whitepaper. `CLOCK`: below its boost clock, as under load; assumed.
- `DRAM`: what a large copy reaches of the 3.35 TB/s of the data sheet, as in `gpu_code.py`. `L2`: assumed.
- `L2_HELD`: half of the 50 MB. L2 is two halves, and each keeps a copy of what its multiprocessors read.
- `GAP_US`: between two kernels of a CUDA graph. `START_CYCLES`, `DRAM_CYCLES` and `L2_CYCLES`: until a program runs,
  and the latency of a load. Assumed.
- `ISSUED`: of the 4 instructions a cycle, the 80 % that code with many warps reaches. `WARP_CYCLES`: a warp waits so
  long between two instructions, so few warps issue fewer. Assumed.

A tensor that an earlier launch of the chain has read or written is found in L2 as if L2 replaced at random: of it
`L2_HELD` / (bytes that were moved since, that launch included), at most all. Anything else comes from DRAM.

Left out: waits of threads for each other, instructions that cannot overlap with loads, sectors read in part or twice,
what programs read in common more than once, conflicts in shared memory, the special function units, clocks that drop
under load. This should be good to 25 or 30 %, and for small joins less. No constant was fitted to a measurement of
these kernels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.engine.gpu_code_counts import BANDWIDTH

MULTIPROCESSORS = 132
CLOCK = 1.755e9  # cycles a second
DRAM = BANDWIDTH  # bytes a second
L2 = 5.5e12  # bytes a second
L2_HELD = 25e6  # bytes
GAP_US = 1.2
START_CYCLES = 200
DRAM_CYCLES = 1000
L2_CYCLES = 350
ISSUED = 0.8 * 4  # instructions of warps, a cycle and multiprocessor
WARP_CYCLES = 3.6
REGISTERS = 65536  # of a multiprocessor
WARPS, PROGRAMS = 64, 32  # that a multiprocessor holds


@dataclass(frozen=True)
class Work:
    """What the model knows of one launch."""

    read: Mapping[Hashable, int]
    """Bytes of each tensor that it reads. Whatever names a tensor, it is the same in all launches of a chain."""
    written: Mapping[Hashable, int]
    programs: int = 1
    warps: int = 4
    """Of a program."""
    registers: int = 32
    """Of a thread."""
    instructions: float = 0.0
    """That each warp of a program issues."""
    waits: float = 1.0
    """Of a program for memory, one after the other."""
    product_cycles: float = 0.0
    """Of matrix products, on the busiest multiprocessor."""
    name: str = field(default="", compare=False)

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(self.read.values()) + sum(self.written.values())


def most_programs(work: Work) -> tuple[int, int]:
    """How many programs the multiprocessor with the most of them has, and how many of these it holds at once."""
    most = math.ceil(work.programs / MULTIPROCESSORS)
    fitting = min(WARPS // work.warps, REGISTERS // (32 * work.warps * work.registers), PROGRAMS)
    return most, min(max(fitting, 1), most)


def issue_cycles(work: Work) -> float:
    """Cycles in which the multiprocessor with the most programs issues all of their instructions."""
    most, at_once = most_programs(work)
    return most * work.warps * work.instructions / min(at_once * work.warps / WARP_CYCLES, ISSUED)


def launch_us(work: Work, missed: float) -> float:
    """One launch, of which L2 does not have `missed` bytes."""
    most, at_once = most_programs(work)
    wait = DRAM_CYCLES if missed else L2_CYCLES
    waits = (math.ceil(most / at_once) * work.waits - 1) * wait
    dram = (missed + sum(work.written.values())) / DRAM
    busiest = max(issue_cycles(work), work.product_cycles, waits) / CLOCK
    return GAP_US + 1e6 * ((START_CYCLES + wait) / CLOCK + max(dram, work.bytes / L2, busiest))


def chain_us(works: Sequence[Work]) -> list[float]:
    """Launches that follow each other, the first of which finds nothing in L2."""
    times = []
    for i, work in enumerate(works):
        missed = sum(size * (1 - _found(name, works[:i])) for name, size in work.read.items())
        times.append(launch_us(work, missed))
    return times


def copy_us(nbytes: float) -> float:
    """A copy that reads half of so many bytes and writes the other half."""
    return launch_us(Work({}, {"to": int(nbytes / 2)}), nbytes / 2)


def _found(name: Hashable, before: Sequence[Work]) -> float:
    """The share of a tensor that L2 has after the launches `before`."""
    moved = 0
    for work in reversed(before):
        moved += work.bytes
        if name in work.read or name in work.written:
            return min(1.0, L2_HELD / moved)
    return 0.0

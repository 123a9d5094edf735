"""A model of the microseconds that kernel launches take on an H100, from what they move and issue. Nothing is run.

A launch takes

    the gap before it + its start + one wait for memory + the longest of five times:
        DRAM: bytes that it writes, and bytes that it reads and that are not in L2
        L2: bytes that it reads and writes
        the busiest multiprocessor: instructions that its warps issue
        or clock cycles of its matrix products
        or further waits for memory, one for each round of a loop and for each program that starts when another ends

The constants describe an H100 SXM and are the same for every kernel:

- `MULTIPROCESSORS`, and what one of them holds and issues (registers, warps, programs; one warp instruction per cycle
  from each of 4 schedulers): NVIDIA's H100 whitepaper. `CLOCK`: below the boost clock, as under load; assumed.
- `DRAM`: what a large copy reaches of the data sheet's 3.35 TB/s, as in `engine/gpu_code.py`. `L2`: assumed.
- `L2_HELD`: half of the 50 MB. L2 has two halves, and each keeps a copy of what its multiprocessors read.
- `GAP_US`: between two kernels of a CUDA graph. `START_CYCLES`, `DRAM_CYCLES` and `L2_CYCLES`: until a program runs,
  and the latency of a load. Assumed.
- `ISSUED`: code with many warps issues 80 % of the 4 instructions per cycle. `WARP_CYCLES`: how long a warp waits
  between two instructions, so that few warps issue less. Assumed.

If an earlier launch of the chain has read or written a tensor, L2 still has a share of it, as if it replaced at random:
`L2_HELD` / (bytes moved since, including that launch), at most 1. Everything else comes from DRAM.

Left out: waits of threads for each other, instructions that cannot overlap with loads, sectors read in part or twice,
repeated reads of what programs share, conflicts in shared memory, the special function units, clocks that drop under
load. The model should be good to 25 or 30 %, and less for small joins. No constant was fitted to a measurement of these
kernels.
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
ISSUED = 0.8 * 4  # warp instructions per cycle and multiprocessor
WARP_CYCLES = 3.6
REGISTERS = 65536  # per multiprocessor
WARPS, PROGRAMS = 64, 32  # per multiprocessor


@dataclass(frozen=True)
class Work:
    """What the model knows about one launch."""

    read: Mapping[Hashable, int]
    """Bytes of each tensor that it reads. A tensor has the same key in all launches of a chain."""
    written: Mapping[Hashable, int]
    programs: int = 1
    warps: int = 4
    """Per program."""
    registers: int = 32
    """Per thread."""
    instructions: float = 0.0
    """Issued by each warp of a program."""
    waits: float = 1.0
    """Successive waits of a program for memory."""
    product_cycles: float = 0.0
    """Cycles of matrix products on the busiest multiprocessor."""
    name: str = field(default="", compare=False)

    @property
    def bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


def most_programs(work: Work) -> tuple[int, int]:
    """The number of programs of the busiest multiprocessor, and how many of them it holds at once."""
    most = math.ceil(work.programs / MULTIPROCESSORS)
    fitting = min(WARPS // work.warps, REGISTERS // (32 * work.warps * work.registers), PROGRAMS)
    return most, min(max(fitting, 1), most)


def issue_cycles(work: Work) -> float:
    """Cycles in which the busiest multiprocessor issues the instructions of all its programs."""
    most, at_once = most_programs(work)
    return most * work.warps * work.instructions / min(at_once * work.warps / WARP_CYCLES, ISSUED)


def launch_us(work: Work, missed: float) -> float:
    """The time of one launch that reads `missed` bytes from DRAM."""
    most, at_once = most_programs(work)
    wait = DRAM_CYCLES if missed else L2_CYCLES
    waits = (math.ceil(most / at_once) * work.waits - 1) * wait
    dram = (missed + sum(work.written.values())) / DRAM
    busiest = max(issue_cycles(work), work.product_cycles, waits) / CLOCK
    return GAP_US + 1e6 * ((START_CYCLES + wait) / CLOCK + max(dram, work.bytes / L2, busiest))


def chain_us(works: Sequence[Work]) -> list[float]:
    """The times of successive launches. The first finds nothing in L2."""
    times = []
    for i, work in enumerate(works):
        missed = sum(size * (1 - _found(name, works[:i])) for name, size in work.read.items())
        times.append(launch_us(work, missed))
    return times


def copy_us(nbytes: float) -> float:
    """The time of a copy that reads and writes `nbytes` in total."""
    return launch_us(Work({}, {"to": int(nbytes / 2)}), nbytes / 2)


def _found(name: Hashable, before: Sequence[Work]) -> float:
    """The share of a tensor that is in L2 after the launches `before`."""
    moved = 0
    for work in reversed(before):
        moved += work.bytes
        if name in work.read or name in work.written:
            return min(1.0, L2_HELD / moved)
    return 0.0

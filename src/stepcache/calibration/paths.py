"""The cheapest way through a run's steps: a path of segments from full step to full step.

A segment (a, b) has full steps a and b, and partial ones between. Sources: the sum of costs as in DPCache, and the
lexicographic minimax path as in LeMiCa, written from their descriptions.
"""

from __future__ import annotations

from collections.abc import Callable

Segment = tuple[int, int]

Cost = Callable[[int, int], float]
"""The cost of the segment from full step a to b, at least 0; of one without partial steps, 0. b may be the end."""


def cheapest(steps: int, full: int, longest: int, cost: Cost, minimax: bool = False) -> tuple[Segment, ...]:
    """The path of `full` segments from 0 to `steps`, each of at most `longest` steps, with the lowest costs.

    The lowest sum; or with `minimax` the path whose most expensive segment is the cheapest, then its second one, and so
    on. The first found of equal ones. full * longest must be at least `steps`, and full at most `steps`.
    """
    if not full <= steps <= full * longest:
        raise ValueError(f"{full} segments of 1 to {longest} steps cannot fill {steps} steps")
    # By the end of a path and the number of its segments. A path that is best has a best beginning in both orders:
    # to put the same cost into two lists sorted downwards does not change which of them comes first.
    best: dict[Segment, tuple[tuple[float, ...], tuple[Segment, ...]]] = {(0, 0): ((), ())}
    for b in range(1, steps + 1):
        for n in range(1, min(full, b) + 1):
            found = []
            for a in range(max(0, b - longest), b):
                if (a, n - 1) not in best:
                    continue
                costs, path = best[a, n - 1]
                new = 0.0 if b == a + 1 else cost(a, b)
                order = tuple(sorted((*costs, new), reverse=True)) if minimax else (sum(costs) + new,)
                found.append((order, (*path, (a, b))))
            if found:
                best[b, n] = min(found, key=lambda each: each[0])
    return best[steps, full][1]


def mask_of(path: tuple[Segment, ...]) -> str:
    """The mask whose full steps are where the segments begin."""
    return "".join("F" + "P" * (b - a - 1) for a, b in path)


def segments_of(mask: str) -> list[Segment]:
    """The segments of a mask that have partial steps."""
    full = [step for step, letter in enumerate(mask) if letter == "F"]
    return [(a, b) for a, b in zip(full, [*full[1:], len(mask)], strict=True) if b > a + 1]

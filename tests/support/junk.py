"""Values that no argument means, some of them hostile, for tests of what takes any object at all."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st


class Hostile:
    """Every question raises."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __eq__ = __bool__ = __index__ = __str__ = __hash__ = __len__ = __iter__ = __float__ = __repr__


class HostileWord(str):
    """A str that does not want to be compared."""

    __eq__ = __hash__ = __str__ = __repr__ = Hostile.__repr__


class HostileFloat(float):
    __float__ = __le__ = __ge__ = __eq__ = __hash__ = Hostile.__repr__


class HostileDict(dict):
    items = keys = get = __iter__ = __len__ = __repr__ = Hostile.__repr__


class HostileKey:
    """It takes the place of "mode" in a dict, and does not want to be compared."""

    __eq__ = __repr__ = Hostile.__repr__

    def __hash__(self):
        return hash("mode")


class HostilePath:
    """A path that fails to say which."""

    __fspath__ = Hostile.__repr__


class Closed:
    """No attribute can be read, not even the class."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


class Attributes:
    """Attributes that are missing raise what hasattr does not catch."""

    def __getattr__(self, name):
        raise RuntimeError(name)


def within_itself():
    """A list that holds itself twice over, so that whoever walks it never comes to an end."""
    value: list = []
    value += [value, value, {"inside": value}]
    return value


BIG = 10**5000
"""Python does not even print it."""

MAKERS = (
    Hostile, Closed, Attributes, HostileDict, HostilePath, within_itself, object,
    lambda: Hostile, lambda: {"mode": HostileWord("default")}, lambda: {HostileKey(): 1},
    lambda: HostileWord("x"), lambda: HostileWord("both"), lambda: HostileFloat(0.5),
    lambda: HostileDict(mode="default"), lambda: [Hostile()], lambda: {"mode": Closed()},
    lambda: {"backend": Hostile()},
    lambda: {Hostile: 1, 3: 2, "x": 3}, lambda: {"options": within_itself()},
    lambda: {"options": {"max_autotune": Hostile()}}, lambda: {"options": {"epilogue_fusion": within_itself()}},
    lambda: {"x": "x" * 10**6},
    lambda: np.zeros(2), lambda: np.array("both"), lambda: np.array(["both", "auto"]), lambda: np.bool_(True),
    lambda: np.float32(0.5), lambda: np.array(Hostile()), lambda: torch.ones(2, 2), lambda: torch.tensor(True),
    lambda: torch.tensor(1.5), lambda: torch.zeros(1, device="meta"), lambda: print, lambda: (i for i in range(3)),
    lambda: BIG, lambda: -BIG, lambda: 10**12, lambda: "x" * 10**6, lambda: "\ud800", lambda: "a\0b", lambda: b"both",
    lambda: bytearray(3), lambda: {1, 2}, lambda: frozenset(), lambda: complex(1, 2), lambda: Ellipsis,
)  # fmt: skip

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(), st.text(max_size=6), st.binary(max_size=4),
    st.sampled_from([0.5, 1e308, -0.0, float("nan"), float("inf"), -float("inf"), "", "auto", "both", "reuse"]),
)  # fmt: skip
"""Floats from a list: with denormals flushed hypothesis makes none."""


@dataclass(frozen=True)
class Junk:
    """What `built` makes: hypothesis asks the values that it draws for their class, hash and repr."""

    maker: int


def built(value):
    """A drawn value with its `Junk` in it made."""
    if isinstance(value, Junk):
        return MAKERS[value.maker]()
    if isinstance(value, (list, tuple)):
        return type(value)(map(built, value))
    if isinstance(value, dict):
        return {key: built(inner) for key, inner in value.items()}
    return value


JUNK = st.recursive(
    PLAIN | st.builds(Junk, st.sampled_from(range(len(MAKERS)))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=4,
)
"""To be `built`."""

"""Values of which nothing is taken for granted."""

import time

import numpy as np
import pytest
import torch

from stepcache.errors import InvalidSetting
from stepcache.values import as_int, is_one_of, positive_int, shown


class Hostile:
    """Every question raises."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __eq__ = __bool__ = __index__ = __str__ = __hash__ = __len__ = __iter__ = __repr__


JUNK = [None, True, 2.5, "3", b"3", [3], (), {}, Hostile(), Hostile, np.zeros(3), torch.zeros(2, 2), np.bool_(True)]
JUNK += [torch.tensor(True), torch.tensor([3]), float("nan"), lambda: 3, "x" * 10**7, 10**6 * [0]]


@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_what_is_no_int_is_refused_at_once(value):
    start = time.perf_counter()
    assert as_int(value) is None
    with pytest.raises(InvalidSetting) as caught:
        positive_int("interval", value)
    assert time.perf_counter() - start < 0.1 and len(str(caught.value)) < 300
    assert not is_one_of(value, ("both", "reuse"))


def test_ints():
    assert [as_int(value) for value in (3, np.int64(3), torch.tensor(3))] == [3, 3, 3]
    assert positive_int("n", 0, at_least=0) == 0
    with pytest.raises(InvalidSetting, match=r"^n must be an integer of at least 1, got 0. Take 3.$"):
        positive_int("n", 0, hint="Take 3.")
    with pytest.raises(InvalidSetting, match="got an integer of 33220 bits"):
        positive_int("n", -(10**10000))
    assert is_one_of("both", ("both", "reuse"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (True, "True"), (2.5, "2.5"),
        ("a'b", '"a\'b"'), (b"x", "b'x'"), (b"x" * 50, f"{b'x' * 40!r}..."),
        ({"mode": "x"}, "{'mode': 'x'}"), ([1, [2, [3]]], "[1, [2, [...]]]"), ((1,), "(1,)"),
        (np.float64(2.5), "np.float64(2.5)"), (np.zeros((2, 3)), "a ndarray of shape (2, 3)"),
        (torch.zeros(2), "a Tensor of shape (2,)"), (torch.zeros(()), "a Tensor"), (Hostile(), "a Hostile"),
        ([Hostile()], "[a Hostile]"), (int, "a type"),
    ],
)  # fmt: skip
def test_how_values_are_shown(value, text):
    assert shown(value) == text


def test_long_values_are_cut():
    assert len(shown("x" * 10**6)) <= 80 and len(shown([["x" * 100] * 100] * 100)) < 4000

"""Values of which nothing is taken for granted."""

import time

import numpy as np
import pytest
import torch
from support.junk import Closed, Hostile, HostileDict, HostileFloat, HostileWord

from stepcache.errors import InvalidSetting
from stepcache.values import (
    amount,
    as_int,
    as_items,
    as_number,
    as_word,
    bytes_in_words,
    is_a,
    is_one_of,
    positive_int,
    reason_of,
    shown,
    true_or_false,
)

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


def test_objects_that_cannot_be_asked():
    value = Closed()  # pytest asks its parameters
    assert as_int(value) is as_number(value) is as_word(value) is as_items(value) is None and shown(value) == "a Closed"


def test_ints():
    assert [as_int(value) for value in (3, np.int64(3), torch.tensor(3))] == [3, 3, 3]
    assert positive_int("n", 0, at_least=0) == 0
    with pytest.raises(InvalidSetting, match=r"^n must be an integer of at least 1, got 0. Take 3.$"):
        positive_int("n", 0, hint="Take 3.")
    with pytest.raises(InvalidSetting, match="got an integer of 33220 bits"):
        positive_int("n", -(10**10000))
    with pytest.raises(InvalidSetting, match=r"^n must be an integer from 1 to 5, got 6.$"):
        positive_int("n", 6, at_most=5)
    with pytest.raises(InvalidSetting, match=r"from 1 to 9223372036854775807, got an integer of 33220 bits"):
        positive_int("n", 10**10000)


def test_words():
    assert is_one_of("both", ("both", "reuse")) and is_one_of(HostileWord("both"), ("both", "reuse"))
    assert type(as_word(HostileWord("both"))) is str and as_word(b"both") is None


@pytest.mark.parametrize("value", [3, 3.0, np.float64(3), np.float32(3), np.int8(3), torch.tensor(3)])
def test_numbers(value):
    assert as_number(value) == 3.0 and type(as_number(value)) is float


@pytest.mark.parametrize(
    "value", [True, "3", None, float("nan"), 10**400, np.zeros(1), torch.tensor(3.0), HostileFloat(3)]
)
def test_what_is_no_number(value):
    assert as_number(value) is None


def test_items_and_truth():
    assert as_items(HostileDict(a=1)) == [("a", 1)] and as_items([("a", 1)]) is None
    assert true_or_false("vae", True) is True
    for value in (1, None, np.bool_(True), torch.tensor(True), Hostile(), Closed()):
        with pytest.raises(InvalidSetting, match=r"^vae must be True or False, got .*\. Leave it False\.$"):
            true_or_false("vae", value, "Leave it False.")


def test_classes_are_asked_and_not_objects():
    assert is_a(True, int) and is_a("x", int, str) and not is_a(Closed(), str) and is_a(Closed(), Closed)


def test_messages_of_errors_that_are_not_ours():
    assert reason_of(ValueError("no")) == "no" and reason_of(ValueError()) == "ValueError"
    assert reason_of(KeyError(Hostile())) == "KeyError" and len(reason_of(ValueError("x" * 10**6))) == 1003


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (True, "True"), (2.5, "2.5"),
        ("a'b", '"a\'b"'), (b"x", "b'x'"), (b"x" * 50, f"{b'x' * 40!r}..."),
        ({"mode": "x"}, "{'mode': 'x'}"), ({}, "{}"),
        ({3: 1, "x": 2, 1: 3, 2: 4, 4: 5}, "{3: 1, 'x': 2, 1: 3, 2: 4, ...}"),
        (np.zeros(()), "a ndarray"), (np.array(Hostile()), "a ndarray"), (HostileWord("x"), "a HostileWord"),
        (HostileDict(a=1), "a HostileDict"), ({1: {2: {3: 4}}}, "{1: {2: {...}}}"),
        ([1, [2, [3]]], "[1, [2, [...]]]"), ((1,), "(1,)"),
        (np.float64(2.5), "np.float64(2.5)"), (np.zeros((2, 3)), "a ndarray of shape (2, 3)"),
        (torch.zeros(2), "a Tensor of shape (2,)"), (torch.zeros(()), "a Tensor"), (Hostile(), "a Hostile"),
        ([Hostile()], "[a Hostile]"), (int, "a type"),
    ],
)  # fmt: skip
def test_how_values_are_shown(value, text):
    assert shown(value) == text


def test_long_values_are_cut():
    assert len(shown("x" * 10**6)) <= 80 and len(shown([["x" * 100] * 100] * 100)) < 4000


def test_amounts_and_bytes_in_words():
    assert [amount(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    sizes = (0, 1, 1023, 1024, 2560, 2**20 - 1, 5 * 2**20, 3 * 2**30)
    words = ["0 bytes", "1 byte", "1023 bytes", "1.0 KiB", "2.5 KiB", "1024.0 KiB", "5.0 MiB", "3.0 GiB"]
    assert [bytes_in_words(size) for size in sizes] == words

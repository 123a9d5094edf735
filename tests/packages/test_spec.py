"""Inputs as JSON and without contents."""

import json

import pytest
import torch

from stepcache.forwards.blend import Blend
from stepcache.forwards.nested import tensors_of
from stepcache.packages.spec import kept_without_contents, shapes, spec_of, strides_of, without_contents
from stepcache.packages.state import NotPackaged

INPUTS = {
    "sample": torch.ones(2, 4, 8, 8).to(memory_format=torch.channels_last),
    "timestep": torch.ones(1).expand(2),
    "added": {"ids": torch.ones(2, 6, dtype=torch.float16), "names": ["a", None, 1.5, True]},
    "list": [torch.ones(3, 2).t()],
}


def test_specs_are_json_and_give_strides_in_order():
    spec = spec_of(INPUTS)
    assert json.loads(json.dumps(spec)) == spec
    assert spec["added"]["names"] == ["a", None, 1.5, True]
    assert strides_of(spec) == [(256, 1, 32, 4), (1,), (6, 1), (1, 2)]
    assert "strides" not in json.dumps(shapes(spec)) and shapes(spec) == shapes(spec_of(INPUTS))


def test_an_expanded_input_counts_as_its_contiguous_copy():
    """Captured graphs keep such a copy."""
    assert spec_of(INPUTS)["timestep"]["strides"] == [1]
    assert without_contents(INPUTS)["timestep"].stride() == (1,)


def test_without_contents_nothing_but_contents_is_lost():
    empty = without_contents(INPUTS)
    assert all(tensor.is_meta for tensor in tensors_of(empty))
    assert spec_of(empty) == spec_of(INPUTS)
    blend = Blend((torch.ones(1, 2), torch.ones(1, 2)), torch.ones(2))
    kept = kept_without_contents((blend, torch.ones(3)))
    assert isinstance(kept[0], Blend) and kept[1].is_meta
    assert spec_of(kept) == spec_of((blend, torch.ones(3)))
    assert spec_of(kept) != spec_of((*blend.buffers, blend.weights, torch.ones(3)))


def test_other_shapes_dtypes_values_and_orders_differ():
    spec = spec_of(INPUTS)
    for name, value in {"sample": torch.ones(2, 4, 8, 9), "timestep": torch.ones(2).half(), "list": []}.items():
        assert repr(shapes(spec_of({**INPUTS, name: value}))) != repr(shapes(spec))
    assert repr(spec_of({"b": 1, "a": 2})) != repr(spec_of({"a": 2, "b": 1}))


def test_what_json_does_not_hold_is_refused():
    with pytest.raises(NotPackaged, match="object"):
        spec_of({"a": object()})

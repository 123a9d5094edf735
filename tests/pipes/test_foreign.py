"""State beside the U-Net that code on it reads: captured graphs are made again when it changes."""

import functools
import logging
import types

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from support.small import ATTENDED, captured, loop_pipe, make_inputs

from stepcache import accelerate, denoising, last_run
from stepcache.pipes.foreign import State, foreign_code

STRENGTH = 1.0
settings = types.ModuleType("my_settings")
settings.strength = 1.0


class Side:
    """An adapter's layer beside the U-Net, as LyCORIS has them."""

    strength = 1.0

    def __init__(self, layer):
        self.stock, self.multiplier, self.options = layer.forward, 1.0, {"scale": [1.0]}
        layer.forward = self.forward

    def forward(self, x):
        return self.stock(x) * self.multiplier * self.options["scale"][0] * type(self).strength


class ReadsAGlobal(AttnProcessor):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * STRENGTH


class ReadsAModule(AttnProcessor):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * self.strength()

    def strength(self):
        return settings.strength


def closed_over(layer):
    """A layer's forward that reads a variable of the function around it; returns what sets the variable."""
    strength, stock = 1.0, layer.forward

    def forward(x):
        return stock(x) * strength

    def put(value):
        nonlocal strength
        strength = value

    layer.forward = forward
    return put


@pytest.fixture
def pipe():
    return loop_pipe("least", **ATTENDED)


def attention_of(pipe):
    return pipe.unet.up_blocks[0].attentions[-1].transformer_blocks[0].attn1


def adapter(name, pipe, monkeypatch):
    """Put one onto the U-Net; returns what sets its strength."""
    attention = attention_of(pipe)
    layer = attention.to_q
    if name in ("attribute", "nested entry", "class attribute", "hook", "partial"):
        side = Side(layer)
        if name == "hook":
            layer.forward = side.stock
            layer.register_forward_hook(functools.partial(lambda side, *_, output: None, side, output=None))
            return None
        if name == "partial":
            layer.forward = functools.partial(lambda side, x: side.forward(x), side)
        if name == "nested entry":
            return lambda value: side.options["scale"].__setitem__(0, value)
        if name == "class attribute":
            return lambda value: monkeypatch.setattr(Side, "strength", value)
        return lambda value: setattr(side, "multiplier", value)
    if name == "closure":
        return closed_over(layer)
    if name == "global":
        attention.processor = ReadsAGlobal()
        return lambda value: monkeypatch.setitem(globals(), "STRENGTH", value)
    attention.processor = ReadsAModule()
    return lambda value: monkeypatch.setattr(settings, "strength", value)


@pytest.mark.parametrize(
    "name", ["attribute", "nested entry", "class attribute", "partial", "closure", "global", "module"]
)
def test_a_changed_strength_shows_in_captured_images(name, pipe, monkeypatch, caplog):
    put = adapter(name, pipe, monkeypatch)
    want = {}
    accelerate(pipe, 3)
    for value in (1.0, 0.2):
        put(value)
        want[value] = pipe(6)
    assert not torch.equal(*want.values())
    captured(pipe, 3)
    for value, captures in ((1.0, 2), (1.0, 0), (0.2, 2), (0.2, 0), (1.0, 2)):
        put(value)
        assert torch.equal(pipe(6), want[value])
        assert last_run(pipe).captures == captures and last_run(pipe).kinds == "FPPFPP"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_plain_unet_has_no_foreign_code(pipe):
    assert foreign_code(pipe.unet.modules()) == []
    pipe.unet.add_adapter(_lora())
    accelerate(pipe, 3)(2)
    assert foreign_code(pipe.unet.modules()) == []


def _lora():
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["to_q"])


def test_what_is_found_is_bounded_and_ends():
    class Node:
        pass

    root = Node()
    root.self, root.many, root.long = root, [Node() for _ in range(900)], list(range(10**6))
    last = root
    for _ in range(3000):  # beyond Python's recursion limit
        last.next = last = Node()

    def code():
        return root

    state = State([code])
    before = state.values()
    assert len(before) < 2000 and state.holds(before) and not any(value == root.long for value in before)
    root.new = 1
    assert not state.holds(before)


def test_tensors_are_compared_without_reading_them():
    """On a GPU, reading one waits for it."""
    held = {"scale": torch.ones((), device="meta"), "map": [torch.ones(3)]}
    state = State([lambda: held])
    before = state.values()
    assert state.holds(before)
    held["map"].append(torch.ones(3))
    assert not state.holds(before)
    held["map"].pop()
    assert state.holds(before)
    held["scale"] = torch.ones((), device="meta")
    assert not state.holds(before)


class ReferenceAttention(AttnProcessor):
    """As in Zero123++: a first U-Net call keeps hidden states in a dict of the caller's, a second one reads them."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __call__(self, attn, hidden_states, *args, mode="", ref_dict=None, **kwargs):
        if mode == "write":
            ref_dict[self.name] = hidden_states
        elif mode == "read":
            hidden_states = hidden_states + 0.3 * ref_dict.pop(self.name)
        return super().__call__(attn, hidden_states, *args, **kwargs)


def test_a_dict_that_processors_write_to(pipe, caplog):
    pipe.unet.set_attn_processor({name: ReferenceAttention(name) for name in pipe.unet.attn_processors})
    inputs = make_inputs(pipe.unet)
    text = inputs["encoder_hidden_states"]

    def run():
        latents = inputs["sample"]
        pipe.scheduler.set_timesteps(5)
        with torch.no_grad(), denoising(pipe):
            for t in pipe.scheduler.timesteps:
                ref_dict = {}
                for mode in ("write", "read"):
                    options = {"mode": mode, "ref_dict": ref_dict}
                    noise = pipe.unet(latents, t, text, cross_attention_kwargs=options).sample
                assert ref_dict == {}
                latents = pipe.scheduler.step(noise, t, latents).prev_sample
        return latents

    accelerate(pipe, 3)
    want = run()
    assert last_run(pipe).kinds == "FFPPPPFFPP"
    captured(pipe, 3)
    for _ in range(2):
        assert torch.equal(run(), want)
        assert last_run(pipe).kinds == "FFPPPPFFPP" and last_run(pipe).captures == 0
    assert caplog.text.count("cross_attention_kwargs['ref_dict'] may be written to") == 1

"""Controllers that count the calls of attention layers: their runs are the original's."""

import gc
import types
import weakref

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from support.small import captured, loop_pipe

from stepcache import accelerate, last_run


class Controller:
    """As in Prompt-to-Prompt and MasaCtrl: counts layers and steps, and edits one layer in some steps."""

    def __init__(self, layers):
        self.layers, self.layer, self.step = layers, 0, 0

    def __call__(self, hidden):
        self.layer += 1
        edit = self.step >= 2 and self.layer == 3
        if self.layer == self.layers:
            self.layer, self.step = 0, self.step + 1
        return 1.5 * hidden if edit else hidden


class LayerCounter(Controller):
    """Counts layers only: after a whole call it is as before."""

    def __call__(self, hidden):
        self.layer = (self.layer + 1) % self.layers
        return 1.5 * hidden if self.layer == 3 else hidden


class Counting(AttnProcessor):
    def __init__(self, controller):
        super().__init__()
        self.controller = controller

    def __call__(self, *args, **kwargs):
        return self.controller(super().__call__(*args, **kwargs))


class CountingModule(torch.nn.Module):
    """A processor that is a module, as forks of IP-Adapter have them."""

    def __init__(self, controller):
        super().__init__()
        self.processor, self.calls = Counting(controller), 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.processor(*args, **kwargs)


def attentions(unet):
    return [module for module in unet.modules() if type(module).__name__ == "Attention"]


def by_forward(unet, controller):
    for attention in attentions(unet):

        def forward(*args, attention=attention, **kwargs):
            return controller(type(attention).forward(attention, *args, **kwargs))

        attention.forward = forward


def by_hook(unet, controller):
    for attention in attentions(unet):
        attention._forward_hooks.clear()
        attention.register_forward_hook(lambda module, args, output: controller(output))


def by_processor(unet, controller):
    unet.set_attn_processor(Counting(controller))


def by_module(unet, controller):
    unet.set_attn_processor({name: CountingModule(controller) for name in unet.attn_processors})


def by_method(unet, controller):
    for attention in attentions(unet):

        def forward(self, *args, **kwargs):
            self.calls = getattr(self, "calls", 0) + 1
            return controller(type(self).forward(self, *args, **kwargs))

        attention.forward = types.MethodType(forward, attention)


@pytest.fixture(params=["eager", "captured"])
def put_on(request):
    return accelerate if request.param == "eager" else captured


@pytest.mark.parametrize(
    ("put_on", "put", "kind"),
    [
        (accelerate, by_forward, Controller),
        (accelerate, by_method, LayerCounter),
        (accelerate, by_hook, LayerCounter),
        (accelerate, by_processor, Controller),
        (accelerate, by_module, Controller),
        (captured, by_hook, Controller),
        (captured, by_processor, LayerCounter),
    ],
)
def test_a_controller_edits_what_it_edits_in_the_original(put_on, put, kind, caplog):
    pipe = loop_pipe("least")
    count = len(attentions(pipe.unet))
    assert count >= 4

    def run():
        controller = kind(count)
        put(pipe.unet, controller)
        result = pipe(4)
        return result, controller.step, controller.layer

    plain = pipe(4)
    want, *counts = run()
    assert not torch.equal(want, plain)
    put_on(pipe, 3)
    for _ in range(2):  # each run with a controller of its own
        got, *found = run()
        assert torch.equal(got, want) and found == counts
        assert last_run(pipe).kinds == "FFSS" and last_run(pipe).captures == 0
    assert caplog.text.count("may count them") == 1
    # The same controller again is known.
    pipe(4)
    assert last_run(pipe).kinds == "SSSS"


def test_code_that_only_prepares_itself_does_not_count(put_on, caplog):
    class Lazy(AttnProcessor):
        table = None

        def __call__(self, *args, **kwargs):
            if self.table is None:
                self.table = torch.ones(())
            return super().__call__(*args, **kwargs) * self.table

    pipe = put_on(loop_pipe("least"), 3)
    pipe.unet.set_attn_processor(AttnProcessor())
    want = pipe(7)
    pipe.unet.set_attn_processor(Lazy())
    pipe(7)
    assert last_run(pipe).kinds == "FFPFPPF"  # the second call is watched too
    assert torch.equal(pipe(7), want)
    assert last_run(pipe).kinds == "FPPFPPF"
    assert not caplog.text


def test_a_controller_that_was_off_at_first():
    class Switched(Controller):
        active = False

        def __call__(self, hidden):
            return super().__call__(hidden) if self.active else hidden

    pipe = loop_pipe("least")
    controller = Switched(len(attentions(pipe.unet)))
    by_forward(pipe.unet, controller)
    accelerate(pipe, 3)
    for active, kinds in ((False, "FPPF"), (True, "FFSS"), (False, "SSSS")):
        controller.active = active
        pipe(4)
        assert last_run(pipe).kinds == kinds


def test_attention_maps_that_are_only_stored_do_not_count():
    """IP-Adapter's own processors keep one, for whoever draws it."""

    class Storing(AttnProcessor):
        attn_map = None

        def __call__(self, attn, hidden_states, *args, **kwargs):
            self.attn_map = hidden_states.mean()
            return super().__call__(attn, hidden_states, *args, **kwargs)

    pipe = accelerate(loop_pipe("least"), 3)
    pipe.unet.set_attn_processor({name: Storing() for name in pipe.unet.attn_processors})
    pipe(4)
    assert last_run(pipe).kinds == "FPPF"


def test_nothing_is_watched_twice_and_nothing_kept_alive(put_on):
    pipe = put_on(loop_pipe("least"), 3)
    controller = Controller(10**9)
    by_hook(pipe.unet, controller)
    pipe(4)
    assert last_run(pipe).kinds == "FFSS"
    ref = weakref.ref(controller)
    for attention in attentions(pipe.unet):
        attention._forward_hooks.clear()
    pipe(4)
    assert last_run(pipe).kinds == "FPPF"
    del controller, attention
    gc.collect()
    assert ref() is None

"""accelerate(..., vae=True) on pipelines: images, copies, threads, restore, and what is refused."""

import copy
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch
from support.small import demo_pipe, engine_of, generate, loop_pipe, own_demo, sdxl_pipe, tiny_pipe
from support.vaes import make_latents, make_vae
from torch import nn

from stepcache import accelerate, denoising, last_run, restore, warmup
from stepcache.errors import AlreadyCached, InvalidSetting, UnsupportedVAE
from stepcache.graphs.standin import StandInBackend
from stepcache.pipes.vae import vae_of


def images(pipe, **kwargs):
    return generate(pipe, output_type="pt", **kwargs)


def with_graphs(pipe, *args, **options):
    return accelerate(pipe, *args, cuda_graphs=StandInBackend, vae=True, **options)


def test_a_pipelines_images_are_the_same():
    for make in (demo_pipe, sdxl_pipe):
        pipe = make()
        want = images(accelerate(pipe, 3))
        with_graphs(pipe, 3)
        for captures in (3, 0):
            assert torch.equal(images(pipe), want)
            assert last_run(pipe).captures == captures
        engine = engine_of(pipe)
        assert last_run(pipe).static_bytes == engine.nbytes[1] > engine.decoder.buckets.static_nbytes > 0
        restore(pipe)
        assert torch.equal(images(accelerate(pipe, 3)), want)
        restore(pipe)


def test_eager_on_a_cpu_there_is_nothing_to_gain_and_nothing_is_changed():
    pipe = tiny_pipe()
    want = images(accelerate(pipe, 3))
    assert torch.equal(images(accelerate(pipe, 3, vae=True)), want)
    buckets = engine_of(pipe).decoder.buckets
    assert (buckets.nbytes, buckets.static_nbytes) == (0, 0)
    restore(pipe)


def test_nothing_is_left_on_the_vae():
    pipe = own_demo()

    def state():
        return {name: (type(module), dict(vars(module))) for name, module in pipe.vae.named_modules()}

    before = state()
    with_graphs(pipe, 3)
    assert state() == before
    images(pipe)
    assert state() == before
    latents = make_latents(1)
    captures = engine_of(pipe).unet_graphs.costs.captures
    with torch.no_grad():
        pipe.vae.decode(latents)  # outside a run the decoder is the VAE's own
        with denoising(pipe):
            assert "forward" in vars(pipe.vae.decoder)
            pipe.vae.decode(latents)
            copied = copy.deepcopy(pipe.vae)
            copied.decoder.conv_out.weight.zero_(), copied.decoder.conv_out.bias.zero_()
            assert not copied.decode(latents)[0].any()
            assert pipe.vae.decode(latents)[0].any()
    assert engine_of(pipe).unet_graphs.costs.captures == captures + 1
    assert state() == before
    restore(pipe)
    assert state() == before


def test_copies_and_pickles_have_graphs_of_their_own():
    pipe = with_graphs(own_demo(), 3)
    want = images(pipe)
    for copied in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(images(copied), want)
        assert last_run(copied).captures == 3
        assert engine_of(copied).decoder is not engine_of(pipe).decoder
        restore(copied)
    images(pipe)
    assert last_run(pipe).captures == 0


def test_a_vae_shared_with_a_pipe_that_does_not_ask():
    first, second = tiny_pipe(), tiny_pipe()
    with_graphs(first, 3), accelerate(second, 3)
    decoded = []

    def preview(pipe, i, t, values):
        if i == 2:
            decoded.append(images(second))
        return values

    want = images(second)
    assert torch.equal(images(first, callback_on_step_end=preview), want)
    assert torch.equal(decoded[0], want)
    assert last_run(second).captures == 0 and last_run(first).captures == 3
    restore(first), restore(second)


def test_threads_have_graphs_each():
    vae, failed = make_vae(), []
    with torch.no_grad():
        want = vae.decode(make_latents())[0]
    pipe = with_graphs(VaeLoop(loop_pipe("least"), vae), 3)
    barrier = threading.Barrier(2, timeout=60)

    def work():
        for _ in range(2):
            barrier.wait()
            if not torch.equal(pipe(), want):
                failed.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert "forward" not in vars(vae.decoder)


class VaeLoop:
    """A pipeline that only decodes, slowly enough for threads to meet."""

    def __init__(self, pipe, vae):
        self.unet, self.scheduler, self.vae = pipe.unet, pipe.scheduler, vae

    @torch.no_grad()
    def __call__(self):
        for _ in range(5):
            image = self.vae.decode(make_latents())[0]
        return image


def test_the_vae_is_swapped_between_runs():
    pipe = with_graphs(VaeLoop(loop_pipe("least"), make_vae()), 3)
    pipe()
    pipe.vae = make_vae("AutoencoderTiny")
    with torch.no_grad():
        want = pipe.vae.decode(make_latents())[0]
    assert torch.equal(pipe(), want)
    assert last_run(pipe).captures == 1
    pipe.vae = None
    with pytest.raises(UnsupportedVAE, match="VaeLoop has no VAE"):
        pipe()


def test_warm_up_decodes_too():
    pipe = with_graphs(tiny_pipe(), 3)
    assert warmup(pipe, 64, 64, progress=False).captures == 3
    images(pipe)
    assert last_run(pipe).captures == 0
    restore(pipe)


def test_restore_frees_the_graphs():
    pipe = with_graphs(tiny_pipe(), 3)
    images(pipe)
    (bucket,) = engine_of(pipe).decoder.buckets.held.values()
    captured = bucket.capture
    restore(pipe)
    assert captured.backend.released == 1 and captured.nbytes == 0


def refused(pipe, error, match, vae=True):
    cls, before = type(pipe), dict(vars(pipe))
    with pytest.raises(error, match=match):
        accelerate(pipe, vae=vae)
    assert type(pipe) is cls and vars(pipe) == before


def test_a_pipe_without_a_vae():
    refused(loop_pipe("least"), UnsupportedVAE, "LoopPipe has no VAE")


def test_a_vae_of_another_kind():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Conv2d(4, 3, 1)

    refused(
        VaeLoop(loop_pipe("least"), Other()), UnsupportedVAE, r"decoder of Other, a .*\.Conv2d, is not.*AutoencoderTiny"
    )
    words = r"decoder of Identity, a builtins\.NoneType, .* Use vae=False"
    refused(VaeLoop(loop_pipe("least"), nn.Identity()), UnsupportedVAE, words)


class NoModule:
    """As a runtime's wrapper: `decoder` is the VAE's own."""

    __slots__ = ("decoder",)

    def __init__(self, decoder):
        self.decoder = decoder


def test_a_wrapper_that_is_no_module():
    pipe = VaeLoop(loop_pipe("least"), NoModule(make_vae().decoder))
    words = r"the pipe's VAE is a test_decoder_in_pipes\.NoModule, which is no torch\.nn\.Module.* or use vae=False"
    refused(pipe, UnsupportedVAE, words)
    pipe.vae = make_vae()
    accelerate(pipe, vae=True)
    pipe.vae = NoModule(pipe.vae.decoder)
    with pytest.raises(UnsupportedVAE, match=r"no torch\.nn\.Module"):
        pipe(2)


def test_a_decoder_that_is_no_module():
    vae, kind = nn.Module(), type(make_vae().decoder)
    for name, module in (("Engine", "trt"), (kind.__qualname__, kind.__module__)):
        vae.decoder = type(name, (), {"__module__": module})()
        refused(VaeLoop(loop_pipe("least"), vae), UnsupportedVAE, rf"a {module}\.{name}, is not known.* Use vae=False")


def test_a_decoder_that_is_compiled_already():
    for compile in (
        lambda vae: setattr(vae, "decoder", torch.compile(vae.decoder, backend="eager")),
        lambda vae: setattr(vae, "decode", torch.compile(vae.decode, backend="eager")),
        lambda vae: vae.decoder.compile(backend="eager"),
    ):
        vae = make_vae()
        compile(vae)
        refused(VaeLoop(loop_pipe("least"), vae), AlreadyCached, "this AutoencoderKL's decoding is compiled already")


def test_a_setting_that_is_no_bool():
    for value in ("auto", 1, None):
        refused(tiny_pipe(), InvalidSetting, "vae must be True or False", vae=value)


def test_kandinskys_vae_has_another_name():
    vae = make_vae("VQModel")
    assert vae_of(SimpleNamespace(movq=vae)) == (vae, vae.decoder)


def test_a_forward_that_somebody_put_on_the_decoder_is_not_left_out(caplog):
    pipe = copy.deepcopy(tiny_pipe())
    decoder = pipe.vae.decoder
    stock = decoder.forward
    decoder.forward = lambda *args, **kwargs: -stock(*args, **kwargs)
    accelerate(pipe, 3)
    want = generate(pipe, output_type="pt")
    accelerate(pipe, 3, vae=True, cuda_graphs=StandInBackend)
    assert torch.equal(generate(pipe, output_type="pt"), want)
    assert "custom forward" in caplog.text

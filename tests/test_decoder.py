"""accelerate(..., vae=True): the VAE's decoder from a graph, and everything else of the VAE as it was."""

import copy
import gc
import logging
import pickle
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import pytest
import torch
from small import core_of, demo_pipe, generate, loop_pipe, sdxl_pipe
from torch import nn

from stepcache import accelerate, denoising, last_run, restore, warmup
from stepcache.decoder import DecoderGraphs, vae_of
from stepcache.errors import AlreadyCached, InvalidSetting, UnsupportedVAE
from stepcache.graphs import GraphSettings
from stepcache.graphs.captured import MAX_STALE
from stepcache.graphs.costs import Costs
from stepcache.graphs.standin import StandInBackend
from stepcache.watch import Interception

CAPTURED = GraphSettings(cuda_graphs=StandInBackend)
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SMALL = {**BLOCKS, "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
TINY = {"encoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}

# class -> its arguments, and arguments of its decode() beside the latents [2, 4, 8, 8]
VAES = {
    "AutoencoderKL": (SMALL, {}),
    "AutoencoderTiny": ({**TINY, "decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)}, {}),
    "AsymmetricAutoencoderKL": (
        {**BLOCKS, "down_block_out_channels": (8, 16), "up_block_out_channels": (8, 16), "norm_num_groups": 4},
        {"image": torch.ones(2, 3, 16, 16), "mask": torch.eye(16).expand(2, 1, 16, 16)},
    ),
    "AutoencoderKLTemporalDecoder": (
        {"down_block_types": BLOCKS["down_block_types"], "block_out_channels": (32, 32)},
        {"num_frames": 2},
    ),
    "VQModel": (
        {**SMALL, "block_out_channels": (32, 32), "norm_type": "spatial", "num_vq_embeddings": 16},
        {"force_not_quantize": True},
    ),
}


def make_vae(name="AutoencoderKL"):
    torch.manual_seed(0)
    return getattr(diffusers, name)(**VAES[name][0]).eval().requires_grad_(False)


def make_latents(batch=2, height=8, width=8):
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1))


def make_graphs(settings=CAPTURED, max_buckets=4):
    return DecoderGraphs(settings, max_buckets, Costs())


@contextmanager
def run(graphs, vae):
    """A run in which the VAE's decoder has these graphs."""
    _, decoder = vae_of(SimpleNamespace(vae=vae))
    graphs.begin_run(vae, decoder)

    def wrap(stock):
        return lambda *args, **kwargs: graphs.call(decoder, stock, args, kwargs)

    with Interception.on(decoder, "forward", wrap), torch.no_grad():
        yield


def decode(graphs, vae, latents, **kwargs):
    with run(graphs, vae):
        return vae.decode(latents, **kwargs)[0]


@pytest.mark.parametrize("name", VAES)
def test_captured_images_are_the_vaes_own(name):
    vae, kwargs, latents = make_vae(name), VAES[name][1], make_latents()
    with torch.no_grad():
        want = vae.decode(latents, **kwargs)[0]
        other = vae.decode(-latents, **kwargs)[0]
    graphs = make_graphs()
    for _ in range(2):
        assert torch.equal(decode(graphs, vae, latents, **kwargs), want)
        assert torch.equal(decode(graphs, vae, -latents, **kwargs), other)
    assert graphs.costs.captures == 1
    assert graphs.nbytes >= latents.nbytes + want.nbytes


@pytest.mark.parametrize(
    "name",
    ["AutoencoderKL", "AutoencoderTiny", *(pytest.param(n, marks=pytest.mark.slow) for n in list(VAES)[2:])],
)
def test_compiled_once_and_captured(name):
    vae, kwargs, latents = make_vae(name), VAES[name][1], make_latents()
    with torch.no_grad():
        want = vae.decode(latents, **kwargs)[0]
    for cuda_graphs in (False, StandInBackend):
        graphs = make_graphs(GraphSettings({"backend": "aot_eager"}, cuda_graphs))
        torch.testing.assert_close(decode(graphs, vae, latents, **kwargs), want, rtol=1e-5, atol=1e-6)
        seconds = graphs.costs.compile_seconds
        assert seconds > 0
        torch.testing.assert_close(decode(graphs, vae, latents, **kwargs), want, rtol=1e-5, atol=1e-6)
        assert graphs.costs.compile_seconds == seconds
        assert graphs.costs.captures == (cuda_graphs is StandInBackend)


def test_regional_compilation_leaves_the_decoder_uncompiled():
    graphs, vae = make_graphs(GraphSettings("regional", StandInBackend)), make_vae()
    decode(graphs, vae, make_latents())
    assert graphs.costs.compile_seconds == 0 and graphs.costs.captures == 1


def test_slices_share_a_bucket():
    vae, latents = make_vae(), make_latents(batch=3)
    vae.enable_slicing()
    with torch.no_grad():
        want = vae.decode(latents)[0]
    graphs = make_graphs()
    assert torch.equal(decode(graphs, vae, latents), want)
    assert graphs.costs.captures == 1 and len(graphs.buckets.held) == 1


def test_each_shape_of_tile_is_a_bucket():
    vae = make_vae()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    graphs = make_graphs(max_buckets=2)
    for captures in (7, 0):  # 8x8; 8x3, 3x8 and 3x3 at the edges of the first; 8x2, 4x8 and 4x2 at those of the second
        before = graphs.costs.captures
        for height, width in ((21, 15), (16, 20)):
            latents = make_latents(1, height, width)
            with torch.no_grad():
                want = vae.decode(latents)[0]
            assert torch.equal(decode(graphs, vae, latents), want)
        assert graphs.costs.captures - before == captures
    assert len(graphs.buckets.held) == 7
    vae.disable_tiling()
    decode(graphs, vae, make_latents(1, 4, 4))
    assert len(graphs.buckets.held) == 2  # untiled, a bucket is a size again


def test_the_least_recently_used_bucket_is_freed():
    vae, graphs = make_vae(), make_graphs(max_buckets=2)
    for batch in (1, 2, 1, 3):
        decode(graphs, vae, make_latents(batch))
    one, three = (bucket.graphs.captured for bucket in graphs.buckets.held.values())
    assert graphs.costs.captures == 3
    assert one.backend.released == three.backend.released == 0
    before = graphs.nbytes
    graphs.clear()
    assert one.backend.released == three.backend.released == 1
    assert graphs.nbytes == 0 < before and not graphs.belongs_to(vae.decoder)
    assert all(graph._function is None for graph in (*one.backend.graphs, *three.backend.graphs))


def test_autocast_and_inference_mode_have_buckets_of_their_own():
    vae, latents, graphs = make_vae(), make_latents(), make_graphs()
    with torch.no_grad():
        want = vae.decode(latents)[0]
        with torch.autocast("cpu", torch.bfloat16):
            cast = vae.decode(latents)[0]
    for _ in range(2):
        assert torch.equal(decode(graphs, vae, latents), want)
        with torch.inference_mode():
            assert torch.equal(decode(graphs, vae, latents), want)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decode(graphs, vae, latents), cast)
    assert graphs.costs.captures == 3


def replace_a_weight(vae):
    layer = vae.decoder.conv_out
    layer.weight = nn.Parameter(layer.weight * 1.5, requires_grad=False)


def move_the_data(vae):
    for parameter in vae.parameters():  # what `vae.to` does
        parameter.data = parameter.data * 1.01


def other_processor(vae):
    from diffusers.models.attention_processor import AttnProcessor

    vae.set_attn_processor(AttnProcessor())


@pytest.mark.parametrize("change", [replace_a_weight, move_the_data, other_processor])
def test_captured_anew_after(change):
    vae, latents, graphs = make_vae(), make_latents(), make_graphs()
    decode(graphs, vae, latents)
    decode(graphs, vae, latents[:1])
    change(vae)
    got = decode(graphs, vae, latents), decode(graphs, vae, latents[:1])
    assert graphs.costs.captures == 4
    with torch.no_grad():
        assert torch.equal(got[0], vae.decode(latents)[0]) and torch.equal(got[1], vae.decode(latents[:1])[0])
    decode(graphs, vae, latents)
    assert graphs.costs.captures == 4


def test_not_captured_anew_after_an_update_in_place():
    vae, latents, graphs = make_vae(), make_latents(), make_graphs()
    before = decode(graphs, vae, latents)
    vae.decoder.conv_out.weight.mul_(1.1)
    after = decode(graphs, vae, latents)
    assert graphs.costs.captures == 1 and not torch.equal(before, after)
    with torch.no_grad():
        assert torch.equal(after, vae.decode(latents)[0])


@pytest.mark.parametrize("tiles", [False, True])
def test_a_vae_that_is_moved_for_each_image_is_given_up(tiles, caplog):
    """As SDXL's pipeline does with a float16 one. Tiles of one image, of which the first is stale, do not hide it."""
    vae, graphs = make_vae(), make_graphs()
    latents = make_latents(1, 16, 16) if tiles else make_latents()
    if tiles:
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    captures = []
    for _ in range(MAX_STALE + 4):
        move_the_data(vae)
        with torch.no_grad():
            want = vae.decode(latents)[0]
        before = graphs.costs.captures
        assert torch.equal(decode(graphs, vae, latents), want)
        captures.append(graphs.costs.captures - before)
    assert [count > 0 for count in captures] == [True] * (MAX_STALE + 1) + [False] * 3
    assert graphs.nbytes == 0
    assert sum("change in every run" in record.getMessage() for record in caplog.records) == 1


def test_offloading_hooks(caplog):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    vae, latents, graphs = make_vae(), make_latents(), make_graphs()
    with torch.no_grad():
        want = vae.decode(latents)[0]
    for module, message in ((vae, "move the VAE between runs"), (vae.decoder, "on the VAE's layers")):
        add_hook_to_module(module, ModelHook())
        for _ in range(2):
            assert torch.equal(decode(graphs, vae, latents), want)
        assert graphs.costs.captures == 0
        remove_hook_from_module(module)
        assert sum(message in record.getMessage() for record in caplog.records) == 1
    assert torch.equal(decode(graphs, vae, latents), want)
    assert graphs.costs.captures == 1


def test_training_mode_and_gradients_run_eager(caplog):
    vae, latents, graphs = make_vae(), make_latents(), make_graphs()
    vae.train()
    decode(graphs, vae, latents)
    vae.eval()
    latents.requires_grad_()
    with run(graphs, vae), torch.enable_grad():
        vae.decode(latents)[0].sum().backward()
    assert latents.grad.abs().sum() > 0
    assert graphs.costs.captures == 0 and not graphs.buckets.held
    assert "training mode" in caplog.text and "Gradients are enabled" in caplog.text


def test_a_failed_capture_runs_on_uncaptured(caplog):
    class Failing(StandInBackend):
        def capture(self, function, pool, device):
            function()
            raise torch.OutOfMemoryError("17 GiB")

    vae, latents, graphs = make_vae(), make_latents(), make_graphs(GraphSettings(cuda_graphs=Failing))
    with torch.no_grad():
        want = vae.decode(latents)[0]
    for _ in range(2):
        assert torch.equal(decode(graphs, vae, latents), want)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "17 GiB" in warnings[0] and "decoder graph 2x4x8x8" in warnings[0]
    (bucket,) = graphs.buckets.held.values()
    assert bucket.graphs.captured.backend.released == 1 and graphs.nbytes == 0


def test_another_vae_gets_graphs_of_its_own_and_a_dropped_one_takes_its_along():
    graphs, latents = make_graphs(GraphSettings(cuda_graphs=Forgetful)), make_latents()
    vae = make_vae()
    decode(graphs, vae, latents)
    other = make_vae("AutoencoderTiny")
    decode(graphs, other, latents)
    (bucket,) = graphs.buckets.held.values()
    weight, backend = weakref.ref(next(other.decoder.parameters())), bucket.graphs.captured.backend
    del other, bucket
    gc.collect()
    assert weight() is None and not graphs.buckets.held and backend.released == 1


class Forgetful(StandInBackend):
    """Keeps nothing of the function, as a CUDA graph does; replays nothing."""

    def capture(self, function, pool, device):
        return SimpleNamespace(replay=lambda: None, reset=lambda: None)


# With a pipeline.


def images(pipe, **kwargs):
    return generate(pipe, output_type="pt", **kwargs)


def own_demo():
    """The demo with a VAE that the test may change."""
    return demo_pipe(vae=copy.deepcopy(demo_pipe().vae))


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
        core = core_of(pipe)
        assert last_run(pipe).static_bytes == core.buckets.static_nbytes + core.decoder.nbytes > core.decoder.nbytes > 0
        restore(pipe)
        assert torch.equal(images(accelerate(pipe, 3)), want)
        restore(pipe)


def test_eager_on_a_cpu_there_is_nothing_to_gain_and_nothing_is_changed():
    pipe = demo_pipe()
    want = images(accelerate(pipe, 3))
    assert torch.equal(images(accelerate(pipe, 3, vae=True)), want)
    assert not core_of(pipe).decoder.buckets.held
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
    captures = core_of(pipe).plan.costs.captures
    with torch.no_grad():
        pipe.vae.decode(latents)  # outside of a run the decoder is the VAE's own
        with denoising(pipe):
            assert "forward" in vars(pipe.vae.decoder)
            pipe.vae.decode(latents)
            copied = copy.deepcopy(pipe.vae)
            copied.decoder.conv_out.weight.zero_(), copied.decoder.conv_out.bias.zero_()
            assert not copied.decode(latents)[0].any()
            assert pipe.vae.decode(latents)[0].any()
    assert core_of(pipe).plan.costs.captures == captures + 1
    assert state() == before
    restore(pipe)
    assert state() == before


def test_copies_and_pickles_have_graphs_of_their_own():
    pipe = with_graphs(own_demo(), 3)
    want = images(pipe)
    for copied in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(images(copied), want)
        assert last_run(copied).captures == 3
        assert core_of(copied).decoder is not core_of(pipe).decoder
        restore(copied)
    images(pipe)
    assert last_run(pipe).captures == 0


def test_a_vae_shared_with_a_pipe_that_does_not_ask():
    first, second = demo_pipe(), demo_pipe()
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
    pipe = with_graphs(VaeLoop(loop_pipe(), vae), 3)
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
    pipe = with_graphs(VaeLoop(loop_pipe(), make_vae()), 3)
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
    pipe = with_graphs(demo_pipe(), 3)
    assert warmup(pipe, 64, 64, progress=False).captures == 3
    images(pipe)
    assert last_run(pipe).captures == 0
    restore(pipe)


def test_restore_frees_the_graphs():
    pipe = with_graphs(demo_pipe(), 3)
    images(pipe)
    (bucket,) = core_of(pipe).decoder.buckets.held.values()
    captured = bucket.graphs.captured
    restore(pipe)
    assert captured.backend.released == 1 and captured.nbytes == 0


# Refused, before anything is changed.


def refused(pipe, error, match, vae=True):
    cls, before = type(pipe), dict(vars(pipe))
    with pytest.raises(error, match=match):
        accelerate(pipe, vae=vae)
    assert type(pipe) is cls and vars(pipe) == before


def test_a_pipe_without_a_vae():
    refused(loop_pipe(), UnsupportedVAE, "LoopPipe has no VAE")


def test_a_vae_of_another_kind():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Conv2d(4, 3, 1)

    refused(VaeLoop(loop_pipe(), Other()), UnsupportedVAE, "decoder of Other, Conv2d, is not known.*AutoencoderTiny")
    refused(VaeLoop(loop_pipe(), nn.Identity()), UnsupportedVAE, "decoder of Identity, NoneType")


def test_a_decoder_that_is_compiled_already():
    for compile in (
        lambda vae: setattr(vae, "decoder", torch.compile(vae.decoder, backend="eager")),
        lambda vae: setattr(vae, "decode", torch.compile(vae.decode, backend="eager")),
        lambda vae: vae.decoder.compile(backend="eager"),
    ):
        vae = make_vae()
        compile(vae)
        refused(VaeLoop(loop_pipe(), vae), AlreadyCached, "compiled already in this AutoencoderKL")


def test_a_setting_that_is_no_bool():
    for value in ("auto", 1, None):
        refused(demo_pipe(), InvalidSetting, "vae must be True or False", vae=value)


def test_kandinskys_vae_has_another_name():
    vae = make_vae("VQModel")
    assert vae_of(SimpleNamespace(movq=vae)) == (vae, vae.decoder)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, "auto", {"mode": "reduce-overhead"}], ids=str)
@pytest.mark.parametrize("name", VAES)
def test_on_a_gpu(name, compile):
    vae = make_vae(name).cuda()
    kwargs = {key: value.cuda() if torch.is_tensor(value) else value for key, value in VAES[name][1].items()}
    graphs = make_graphs(GraphSettings(compile))
    inputs = [make_latents(batch).cuda() for batch in (2, 2, 4)]
    for latents in (inputs[0], inputs[1], -inputs[0], inputs[0]):
        with torch.no_grad():
            want = vae.decode(latents, **kwargs)[0]
        got = decode(graphs, vae, latents, **kwargs)
        if compile is False:
            assert torch.equal(got, want)
        else:
            assert (got - want).abs().max() <= 2e-3 * want.abs().max()
    assert graphs.costs.captures == (0 if isinstance(compile, dict) else 1)
    allocated = torch.cuda.memory_reserved()
    graphs.clear()
    assert torch.cuda.memory_reserved() <= allocated


@pytest.mark.gpu
def test_on_a_gpu_changed_weights_are_captured_anew():
    vae, graphs, latents = make_vae().cuda(), make_graphs(GraphSettings(compile=False)), make_latents().cuda()
    for _ in range(2):
        move_the_data(vae)
        with torch.no_grad():
            want = vae.decode(latents)[0]
        assert torch.equal(decode(graphs, vae, latents), want)
    assert graphs.costs.captures == 2


def test_a_forward_that_somebody_put_on_the_decoder_is_not_left_out(caplog):
    pipe = copy.deepcopy(demo_pipe())
    decoder = pipe.vae.decoder
    stock = decoder.forward
    decoder.forward = lambda *args, **kwargs: -stock(*args, **kwargs)
    accelerate(pipe, 3)
    want = generate(pipe, output_type="pt")
    accelerate(pipe, 3, vae=True, cuda_graphs=StandInBackend)
    assert torch.equal(generate(pipe, output_type="pt"), want)
    assert "forward of its own" in caplog.text

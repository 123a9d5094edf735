"""The rungs of the ladder share weights and do not see each other."""

import numpy as np
import pytest
import torch
from support.small import D, U, tiny_pipe
from torch._dynamo.utils import counters

from stepcache import accelerate, last_run
from stepcache.bench import variants
from stepcache.bench.calls import UNetClock, timed
from stepcache.bench.spec import LADDER, MODES
from stepcache.bench.variants import Variant, ladder, twin
from stepcache.images.make import Request

REQUEST = Request(["tiger face"], [0], 4, {"height": 64, "width": 64, "guidance_scale": 3.0})
ON_CPU = {
    "compile+deepcache": Variant("compile+deepcache", "default", 3, 0),
    "eager": Variant("eager"),
    "deepcache": Variant("deepcache", "", 3, 0),
    "compile": Variant("compile", "default"),
    "stepcache-eager": Variant("stepcache-eager", "", 3, 0),
    "stepcache-compiled": Variant("stepcache-compiled", "default", 3, 0),
}


def attributes(unet):
    return {path: (type(module), set(vars(module))) for path, module in unet.named_modules()}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_order_is_that_of_the_keys_and_modes():
    variants = ladder(["stepcache-compiled", "eager", "stepcache-triton", "compile"], MODES[:2], (5, 1))
    assert variants == [
        Variant("stepcache-compiled", "default", 5, 1),
        Variant("stepcache-compiled", "reduce-overhead", 5, 1),
        Variant("eager"),
        Variant("stepcache-triton", "", 5, 1),
        Variant("compile", "default"),
        Variant("compile", "reduce-overhead"),
    ]
    assert [v.key for v in ladder(list(LADDER), ["default"], (3, 0))] == list(LADDER)
    assert [v.mode for v in ladder(["compile+deepcache"], ["max-autotune", "default"], (3, 0))] == ["max-autotune"]


def test_variants_give_the_same_images_while_others_run_in_between():
    # On one level, with attention in the mid block alone, it compiles sooner.
    pipe = tiny_pipe(unet={"block_out_channels": (8,), "down_block_types": (D,), "up_block_types": (U,)})
    before = attributes(pipe.unet)
    pipes = {key: variant.put_on(pipe, "eager") for key, variant in ON_CPU.items()}
    clocks = {key: UNetClock(mine.unet, "cpu") for key, mine in pipes.items()}
    counts = []

    def images(key):
        graphs = counters["stats"]["unique_graphs"]
        run = timed(REQUEST, pipes[key], clocks[key])
        counts.append(counters["stats"]["unique_graphs"] - graphs)
        assert run.unet_calls == 4 and 0 < run.unet_seconds < run.seconds
        return run.images

    # DeepCache's step is a Python number, so each step compiles again, until Dynamo gives up on that U-Net.
    with torch._dynamo.config.patch(recompile_limit=2):
        first = {key: images(key) for key in ON_CPU}
        assert counts == [2, 0, 0, 1, 0, 2]  # none of the others'
        counts.clear()
        second = {key: images(key) for key in reversed(ON_CPU)}
    assert not any(counts)  # what was compiled is kept
    for key in pipes:
        assert np.array_equal(first[key], second[key]), key
    assert np.array_equal(REQUEST.make(pipe).images, first["eager"])
    assert attributes(pipe.unet) == before
    assert last_run(pipes["stepcache-compiled"]).kinds == "FPPF"

    assert np.abs(first["compile"] - first["eager"]).max() < 1e-3
    reused = [first[key] for key in ("deepcache", "compile+deepcache", "stepcache-eager", "stepcache-compiled")]
    assert all(np.abs(each - reused[0]).max() < 1e-3 for each in reused)
    assert np.abs(reused[0] - first["eager"]).max() > 0.01


def test_twins_share_weights_and_nothing_else():
    pipe = tiny_pipe()
    other = twin(pipe)
    assert other.unet is not pipe.unet and other.scheduler is not pipe.scheduler and other.vae is pipe.vae
    ours, theirs = dict(pipe.unet.named_parameters()), dict(other.unet.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    modules = {id(module) for module in pipe.unet.modules()}
    assert not modules & {id(module) for module in other.unet.modules()}


def test_a_twin_may_have_kernels_of_its_own():
    """Shared weights in channels_last would change eager and DeepCache too."""
    pipe = tiny_pipe()
    strides = [p.stride() for p in pipe.unet.parameters()]
    mine = accelerate(twin(pipe, own_kernels=True), channels_last=True)
    for (name, ours), theirs in zip(pipe.unet.named_parameters(), mine.unet.parameters(), strict=True):
        assert (ours is theirs) == (ours.dim() != 4) and torch.equal(ours, theirs), name
    assert [p.stride() for p in mine.unet.parameters()] != strides
    assert [p.stride() for p in pipe.unet.parameters()] == strides


@pytest.mark.parametrize(("device", "key", "own"), [
    ("cuda", "stepcache-eager", True), ("cuda", "stepcache-compiled", True), ("cuda", "deepcache", False),
    ("cpu", "stepcache-eager", False),
])  # fmt: skip
def test_what_is_accelerated_on_a_gpu_has_kernels_of_its_own(device, key, own, monkeypatch):
    pipe, made = tiny_pipe(), []
    monkeypatch.setattr(type(pipe.unet), "device", torch.device(device))
    monkeypatch.setattr(variants, "accelerate", lambda pipe, *args, **kwargs: pipe)
    monkeypatch.setattr(variants, "twin", lambda pipe, own_kernels: made.append(own_kernels) or twin(pipe))
    ON_CPU[key].put_on(pipe, "eager")
    assert made == [own]


def test_what_a_cpu_cannot_run_says_so(monkeypatch):
    assert Variant("stepcache-triton", "", 3, 0).missing("cpu") == Variant("stepcache-graphs").missing("cpu")
    assert "CUDA" in Variant("stepcache-graphs", "", 3, 0).missing("cpu")
    assert "CUDA" in Variant("compile", "reduce-overhead").missing("cpu")
    assert not any(variant.missing("cpu") for variant in ON_CPU.values())
    assert not any(variant.missing("cuda") for variant in ladder(list(LADDER), MODES, (3, 0)))
    monkeypatch.setattr("stepcache.bench.variants.find_spec", lambda name: None)
    assert "pip install DeepCache" in ON_CPU["deepcache"].missing("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ladder(list(LADDER), MODES[:2], (3, 0)), ids=lambda v: v.label)
def test_on_a_gpu(variant):
    pipe = tiny_pipe().to("cuda")
    want = REQUEST.make(ON_CPU["eager" if variant.interval is None else "stepcache-eager"].put_on(pipe)).images
    mine = variant.put_on(pipe)
    clock = UNetClock(mine.unet, "cuda")
    captures = 0
    for _ in range(3):
        run = timed(REQUEST, mine, clock)
        assert np.abs(run.images - want).max() < 0.05
        assert run.unet_calls == 4 and 0 < run.unet_seconds < run.seconds
        captures += last_run(mine).captures if variant.captures else 0
    assert captures == (2 if variant.captures else 0)

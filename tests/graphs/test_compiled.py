"""Each graph compiles alone, in full and once; torch.compile's arguments are checked before anything changes."""

import copy

import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from support.small import (
    ATTENDED,
    BETAS,
    NO_ATTENTION,
    ONE_LEVEL,
    LoopPipe,
    generate,
    loop_pipe,
    make_inputs,
    state_of,
    tiny_pipe,
)

from stepcache import accelerate, denoising, last_run, restore
from stepcache.errors import GraphCompileError, InvalidSetting
from stepcache.graphs.options import CUDA_OPTIONS
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend


class Counting:
    """A torch.compile backend that runs the graph unchanged and keeps it."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward

    @property
    def compile(self):
        return {"backend": self}


def check(pipe, branch=0):
    """Compiled equals eager bit for bit (the backend computes the same operations), in two compilations."""
    want = accelerate(pipe, 3, branch)(6)
    backend = Counting()
    accelerate(pipe, 3, branch, compile=backend.compile)
    for _ in range(2):
        assert torch.equal(pipe(6), want)
        assert len(backend.graphs) == 2
    restore(pipe)
    return backend.graphs


# test_blocks.py compiles every type of block. SDXL has conditions of its own.
@pytest.mark.parametrize(
    "name", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd", "sd2", "refiner"))]
)
def test_every_layout_compiles_whole(name):
    full, partial = check(loop_pipe(name, layers_per_block=1, transformer_layers_per_block=1))
    convolutions = [sum("conv" in str(node.target) for node in g.graph.nodes) for g in (full, partial)]
    assert convolutions[0] > convolutions[1] > 0


def test_nine_channels():
    pipe = loop_pipe("least", in_channels=9, **ONE_LEVEL)
    unet = pipe.unet
    inputs = make_inputs(unet)
    backend = Counting()
    accelerate(pipe, 2, compile=backend.compile)
    pipe.scheduler.set_timesteps(4)
    with torch.no_grad(), denoising(pipe):
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(inputs["sample"], t, inputs["encoder_hidden_states"]).sample
            pipe.scheduler.step(noise, t, inputs["sample"][:, :4])
    assert last_run(pipe).kinds == "FPFP" and len(backend.graphs) == 2


def run_calls(pipe, calls, steps=4):
    """Outputs of `steps` U-Net calls with these arguments."""
    outputs = []
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad(), denoising(pipe):
        for t in pipe.scheduler.timesteps:
            outputs.append(pipe.unet(**{**copy.deepcopy(calls), "timestep": t}).sample)
            pipe.scheduler.step(outputs[-1], t, calls["sample"])
    return torch.stack(outputs)


def check_calls(pipe, calls):
    accelerate(pipe, 2)
    want = run_calls(pipe, calls)
    backend = Counting()
    accelerate(pipe, 2, compile=backend.compile)
    assert torch.equal(run_calls(pipe, calls), want)
    assert torch.equal(run_calls(pipe, calls), want)
    assert len(backend.graphs) == 2


def test_controlnet_residuals():
    pipe = loop_pipe("least", **{**NO_ATTENTION, "mid_block_type": "UNetMidBlock2DCrossAttn"})
    calls = make_inputs(pipe.unet)
    with torch.no_grad():
        hidden = pipe.unet.conv_in(calls["sample"])
    shapes = [hidden.shape, hidden.shape, (2, 8, 8, 8), (2, 16, 8, 8)]
    calls["down_block_additional_residuals"] = tuple(torch.randn(s) for s in shapes)
    calls["mid_block_additional_residual"] = torch.randn(2, 16, 8, 8)
    check_calls(pipe, calls)


def test_ip_adapter():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe = loop_pipe("least", **ATTENDED)
    unet = pipe.unet
    processors = dict(unet.attn_processors)
    for name in processors:
        if "attn2" in name:
            features = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(features, 8, num_tokens=(2,), scale=0.7)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 8, 2)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.requires_grad_(False)
    check_calls(pipe, {**make_inputs(unet), "added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 6)]}})


def test_freeu():
    pipe = loop_pipe("least", **NO_ATTENTION)
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    check(pipe, 3)


def test_the_scale_of_an_unfused_lora():
    """Adapters' own scales are below."""
    from peft import LoraConfig

    pipe = loop_pipe("least", **ATTENDED)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "a")
    pipe.unet.requires_grad_(False)
    check_calls(pipe, {**make_inputs(pipe.unet), "cross_attention_kwargs": {"scale": 0.5}})


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_low_precision(dtype):
    pipe = loop_pipe("least", **ATTENDED)
    pipe.unet.to(dtype)
    calls = make_inputs(pipe.unet, size=(8, 8))
    check_calls(pipe, {k: v.to(dtype) if v.is_floating_point() else v for k, v in calls.items()})


def test_channels_last():
    pipe = loop_pipe("least", **ATTENDED)
    pipe.unet.to(memory_format=torch.channels_last)
    calls = make_inputs(pipe.unet)
    calls["sample"] = calls["sample"].to(memory_format=torch.channels_last)
    check_calls(pipe, calls)


def test_one_compilation_a_graph_whatever_changes_between_runs():
    """A long run, then four with other prompts, seeds, step counts, schedulers and guidance scales."""
    pipe = tiny_pipe(unet=NO_ATTENTION)
    backend = Counting()
    accelerate(pipe, 3, compile=backend.compile)
    generate(pipe, steps=12)
    schedulers = [EulerDiscreteScheduler, PNDMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler]
    for i, scheduler in enumerate(schedulers):
        options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
        pipe.scheduler = scheduler(**BETAS, **options)
        generate(pipe, steps=4 + i % 3, seed=i, prompt=f"animal number {i}", guidance_scale=2.0 + i)
        assert set(last_run(pipe).kinds) == {"F", "P"}
    assert len(backend.graphs) == 2
    generate(pipe, height=48)  # another bucket
    assert len(backend.graphs) == 4


@torch._dynamo.config.patch(recompile_limit=1)
def test_more_sizes_than_dynamos_recompile_limit():
    """Dynamo gives up on a function beyond its limit (8 sizes by default), so each bucket has its own functions."""
    pipe = loop_pipe("least", **ONE_LEVEL)
    backend = Counting()
    accelerate(pipe, 2, compile=backend.compile, max_buckets=1)
    for batch in (1, 2):
        pipe(2, batch=batch)
    assert len(backend.graphs) == 4


@torch._dynamo.config.patch(recompile_limit=1)
@pytest.mark.parametrize("compile", ["whole", "regional"])
def test_more_lora_scales_than_dynamos_recompile_limit(compile, monkeypatch):
    """Each scale is a constant in the graph and so one compilation; at the limit the function starts over."""
    from peft import LoraConfig

    from stepcache.graphs import compiled

    backend, original = Counting(), torch.compile
    monkeypatch.setattr(compiled.torch, "compile", lambda f, **o: original(f, **{**o, "backend": backend}))
    # Regional compiles transformer blocks; a whole graph of ResNets is traced sooner.
    pipe = loop_pipe("least", **(ONE_LEVEL if compile == "whole" else ATTENDED))
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=r".*\.(conv1|to_q)", init_lora_weights=False), "a")
    pipe.unet.requires_grad_(False)
    plain = LoopPipe(pipe.unet, loop_pipe("least").scheduler)
    accelerate(pipe, 2, compile=True if compile == "whole" else compile), accelerate(plain, 2)
    for i in range(3):
        pipe.unet.set_adapters(["a"], weights=[0.1 * (i + 1)])
        assert torch.equal(pipe(2), plain(2))
        assert last_run(pipe).compile_seconds > 0
    pipe(2)
    assert last_run(pipe).compile_seconds == 0


def test_a_users_mistake_is_in_the_compile_error():
    pipe = accelerate(loop_pipe("least"), compile={"backend": "eager"})
    inputs = make_inputs(pipe.unet)
    narrow = inputs["encoder_hidden_states"][..., :3]
    with (
        denoising(pipe),
        torch.no_grad(),
        pytest.raises(GraphCompileError, match=r"call itself[\s\S]*Expected size"),
    ):
        pipe.unet(inputs["sample"], 1, narrow)


def test_the_users_options_stay_as_they_are():
    options = {"options": {"guard_filter_fn": lambda guards: [True for _ in guards]}}
    settings = GraphSettings(compile=options)
    assert set(options["options"]) == set(settings.compile["options"]) == {"guard_filter_fn"}
    settings.compile_options(torch.device("cpu"))["options"].clear()
    assert set(settings.compile["options"]) == {"guard_filter_fn"}


def test_captured_and_compiled():
    pipe = loop_pipe("least", **ONE_LEVEL)
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, compile={"backend": "aot_eager"}, cuda_graphs=StandInBackend)
    for captures in (2, 0):
        assert torch.equal(pipe(6), want)
        assert last_run(pipe).captures == captures
    assert last_run(pipe).compile_seconds == 0


def test_inductor():
    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, compile=True)
    got = pipe(6)
    assert last_run(pipe).compile_seconds > 0
    assert (got - want).abs().max() < 1e-4
    assert torch.equal(pipe(6), got)
    assert last_run(pipe).compile_seconds == 0


def test_regional_compiles_each_shape_of_block_once(monkeypatch):
    from stepcache.graphs import compiled

    backend = Counting()
    original = torch.compile
    monkeypatch.setattr(compiled.torch, "compile", lambda f, **o: original(f, **{**o, "backend": backend}))
    pipe = loop_pipe("sd", layers_per_block=1)
    want = accelerate(pipe, 3)(6)
    before = state_of(pipe)
    accelerate(pipe, 3, compile="regional")
    assert torch.equal(pipe(6), want)
    # 10 transformer blocks: 8 channels at 16x16, 16 at 8x8, 4x4, and the mid block's 2x2.
    assert len(backend.graphs) == 4
    pipe(6)
    assert len(backend.graphs) == 4
    inputs = make_inputs(pipe.unet)
    with torch.no_grad():
        pipe.unet(**inputs)  # outside a run nothing is compiled
    restore(pipe)
    assert state_of(pipe).modules == before.modules


def test_a_compile_error_names_the_graph_and_is_whole():
    def broken(graph, inputs):
        raise ValueError("no such instruction: frobnicate")

    pipe = accelerate(loop_pipe("least"), 2, compile={"backend": broken})
    with pytest.raises(GraphCompileError) as error:
        pipe(4)
    first, *rest = str(error.value).splitlines()
    assert "full graph 2x4x16x16" in first and "compile=False" in first
    assert "frobnicate" in "\n".join(rest)
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"compile": "max"}, r'must be "auto", True, False, "regional" or a dict.*got \'max\''),
        ({"compile": 3}, "got 3"),
        ({"compile": {"mode": "fastest"}}, "'fastest' is unknown; torch has default"),
        ({"compile": {"options": {"no_such_option": 1}}}, "no_such_option"),
        ({"compile": {"backend": "no_such_backend"}}, "no_such_backend"),
        ({"compile": {"fullgraph": False}}, r"\['fullgraph'\] \(fullgraph=True and dynamic=False are fixed\)"),
        ({"compile": {"mood": 1}}, r"\['mood'\]"),
        ({"compile": {"mode": "default", "options": {"max_autotune": True}}}, "both"),
        ({"cuda_graphs": "yes"}, "cuda_graphs must be .*got 'yes'"),
        ({"compiled": 1}, "compiled must be the path"),
    ],
)
def test_bad_settings(settings, message):
    pipe = loop_pipe("least")
    before = state_of(pipe)
    with pytest.raises(InvalidSetting, match=message):
        accelerate(pipe, **settings)
    assert state_of(pipe) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_without_cuda():
    with pytest.raises(InvalidSetting, match="no CUDA device"):
        accelerate(loop_pipe("least"), cuda_graphs=True)


def test_what_cuda_gets():
    """It depends only on the device, so it can be checked here."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    auto = GraphSettings()
    assert auto.compile_options(cuda) == {"options": CUDA_OPTIONS} and auto.compile_options(cpu) is None
    # Options that try kernel configurations, for seconds to minutes, must be asked for.
    assert not any("max_autotune" in name or "coordinate" in name for name in CUDA_OPTIONS)
    assert GraphSettings(compile={"mode": "default"}).compile_options(cuda) == {"mode": "default"}
    tuning = {"coordinate_descent_tuning": True}
    assert GraphSettings(compile={"options": tuning}).compile_options(cuda) == {"options": tuning}
    assert auto.backend(cuda) is not None and auto.backend(cpu) is None
    assert GraphSettings(compile=False).compile_options(cuda) is None
    assert GraphSettings(compile=True).compile_options(cpu) == {}
    # stepcache captures, or nobody does (cuda_graphs=False), but never torch unasked.
    for cuda_graphs in ("auto", False):
        tuned = GraphSettings(compile={"mode": "max-autotune"}, cuda_graphs=cuda_graphs)
        assert tuned.compile_options(cuda) == {"mode": "max-autotune-no-cudagraphs"}
    assert GraphSettings(compile={"options": {"triton.cudagraphs": True}}).backend(cuda) is None
    trees = GraphSettings(compile={"mode": "reduce-overhead"})
    assert trees.backend(cuda) is None and trees.compile_options(cuda) == {"mode": "reduce-overhead"}
    assert GraphSettings(cuda_graphs=False).backend(cuda) is None

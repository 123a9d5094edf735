"""The join on the ops against the join of diffusers: the same up to rounding, or the reference where it must be."""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, inject_adapter_in_model
from support.small import NO_ATTENTION, UNETS, loop_pipe, make_inputs, make_unet
from support.traces import counted, narrow_unet, zeros_for
from torch.utils._python_dispatch import TorchDispatchMode

from stepcache import accelerate, last_run
from stepcache.errors import InvalidSetting
from stepcache.forwards import family_of
from stepcache.forwards.blend import Blend
from stepcache.forwards.join import fusable, fused_join, reference_join
from stepcache.forwards.join_shape import JoinShape, shape_of
from stepcache.graphs.standin import StandInBackend

fused = fused_join(lambda shape: True)
RESNETS = {
    "default": {},
    "scale shift": {"time_embedding_norm": "scale_shift"},
    "skip_time_act": {"skip_time_act": True},
    "no time embedding": {"temb_channels": None},
    "upsampling": {"up": True},
    "downsampling": {"down": True},
    "fewer groups behind": {"groups_out": 2},
    "identity shortcut": {"out_channels": 24},
    "forced shortcut": {"out_channels": 24, "use_in_shortcut": True},
    "no bias": {"conv_shortcut_bias": False},
    "scaled output": {"output_scale_factor": 1.7},
}


def make_resnet(**options):
    torch.manual_seed(0)
    resnet = ResnetBlock2D(**{"in_channels": 24, "out_channels": 12, "temb_channels": 10, "groups": 4, **options})
    return resnet.eval().requires_grad_(False)


def make_args(resnet, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    hidden, skip = (torch.randn(2, c, 6, 8, generator=g).to(dtype) for c in (16, 8))
    return hidden, skip, None if resnet.time_emb_proj is None else torch.randn(2, 10, generator=g).to(dtype)


@pytest.fixture
def cats(monkeypatch):
    """Sizes of the concats made by the join (the ops' own references make theirs behind the dispatcher)."""
    sizes, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors, dim=0: sizes.append(len(tensors)) or cat(tensors, dim))
    return sizes


@pytest.mark.parametrize("name", RESNETS)
def test_each_kind_of_resnet(name):
    resnet = make_resnet(**RESNETS[name])
    args = make_args(resnet)
    assert fusable(resnet, *args[:2])
    want = resnet(torch.cat(args[:2], 1), args[2])
    got = fused(resnet, *args)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(reference_join(resnet, *args), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_no_further_from_the_truth_than_diffusers(dtype):
    resnet = make_resnet()
    args = make_args(resnet)
    exact = resnet.double()(torch.cat(args[:2], 1).double(), args[2].double())
    resnet.to(dtype)
    args = make_args(resnet, dtype)
    stock = (resnet(torch.cat(args[:2], 1), args[2]).double() - exact).abs().max()
    ours = (fused(resnet, *args).double() - exact).abs().max()
    assert ours <= 2 * stock + 1e-6


def blend_of(resnet, hidden, weights):
    """The hidden state and two more buffers like it, as many as there are weights."""
    g = torch.Generator().manual_seed(2)
    further = [torch.randn(hidden.shape, generator=g).to(hidden) for _ in range(weights.shape[-1] - 1)]
    return Blend((hidden, *further), weights)


# What a half takes of its own buffers, and of the other half's.
WEIGHTS = torch.tensor([[1.5, -0.75, 0.5], [-0.25, 0.5, 1.25]])


@pytest.mark.parametrize("name", ["default", "upsampling", "identity shortcut", "scale shift"])
@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_blend_whose_halves_take_from_each_other(name, batch, buffers):
    resnet = make_resnet(**RESNETS[name])
    hidden, skip, temb = (x.repeat(batch // 2, *(1,) * (x.dim() - 1)) for x in make_args(resnet))
    hidden = hidden + torch.linspace(-1, 1, batch)[:, None, None, None]
    blend = blend_of(resnet, hidden, WEIGHTS[:, :buffers].contiguous())
    swapped = [torch.cat(buffer.chunk(2)[::-1]) for buffer in blend.buffers]
    terms = [w * b for w, b in zip(blend.weights.flatten(), (*blend.buffers, *swapped), strict=True)]
    want = resnet(torch.cat([sum(terms), skip], 1), temb)
    torch.testing.assert_close(reference_join(resnet, blend, skip, temb), want, rtol=1e-5, atol=1e-5)
    with Ops() as ops:
        torch.testing.assert_close(fused(resnet, blend, skip, temb), want, rtol=1e-5, atol=1e-5)
    assert ops.names[:1] == ["cat_group_norm_silu"]
    # Neither row is left out.
    plain = resnet(torch.cat([sum(terms[:buffers]), skip], 1), temb)
    assert (plain - want).abs().max() > 1e-2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_join_hands_the_ops_the_weights_of_both_halves(backend):
    """One graph for all weights; each op gets the buffers as they are, and weights [2, 2]."""
    from torch._dynamo.backends.registry import lookup_backend

    taken = []

    def noting(graph, inputs):
        for node in graph.graph.nodes:
            if str(node.target).startswith("stepcache."):
                shapes = [tuple(a.meta["example_value"].shape) for a in node.args if isinstance(a, torch.fx.Node)]
                taken.append((str(node.target).split(".")[1], shapes.count((2, 16, 6, 8)), (2, 2) in shapes))
        return lookup_backend(backend)(graph, inputs)

    torch.compiler.reset()
    resnet = make_resnet()
    hidden, skip, temb = make_args(resnet)
    compiled = torch.compile(fused, backend=noting, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for weights in (WEIGHTS[:, :2].contiguous(), WEIGHTS[:, 1:].contiguous()):
            blend = blend_of(resnet, hidden, weights)
            want = reference_join(resnet, blend, skip, temb)
            torch.testing.assert_close(compiled(resnet, blend, skip, temb), want, rtol=1e-5, atol=1e-5)
    assert taken == [("cat_group_norm_silu", 2, True), ("dual_conv1x1", 2, True)]


def lora_on_the_shortcut(resnet):
    config = LoraConfig(r=2, target_modules=["conv_shortcut"], init_lora_weights=False)
    inject_adapter_in_model(config, resnet)
    resnet.requires_grad_(False)


def test_a_hook_and_an_adapter_on_the_second_convolution_are_applied():
    """Elsewhere it runs without its bias, which is added with the residual."""
    resnet = make_resnet()
    args = make_args(resnet)
    handle = resnet.conv2.register_forward_hook(lambda module, inputs, output: output * 2)
    want = resnet(torch.cat(args[:2], 1), args[2])
    torch.testing.assert_close(fused(resnet, *args), want, rtol=1e-5, atol=1e-5)
    handle.remove()
    plain = fused(resnet, *args)
    assert (want - plain).abs().max() > 1e-3
    config = LoraConfig(r=2, target_modules=["conv2"], init_lora_weights=False)
    inject_adapter_in_model(config, resnet)
    resnet.requires_grad_(False)
    want = resnet(torch.cat(args[:2], 1), args[2])
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(fused(resnet, *args), want, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_the_shortcut_is_applied():
    resnet = make_resnet()
    args = make_args(resnet)
    plain = fused(resnet, *args)
    lora_on_the_shortcut(resnet)
    want = resnet(torch.cat(args[:2], 1), args[2])
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(fused(resnet, *args), want, rtol=1e-5, atol=1e-5)


def training(resnet, args):
    resnet.train()


def gradients(resnet, args):
    resnet.requires_grad_(True)


def other_activation(resnet, args):
    resnet.nonlinearity = torch.nn.GELU()


def no_affine(resnet, args):
    resnet.norm1 = torch.nn.GroupNorm(4, 24, affine=False)


class Odd(ResnetBlock2D):
    def forward(self, x, temb):
        return super().forward(x, temb)


def other_forward(resnet, args):
    resnet.__class__ = Odd


def hooked_norm(resnet, args):
    resnet.norm1.register_forward_hook(lambda module, inputs, output: output * 2)


def hooked_shortcut(resnet, args):
    resnet.conv_shortcut.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def double(resnet, args):
    resnet.double()
    args[:] = [a.double() for a in args]


@pytest.mark.parametrize(
    "change", [training, gradients, other_activation, no_affine, other_forward, hooked_norm, hooked_shortcut, double]
)
def test_falls_back_to_the_reference(change):
    resnet = make_resnet(dropout=0.5)
    args = list(make_args(resnet))
    assert fusable(resnet, *args[:2])
    change(resnet, args)
    assert not fusable(resnet, *args[:2])
    torch.manual_seed(3)
    want = resnet(torch.cat(args[:2], 1), args[2])
    torch.manual_seed(3)
    assert torch.equal(fused(resnet, *args), want)


def test_falls_back_under_autocast_and_with_two_dtypes():
    resnet = make_resnet()
    hidden, skip, temb = make_args(resnet)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fusable(resnet, hidden, skip)
        assert torch.equal(fused(resnet, hidden, skip, temb), resnet(torch.cat([hidden, skip], 1), temb))
    assert not fusable(resnet, hidden, skip.half())
    assert fusable(resnet, hidden, skip)


class Ops(TorchDispatchMode):
    """Names of stepcache's ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func._schema.name.partition("::")
        self.names += [name] if namespace == "stepcache" else []
        return func(*args, **(kwargs or {}))


def test_only_the_wanted_joins(cats):
    asked = []
    join = fused_join(lambda shape: asked.append(shape) or False)
    resnet = make_resnet()
    join(resnet, *make_args(resnet))
    assert asked == [
        JoinShape("float32", "contiguous", 2, 16, 8, 12, 4, 6, 8, buffers=0, resnet="default Conv2d shortcut")
    ]
    assert cats == [2]


def test_shapes_tell_apart_what_takes_another_time():
    resnet = make_resnet()
    hidden, skip, _ = make_args(resnet)
    plain = shape_of(resnet, hidden, skip)
    blend = Blend((hidden, hidden), torch.ones(2))
    halves = Blend((hidden, hidden), torch.ones(2, 2))
    shapes = [
        plain,
        shape_of(resnet, blend, skip),
        shape_of(resnet, halves, skip),
        shape_of(resnet, hidden.half(), skip.half()),
        shape_of(resnet, hidden[:1], skip[:1]),
        shape_of(resnet, hidden[..., :4], skip[..., :4]),
        shape_of(resnet, hidden.to(memory_format=torch.channels_last), skip),
        *(shape_of(make_resnet(**RESNETS[name]), hidden, skip) for name in (
            "scale shift", "upsampling", "downsampling", "identity shortcut"
        )),
    ]  # fmt: skip
    assert len(set(shapes)) == len(shapes)
    assert str(shapes[1]) == "2 x 16 of 2 buffers + 8 -> 12 at 6 x 8"
    assert [shape.buffers for shape in shapes[:3]] == [0, 2, 4]
    # With weights in channels_last it convolves so, whatever comes in.
    resnet.to(memory_format=torch.channels_last)
    assert shape_of(resnet, hidden, skip).layout == "channels_last"


@pytest.mark.parametrize("name", UNETS)
def test_both_forwards_on_the_ops(name):
    unet = make_unet(name)
    family, inputs = family_of(unet), make_inputs(unet)
    with torch.no_grad():
        want = unet(**inputs).sample
        inputs = family.bind(**inputs).inputs
        layout = family.layout(unet)
        for branch in {0, 1, len(layout.joins) - 1}:
            cut = layout.cut(branch)
            output, feature = family.full(unet, cut, fused, **inputs)
            torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(family.partial(unet, cut, feature, fused, **inputs), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, embeddings", [("sd15", 2), ("sd21", 2), ("sdxl", 5)])
def test_no_concat_of_activations_is_left(name, embeddings):
    """The real architectures: of the stock graph's concats only those of the time embedding remain."""
    unet = narrow_unet(name)
    family, inputs = family_of(unet), zeros_for(unet)
    layout = family.layout(unet)
    for branch in (0, 1, len(layout.joins) - 1):
        cut = layout.cut(branch)
        (_, feature), full = counted(family.full, unet, cut, fused, **inputs)
        _, partial = counted(family.partial, unet, cut, feature, fused, **inputs)
        assert (full[2], partial[2]) == (embeddings, embeddings)


def test_freeu_comes_before_the_ops():
    unet = make_unet("least")
    family, inputs = family_of(unet), make_inputs(unet)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    with torch.no_grad():
        want = unet(**inputs).sample
        cut = family.layout(unet).cut(3)
        output, feature = family.full(unet, cut, fused, **family.bind(**inputs).inputs)
        kept = feature.clone()
        torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-4)
        again = family.partial(unet, cut, feature, fused, **family.bind(**inputs).inputs)
        torch.testing.assert_close(again, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(feature, kept)


@pytest.mark.parametrize(
    "options", [{}, {"compile": {"backend": "aot_eager"}}, {"cuda_graphs": StandInBackend}], ids=str
)
def test_a_whole_run_on_the_ops(options):
    pipe = loop_pipe("least", **NO_ATTENTION)
    want = accelerate(pipe, 3)(4)
    got = accelerate(pipe, 3, kernels=True, **options)(4)
    assert last_run(pipe).kinds == "FPPF"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    if not options:
        with Ops() as ops:
            pipe(3)
        # Four joins in the full step, one in each of two partial ones; each has a shortcut.
        assert ops.names == ["cat_group_norm_silu", "dual_conv1x1"] * (4 + 2)
    assert torch.equal(accelerate(pipe, 3, kernels="auto")(4), want)
    assert torch.equal(accelerate(pipe, 3, kernels=False)(4), want)


def test_the_ops_are_in_the_compiled_graphs():
    """Joins are decided while Dynamo traces: what it cannot see through would leave every graph on the concat."""
    ops = []

    def backend(graph, inputs):
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        ops.append([target.split(".")[1] for target in targets if target.startswith("stepcache.")])
        return graph

    pipe = loop_pipe("least", **NO_ATTENTION)
    want = accelerate(pipe, 3, predict="linear")(6)
    got = accelerate(pipe, 3, predict="linear", kernels=True, compile={"backend": backend})(6)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    join = ["cat_group_norm_silu", "dual_conv1x1"]
    assert ops == [join * 4, join]  # the full graph, and the partial one


def test_layer_hooks_are_not_bypassed(caplog):
    """The ops read weights without calling the layers, on which offloading hooks may sit."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = loop_pipe("least")
    want = accelerate(pipe, 3)(6)
    accelerate(pipe, 3, kernels=True)
    add_hook_to_module(pipe.unet.up_blocks[0].resnets[0].norm1, ModelHook())
    assert torch.equal(pipe(6), want)
    assert "Hooks on the layers of the U-Net offload" in caplog.text


def test_bad_setting():
    with pytest.raises(InvalidSetting, match=r"kernels must be .*got 'yes'"):
        accelerate(loop_pipe("least"), kernels="yes")

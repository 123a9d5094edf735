"""Prints counts of the CASES named on the command line as JSON.

It needs its own process: torch caches what it believes about the GPU.
"""

import json
import sys
import warnings

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from support.small import NO_ATTENTION, ONE_LEVEL, C, D, LoopPipe, make_unet

from benchmarks.engine import fake_h100, gpu_code
from benchmarks.engine import gpu_code_counts as counts
from benchmarks.engine.gpu_code_trace import Launch, OwnKernel, function_code, graph_code
from stepcache import accelerate
from stepcache.forwards.join import fused_join, reference_join
from stepcache.forwards.macs import branch_macs, meta_unet
from stepcache.graphs.options import CUDA_OPTIONS

SIZE = 16
OPTIONS = {"default": CUDA_OPTIONS, "torch": {}, "descent": gpu_code.DESCENT}


def half(*shape, channels_last=False):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=torch.half).to(memory_format=memory_format)


def counted(code, *options):
    """options: names of those to count configurations for, which takes a while."""
    relaid, copies, joined = counts.relaid_weights(code), counts.copies(code), counts.join_copies(code)
    read, written, extern = counts.traffic(code)
    return {
        "launches": [launch.kernel.name for launch in code.launches],
        "externs": counts.externs_by_kind(code),
        "relaid": [relaid.count, relaid.bytes],
        "copies": [copies.count, copies.bytes],
        "join copies": joined.count,
        "joins": counts.join_launches(code),
        "fills": counts.fills(code),
        "read": read,
        "written": written,
        "extern": extern,
        "flops": counts.flops(code),
        "bound_ms": counts.bound_ms(code),
        "configs": {name: [kernel.configs(OPTIONS[name]) for kernel in code.kernels.values()] for name in options},
    }


def convolution(channels_last):
    x, weight = half(2, 64, 32, 32, channels_last=True), half(128, 64, 3, 3, channels_last=channels_last)
    return counted(function_code(lambda x, w: F.conv2d(x, w, padding=1), [x, weight], [weight]))


def transposed():
    return counted(function_code(lambda x: x.t().contiguous(), [half(64, 32)]))


def filled():
    return counted(function_code(lambda x: (x * 2, 3 * torch.arange(64 * 32, device=x.device)), [half(64, 32)]))


def product():
    code = function_code(lambda x, w, b: torch.addmm(b, x, w) + 1, [half(64, 32), half(32, 16), half(16)])
    return counted(code, *OPTIONS)


def graph(kind, channels_last, **changes):
    unet = make_unet("least", **changes).half()
    accelerate(LoopPipe(unet, DDIMScheduler()), channels_last=channels_last)
    before = {name: (p.data_ptr(), p.stride()) for name, p in unet.named_parameters()}
    code = graph_code(unet, kind, reference_join, 0, gpu_code.inputs_of(unet, SIZE))
    left = {name: (p.data_ptr(), p.stride()) for name, p in unet.named_parameters()} == before
    (macs,) = branch_macs(meta_unet(unet.config), SIZE, SIZE, gpu_code.BATCH, [0])
    options = ("default", "torch") if channels_last else ()
    return {**counted(code, *options), "unet is as it was": left, "macs": getattr(macs, f"{kind}_macs")}


def on_the_ops(kind):
    """With linear projections, which leave attention's output contiguous: in the full step the deepest join gets it
    twice, as hidden state and as skip, and in the partial one the only join gets it as the feature."""
    blocks = {**NO_ATTENTION, "down_block_types": (D, C)} if kind == "full" else {}
    unet = make_unet("least", use_linear_projection=True, **blocks).half().to(memory_format=torch.channels_last)
    inputs = gpu_code.inputs_of(unet, SIZE)
    code = graph_code(unet, kind, fused_join(lambda shape: True), 0, inputs)
    latent = inputs["sample"].numel() * inputs["sample"].element_size()
    formats = {
        name: [call.tensors[name].is_contiguous(memory_format=torch.channels_last) for call in own]
        for own in [[call for call in code.launches if isinstance(call.kernel, OwnKernel)]]
        for name in ("h", "skip")
    }
    names = [call.kernel.name if isinstance(call, Launch) else call.name for call in code.calls]
    behind = [names[i - 1] for i, name in enumerate(names) if name.startswith("dual_conv1x1")]
    (macs,) = branch_macs(meta_unet(unet.config), SIZE, SIZE, gpu_code.BATCH, [0])
    return {
        **counted(code, "default", "torch"), "latent": latent, "formats": formats, "shortcuts behind": behind,
        "macs": getattr(macs, f"{kind}_macs"),
    }  # fmt: skip


CASES = {
    "convolution as loaded": lambda: convolution(channels_last=False),
    "convolution channels_last": lambda: convolution(channels_last=True),
    "transposed": transposed,
    "filled": filled,
    "product": product,
    "full channels_last": lambda: graph("full", True, **ONE_LEVEL),
    "partial channels_last": lambda: graph("partial", True, **ONE_LEVEL),
    "partial as loaded": lambda: graph("partial", False, **ONE_LEVEL),
    "full on the ops": lambda: on_the_ops("full"),
    "partial on the ops": lambda: on_the_ops("partial"),
}


def main():
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled|TRITON_DEFAULT_FP_FUSION")
    torch.set_num_threads(1)
    before = torch.cuda.is_available(), F.scaled_dot_product_attention, torch.cuda.get_device_properties
    results = {name: CASES[name]() for name in sys.argv[1:]}
    after = torch.cuda.is_available(), F.scaled_dot_product_attention, torch.cuda.get_device_properties
    results["undone"] = before == after
    with fake_h100.fake_h100():
        results["fake"] = torch.cuda.is_available()
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""The columns of `stepcache bench`: one row for each variant in each cell of the grid, whether it ran or not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchRow:
    """One variant in one cell. Where it did not run, `status` says why, and what was not measured is None.

    Seconds are medians over the repeats, with the 20th and 80th percentile; speed-ups are ratios within a repeat,
    against the variant of the same cell that their name says, and then the median.
    """

    model: str  # "demo", "sd15", "sd21", "sdxl", or the name of a pipeline's directory
    weights: str  # "trained", or "random": the real architecture, images mean nothing
    device: str  # "cuda" or "cpu"; the rig's columns say which one
    dtype: str  # "float32", "float16", "bfloat16"
    scheduler: str  # class in diffusers
    steps: int
    guidance: float
    height: int  # pixels
    width: int  # pixels
    batch: int  # images of a call; the U-Net's batch is twice that with guidance
    interval: int | None  # None where nothing is reused
    branch: int | None
    variant: str  # name of a rung of the ladder (variants.py)
    mode: str  # torch.compile's; "" where nothing is compiled, or with the options that accelerate() has itself
    status: str  # "ok", or why there are no figures: "out of memory ...", "failed: ...", "images are wrong: ...", ...
    kinds: str  # stepcache's own record of the U-Net calls, "FPPFPP..."; "" for other variants
    repeats: int  # those done
    first_call_s: float | None  # the first call of all, everything that is made only once included
    compile_s: float | None  # first_call_s less the later calls' median: compiling, capturing; None: does neither
    pipeline_s: float | None  # a whole call: text encoder, U-Net, VAE
    pipeline_s_p20: float | None
    pipeline_s_p80: float | None
    unet_s: float | None  # all U-Net calls of it together
    unet_s_p20: float | None
    unet_s_p80: float | None
    peak_memory_mib: float | None  # CUDA: most memory torch held in a warm call, graphs' pools included; CPU: None
    speedup: float | None  # of the whole call over eager
    unet_speedup: float | None  # of the U-Net over eager
    speedup_over_deepcache: float | None  # of the whole call over eager + DeepCache; None where nothing is reused
    flop_bound: float | None  # what skipping work alone can give the U-Net at most; 1 where nothing is reused
    share: float | None  # unet_speedup / flop_bound
    psnr: float | None  # dB, mean over the images, against eager's; inf where identical
    ssim: float | None
    graphs: int | None = None  # that torch.compile made in the first call; None where nothing is compiled
    graphs_cached: int | None = None  # those of them that it had on disk: not 0, and compile_s is no cold start's
    reference: str = ""  # the variant that computes the same uncompiled (agreement.py); "" where none ran
    difference: float | None = None  # of the images from the reference's, as a share of their contrast

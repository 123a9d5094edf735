"""The columns of `stepcache bench`: a row for each variant in each cell of the grid, whether it ran or not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchRow:
    """One variant in one cell. If it did not run, `status` says why, and what was not measured is None.

    Seconds are medians over the repeats, with the 20th and 80th percentile. Speed-ups are medians of ratios within a
    repeat, over the variant of the same cell that the column's name says.
    """

    model: str  # "demo", "sd15", "sd21", "sdxl", or the name of a pipeline's directory
    weights: str  # "trained", or "random": images mean nothing
    device: str  # "cuda" or "cpu"; the rig's columns name it
    dtype: str  # "float32", "float16", "bfloat16"
    scheduler: str  # a class of diffusers
    steps: int  # of the original; `fewer` has those of the variants with fewer steps
    guidance: float
    height: int  # pixels
    width: int  # pixels
    batch: int  # images per call; the U-Net's batch is twice that with guidance
    interval: int | None  # None without reuse; with fewer steps, of the reuse that costs no less
    branch: int | None
    variant: str  # name of a rung of the ladder (variants.py)
    mode: str  # of torch.compile; "" if nothing is compiled, or with the default options of accelerate()
    status: str  # "ok", or why there are no figures: "out of memory ...", "failed: ...", "images are wrong: ...", ...
    kinds: str  # stepcache's record of the U-Net calls, "FPPFPP..."; "" for other variants
    repeats: int  # finished ones
    first_call_s: float | None  # the first call, with everything that happens only once
    compile_s: float | None  # first_call_s minus the later calls' median; None if it compiled or captured nothing
    pipeline_s: float | None  # a whole call: text encoder, U-Net, VAE
    pipeline_s_p20: float | None
    pipeline_s_p80: float | None
    unet_s: float | None  # all its U-Net calls together
    unet_s_p20: float | None
    unet_s_p80: float | None
    peak_memory_mib: float | None  # CUDA: the most that torch held in a warm call, with graphs' pools; CPU: None
    speedup: float | None  # of the whole call over eager
    unet_speedup: float | None  # of the U-Net over eager
    speedup_over_deepcache: float | None  # of the whole call over eager + DeepCache; None without reuse
    flop_bound: float | None  # the U-Net's largest speed-up from skipping work alone; 1 without reuse
    share: float | None  # unet_speedup / flop_bound
    psnr: float | None  # dB, mean over the images, against eager's; inf if identical
    ssim: float | None
    graphs: int | None = None  # compiled in the first call; None if nothing is compiled
    graphs_cached: int | None = None  # how many of them were on disk; compile_s is a cold start's only if 0
    reference: str = ""  # the variant that computes the same uncompiled (agreement.py); "" if none ran
    difference: float | None = None  # of the images from the reference's, relative to their contrast
    predict: str = "hold"  # of stepcache's variants, as `--predict` takes it: "auto", "0.5", "1,-0.25"
    fewer: int | None = None  # the steps that "fewer steps" ran
    eager_s: float | None = None  # median of the whole call of eager, beside it: what `speedup` divides

"""Runs whose pipeline reads attention maps after each call are those of the original."""

import torch
from diffusers.models.attention_processor import AttnProcessor
from support.small import loop_pipe

from stepcache import accelerate, last_run
from stepcache.pipes.attention_maps import KEEPERS, keeper_of


class P2PCrossAttnProcessor(AttnProcessor):
    """Counts calls, as Prompt-to-Prompt's does, and leaves attention as it is."""

    calls = 0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


def test_what_diffusers_has_is_known():
    from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
        CrossAttnStoreProcessor,
    )
    from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
        Pix2PixZeroAttnProcessor,
    )
    from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import LEDITSCrossAttnProcessor

    names = {cls.__name__ for cls in (CrossAttnStoreProcessor, LEDITSCrossAttnProcessor, Pix2PixZeroAttnProcessor)}
    assert names | {"P2PCrossAttnProcessor"} == KEEPERS


def test_all_calls_are_stock_with_a_word(caplog):
    pipe = loop_pipe("least")
    assert keeper_of(pipe.unet.modules()) is None
    plain = pipe(6)
    layers = len(pipe.unet.attn_processors)
    deep = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    before, deep.processor = deep.processor, P2PCrossAttnProcessor()
    assert keeper_of(pipe.unet.modules()) == "P2PCrossAttnProcessor" and layers > 1
    want = pipe(6)
    P2PCrossAttnProcessor.calls = 0
    accelerate(pipe, interval=3)
    for _ in range(2):
        assert torch.equal(pipe(6), want)
        assert last_run(pipe).kinds == "SSSSSS" and last_run(pipe).buckets == []
    assert P2PCrossAttnProcessor.calls == 12
    assert caplog.text.count("P2PCrossAttnProcessor is on the U-Net") == 1
    deep.processor = before
    assert not torch.equal(pipe(6), plain)
    assert last_run(pipe).kinds == "FPPFPP"

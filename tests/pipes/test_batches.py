"""Whether half of a pipeline's batch can stand for guidance. Runs: tests/forwards/test_guidance.py."""

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from support.builders import sd
from support.cases import CASES
from support.small import loop_pipe, make_unet, tiny_pipe

from stepcache import accelerate
from stepcache.errors import UnsupportedPipeline
from stepcache.pipes.batches import HALVED, guided, whole_batches_only


def test_every_pipeline_with_halves_is_tried():
    assert {case.pipeline for case in CASES if case.error is None} >= HALVED


def test_it_is_asked_at_each_call():
    pipe = tiny_pipe()
    is_guided = guided(pipe)
    for scale, expected in ((3.0, True), (1.0, False), (7.5, True)):
        pipe._guidance_scale = scale
        assert is_guided() is expected


class OwnLoop(StableDiffusionPipeline):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class OwnName(StableDiffusionPipeline):
    pass


def test_a_subclass_counts_where_it_keeps_the_loop():
    pipe = tiny_pipe(OwnName)
    pipe._guidance_scale = 3.0
    assert guided(pipe)()
    with pytest.raises(UnsupportedPipeline, match=r"the loop of .*\.OwnLoop is not\. Known: AnimateDiff"):
        guided(tiny_pipe(OwnLoop))
    assert guided(accelerate(tiny_pipe(), guidance="reuse")) is not None  # whose class is stepcache's by then


@pytest.mark.parametrize("make", [loop_pipe, lambda: sd(StableDiffusionPAGPipeline, pag_applied_layers=["down"])])
def test_loops_of_another_batch_are_unknown(make):
    with pytest.raises(UnsupportedPipeline, match=r"known to be \[unconditional, conditional\]"):
        guided(make())


def test_a_name_of_diffusers_is_not_enough():
    fake = type("StableDiffusionPipeline", (), {"__call__": lambda self: None})
    with pytest.raises(UnsupportedPipeline):
        guided(fake())


class AcrossTheBatch(AttnProcessor):
    pass


def test_what_needs_the_whole_batch():
    unet = make_unet("least")
    assert whole_batches_only(unet) == ""
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = AcrossTheBatch()
    assert whole_batches_only(unet) == "AcrossTheBatch on the U-Net may look across the batch"
    layer = torch.nn.Linear(1, 1)
    layer.clip_embeds = torch.ones(2, 1)
    assert whole_batches_only(torch.nn.Sequential(layer)) == "Linear keeps embeddings of the whole batch"
    layer.clip_embeds = None
    assert whole_batches_only(torch.nn.Sequential(layer)) == ""

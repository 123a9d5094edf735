"""What packages are to be made of a pipe."""

import pickle

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from support.small import ATTENDED, loop_pipe, tiny_pipe

from stepcache import accelerate
from stepcache.errors import InvalidSetting
from stepcache.forwards.join_shape import JoinShape
from stepcache.graphs import settings as graph_settings
from stepcache.graphs.settings import GraphSettings
from stepcache.packages.switches import switches
from stepcache.run.attach import attachment_of
from stepcache.run.packaging import jobs_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def jobs_for(made):
    return jobs_of(made, attachment_of(made))


def test_a_job_is_small_and_holds_no_weights():
    made = accelerate(loop_pipe("least", **ATTENDED), 2, compile=False)
    made(2)
    jobs = list(jobs_for(made).made.values())
    assert [job.entry.program for job in jobs] == ["full", "partial"]
    assert all(parameter.is_meta for job in jobs for parameter in job.model.parameters())
    weights = sum(parameter.nbytes for parameter in made.unet.parameters())
    assert len(pickle.dumps(jobs[0])) < weights + 100_000
    for job in jobs:
        layouts = {name: tensor.stride() for name, tensor in job.model.named_parameters()}
        assert layouts == {name: tensor.stride() for name, tensor in made.unet.named_parameters()}
        assert job.entry.graph == {
            "branch": 0, "guidance": "both", "kernels": "auto", "joins": [], "options": {}, "switches": switches(),
        }  # fmt: skip


def test_idle_adapters_are_left_out():
    from peft import LoraConfig

    made = tiny_pipe(unet=ATTENDED)
    made.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]))
    made.unet.requires_grad_(False)
    made.unet.fuse_lora()
    accelerate(made, 2, compile=False)
    made("", num_inference_steps=2, output_type="latent", height=64, width=64)
    for job in jobs_for(made).made.values():
        assert not any("lora" in name or "base_layer" in name for name, _ in job.model.named_modules())
        assert set(job.state.weights) <= {name for name, _ in job.model.named_parameters()}
    assert any("lora" in name for name, _ in made.unet.named_modules())  # the user's own keeps them


def test_every_kind_of_input_is_a_job_of_its_own():
    made = accelerate(tiny_pipe(unet=ATTENDED), 2, compile=False)
    for batch in (1, 2, 1):
        made("a", num_inference_steps=2, output_type="latent", height=64, width=64, num_images_per_prompt=batch)
    embeds = torch.zeros(1, 5, 96)
    made(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=2, height=64, width=64)
    jobs = jobs_for(made)
    assert sorted(job.entry.what for job in jobs.made.values()) == [
        f"{program} graph {batch}x4x16x16" for program in ("full", "partial") for batch in (2, 2, 4)
    ]  # fmt: skip
    lengths = {job.entry.inputs["encoder_hidden_states"]["shape"][1] for job in jobs.made.values()}
    assert lengths == {5, made.tokenizer.model_max_length} and not jobs.reasons


def test_why_there_is_none():
    made = accelerate(loop_pipe("least", **ATTENDED), 2, compile=False)
    assert not jobs_for(made).made
    with torch.autocast("cpu", torch.bfloat16):
        made(2)
    assert not jobs_for(made).made
    made(2)
    made.unet.conv_in.table = torch.ones(1)
    jobs = jobs_for(made)
    assert not jobs.made and "full graph 2x4x16x16: conv_in.table is a tensor" in jobs.reasons[0]
    del made.unet.conv_in.table
    made.unet.lock = Uncopied()
    assert "cannot be copied: not me" in jobs_for(made).reasons[0]


class Uncopied:
    """Cannot be copied."""

    __module__ = "diffusers.made_up"

    def __init__(self):
        self.value = 1

    def __deepcopy__(self, memo):
        raise TypeError("not me")


def test_offloading_hooks_stay_behind():
    """They refer to the pipe's other models."""
    from accelerate import cpu_offload_with_hook

    made = accelerate(tiny_pipe(unet=ATTENDED), 2, compile=False)
    _, hook = cpu_offload_with_hook(made.text_encoder, "cpu")
    cpu_offload_with_hook(made.unet, "cpu", prev_module_hook=hook)
    try:
        made("", num_inference_steps=2, output_type="latent", height=64, width=64)
        jobs = jobs_for(made)
        assert len(jobs.made) == 2 and not jobs.reasons
        assert all(len(pickle.dumps(job)) < 1_000_000 for job in jobs.made.values())
        left = {"forward", "_hf_hook", "_old_forward"}
        assert not any(left & vars(module).keys() for job in jobs.made.values() for module in job.model.modules())
    finally:
        for model in (made.unet, made.text_encoder):
            remove_hook_from_module(model)


def test_layers_with_hooks_run_eager_so_there_is_nothing_to_make():
    made = accelerate(loop_pipe("least", **ATTENDED), 2, compile=False)
    made(2)
    made.unet.conv_in.register_forward_hook(torch.nn.Module.__repr__)
    assert "hooks on its layers" in jobs_for(made).reasons[0]


def test_buckets_of_another_dtype_are_not_of_this_unet():
    made = accelerate(loop_pipe("least", **ATTENDED), 2, compile=False)
    made(2)
    made.unet.double()
    assert not jobs_for(made).made and not jobs_for(made).reasons


def test_other_options_are_other_packages():
    found = []
    for options in ({}, {"max_autotune": True}):
        made = accelerate(loop_pipe("least", **ATTENDED), 2, compile={"options": options, "backend": "inductor"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GraphSettings, "compile_options", lambda self, device: None)  # runs eager
            made(2)
        found.append(list(jobs_for(made).made))
    assert len({*found[0], *found[1]}) == 4


def test_packages_are_inductors_with_the_pipes_options():
    assert GraphSettings(False).package_options(CPU) == {}
    mode = {"mode": "max-autotune", "options": None}
    assert GraphSettings(mode).package_options(CPU)["max_autotune"] is True
    options = {"options": {"max_autotune": True, "triton.cudagraphs": True}}
    assert GraphSettings(options).package_options(CPU) == {"max_autotune": True}
    with pytest.raises(InvalidSetting, match="'aot_eager'"):
        GraphSettings({"backend": "aot_eager"}).package_options(CPU)
    assert GraphSettings(False).package_options(CUDA) == GraphSettings().compile_options(CUDA)["options"]


def test_joins_of_packages_of_a_pipe_that_runs_eager(monkeypatch):
    """It has decided nothing itself; its packages run compiled and captured, by the verdicts there are."""
    shape = JoinShape("float16", "channels_last", 2, 8, 8, 8, 4, 16, 16, 0, "default")

    class Judge:
        class verdicts:
            for_triton = frozenset([shape])

    monkeypatch.setattr(graph_settings, "judge_of", lambda device: Judge)
    eager, none = {"compile": False, "cuda_graphs": False}, frozenset()
    assert GraphSettings(**eager).joins_ahead(CUDA, none) == {shape}
    assert GraphSettings(**eager).joins_ahead(CPU, none) == none
    assert GraphSettings(**eager, kernels=False).joins_ahead(CUDA, none) == none
    assert GraphSettings(**eager, kernels=True).joins_ahead(CUDA, none) is None
    assert GraphSettings().joins_ahead(CUDA, none) == none  # decided: without

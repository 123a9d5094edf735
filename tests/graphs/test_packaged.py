"""Runs from packages: the eager pipe's images with the weights of now, captured too, until the graph itself changes."""

import copy
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from support.changes import move_the_data, other_processor, replace_weight
from support.packages import HOW, eager, pipe
from support.small import engine_of, generate
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepcache import accelerate, last_run, restore
from stepcache.errors import NotCompiled
from stepcache.forwards import family_of
from stepcache.graphs.compiled import Compilations
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend
from stepcache.graphs.unet import UNetGraphs
from stepcache.packages import loaded
from stepcache.packages.store import open_packages
from stepcache.reuse.predict import Line
from stepcache.run.attach import attachment_of
from stepcache.run.packaging import jobs_of


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_eager_pipes_images_and_nothing_to_say(packages, caplog):
    made = pipe()
    want = eager(made)
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            close(generate(made), want)
    assert last_run(made).kinds == "FPFPFP" and last_run(made).compile_seconds == 0
    assert not caplog.records


def test_captured(packages):
    made = pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    want = [generate(made, seed=seed) for seed in (0, 1)]
    accelerate(made, **HOW, compiled=packages, compiled_only=True, cuda_graphs=StandInBackend)
    for captures in (2, 0, 0):
        assert torch.equal(generate(made), want[0])
        assert last_run(made).captures == captures
    assert torch.equal(generate(made, seed=1), want[1])
    (bucket,) = engine_of(made).unet_graphs.buckets.held.values()
    assert [graph.replays for graph in bucket.capture.backend.graphs] == [4 * 3, 4 * 3]


@pytest.mark.parametrize("cuda_graphs", [False, StandInBackend], ids=["uncaptured", "captured"])
@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.conv_in.weight.mul_(1.5),
        lambda unet: replace_weight(unet.conv_in),
        move_the_data,
        lambda unet: unet.load_state_dict({k: v * 1.1 for k, v in unet.state_dict().items()}, assign=True),
    ],
    ids=["updated in place", "replaced", "moved", "reloaded"],
)
def test_the_weights_are_those_of_now(packages, change, cuda_graphs, caplog):
    made = pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True, cuda_graphs=cuda_graphs)
    before = generate(made)
    with torch.no_grad():
        change(made.unet)
    got = generate(made)
    restore(made)
    close(got, eager(made))
    assert (got - before).abs().max() > 1e-3
    assert not caplog.records


def test_a_lora_fused_and_unfused(packages):
    """Fused into the weights it changes no graph. Beside them it does."""
    from peft import LoraConfig

    made, plain = pipe(), pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    before = generate(made)
    for each in (made, plain):
        torch.manual_seed(0)
        each.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        each.unet.requires_grad_(False)
    want = eager(plain)
    assert (want - before).abs().max() > 1e-3
    with pytest.raises(NotCompiled, match=r"to_q\S* was torch\S*Linear, here it is peft\S*Linear"):
        generate(made)
    made.unet.fuse_lora()
    close(generate(made), want)
    made.unet.unfuse_lora()
    with pytest.raises(NotCompiled, match="to_q"):
        generate(made)
    made.unet.disable_adapters()
    close(generate(made), before)
    made.unet.enable_adapters()
    made.unet.fuse_lora()
    close(generate(made), want)
    made.unet.unload_lora()
    close(generate(made), want)


@pytest.mark.parametrize(
    ("change", "undo", "word"),
    [
        (other_processor, lambda unet: unet.set_attn_processor(AttnProcessor2_0()), "AttnProcessor"),
        (lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4), lambda unet: unet.disable_freeu(), "s1"),
    ],
    ids=["processors", "FreeU"],
)
def test_another_graph_is_noticed_and_compiled_as_usual(packages, change, undo, word, caplog):
    made = pipe()
    backends = []

    def backend(graph, inputs):
        backends.append(graph)
        return graph.forward

    accelerate(made, **HOW, compiled=packages, compile={"backend": backend})
    before = generate(made)
    assert not backends
    change(made.unet)
    got = generate(made)
    assert len(backends) == 2
    said = [message for message in caplog.messages if "is compiled as usual" in message]
    assert len(said) == 2 and all(word in message for message in said)
    undo(made.unet)
    close(generate(made), before)
    change(made.unet)
    restore(made)
    close(got, eager(made))
    undo(made.unet)
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    change(made.unet)
    with pytest.raises(NotCompiled, match=word):
        generate(made)
    undo(made.unet)
    close(generate(made), before)


def test_changed_in_the_middle_of_a_run(packages):
    """A callback switches FreeU on after the first full step: what runs then is eager, with FreeU."""

    def callback(made, i, t, kwargs):
        if i == 1:
            made.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
        return kwargs

    made = pipe()
    accelerate(made, **HOW, compile=False)
    want = generate(made, callback_on_step_end=callback)
    made.unet.disable_freeu()
    accelerate(made, **HOW, compiled=packages)
    close(generate(made, callback_on_step_end=callback), want)


def test_a_size_without_a_package(packages, caplog):
    made = pipe()
    accelerate(made, **HOW, compiled=packages)
    generate(made, height=32, sized=False, width=64)
    said = [message for message in caplog.messages if "2x4x8x16 does not run from a package" in message]
    assert len(said) == 2 and all("sample 2x4x8x16, timestep 1, " in text and "It runs eager" in text for text in said)
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    with pytest.raises(NotCompiled, match="2x4x8x16"):
        generate(made, height=32, sized=False, width=64)
    close(generate(made), eager(pipe()))


def test_torchs_switches_are_noticed(packages):
    made = pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    want = generate(made)
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(NotCompiled, match="switches"):
        generate(made)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(NotCompiled, match="'deterministic': True"):
            generate(made)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(generate(made), want)


def test_a_layers_class_is_changed(packages):
    made = pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    generate(made)
    made.unet.conv_act.__class__ = torch.nn.ReLU
    with pytest.raises(NotCompiled, match="ReLU"):
        generate(made)


def test_packages_for_another_device_are_not_run(packages):
    """The U-Net was moved after `accelerate`. The meta device stands for a GPU."""
    made = pipe()
    accelerate(made, **HOW, compile=False)
    generate(made)
    inputs = next(iter(jobs_of(made, attachment_of(made)).made.values())).inputs
    made.unet.to("meta")
    graphs = graphs_of(made, packages)
    bucket = graphs.bucket(inputs, True)
    with torch.no_grad(), pytest.raises(NotCompiled, match="the model is on meta"):
        graphs.run("full", made.unet, bucket, inputs, bucket.kept(0), 0)


def test_a_request_that_is_refused_costs_no_other_size_its_graphs(packages):
    made = pipe()
    settings = {"compiled": packages, "compiled_only": True, "cuda_graphs": StandInBackend, "max_buckets": 1}
    accelerate(made, **HOW, **settings)
    generate(made)
    with pytest.raises(NotCompiled):
        generate(made, height=32, sized=False, width=64)
    generate(made)
    assert last_run(made).captures == 0


def test_interval_1_needs_no_partial_package(packages, tmp_path):
    folder = shutil.copytree(packages, tmp_path / "packages")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["packages"] = [each for each in manifest["packages"] if each["program"] == "full"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    made = pipe()
    accelerate(made, **{**HOW, "interval": 1}, compiled=folder, compiled_only=True)
    close(generate(made), eager(pipe(), interval=1))
    accelerate(made, **HOW, compiled=folder, compiled_only=True)
    with pytest.raises(NotCompiled, match="partial graph"):
        generate(made)


def test_pipes_and_threads_share_one_package(packages):
    pipes = [pipe(), pipe()]
    with torch.no_grad():
        pipes[1].unet.conv_in.weight.mul_(1.5)
    want = [eager(made) for made in pipes]
    for made in pipes:
        accelerate(made, **HOW, compiled=packages, compiled_only=True)
    copies = [copy.copy(made) for made in pipes * 3]
    for made in copies:
        made.scheduler = type(made.scheduler).from_config(made.scheduler.config)
        made.tokenizer = copy.deepcopy(made.tokenizer)  # not thread-safe
    with ThreadPoolExecutor(6) as pool:
        for got, wanted in zip(pool.map(generate, copies), want * 3, strict=True):
            close(got, wanted)
    gc.collect()
    assert len(loaded._loaded) == 2  # one for the full, one for the partial step


def test_nothing_holds_weights_of_a_pipe_that_is_gone(packages):
    """AOTInductor's own way to share weights (user-managed constants) holds them for ever."""
    made, other = pipe(), pipe()
    for each in (made, other):
        accelerate(each, **HOW, compiled=packages, compiled_only=True)
        generate(each)
    old = weakref.ref(made.unet.conv_in.weight)
    replace_weight(made.unet.conv_in)
    generate(made)
    gc.collect()
    assert old() is None
    weights = [weakref.ref(parameter) for parameter in made.unet.parameters()]
    del made
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    generate(other)


def test_inputs_and_kept_values_in_another_layout_are_copied(packages):
    """A package checks no strides."""
    made = pipe()
    accelerate(made, **HOW, compile=False)
    generate(made)
    full, partial = jobs_of(made, attachment_of(made)).made.values()
    graphs, results = graphs_of(made, packages), []
    torch.manual_seed(0)
    inputs = {name: torch.rand(tensor.shape) for name, tensor in full.inputs.items()}
    for layout in (torch.contiguous_format, torch.channels_last):
        given = {**inputs, "sample": inputs["sample"].contiguous(memory_format=layout)}
        bucket = graphs.bucket(given, True)
        kept = bucket.kept(0)
        kept.begin(None)
        with torch.no_grad():
            output = graphs.run("full", made.unet, bucket, given, kept, 0)
            for value in kept.values:
                value.tensors = tuple(tensor.contiguous(memory_format=layout) for tensor in value.tensors)
            kept.mark(None, 0)
            results.append((output, graphs.run("partial", made.unet, bucket, given, kept, 0)))
    assert partial.entry.program == "partial" and len(graphs.buckets.held) == 2
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def graphs_of(made, packages):
    """Graphs of the pipe's U-Net with these packages only, outside of a run."""
    family = family_of(made.unet)
    settings = GraphSettings(packages=open_packages(packages, only=True))
    return UNetGraphs(family, family.layout(made.unet).cut(0), settings, 4, Line(1.0))


def test_each_run_at_a_time_has_its_own(packages):
    """Which compile for themselves, and count it, where there is no package."""
    made = pipe()
    accelerate(made, **HOW, compile=False)
    generate(made)
    inputs = next(iter(jobs_of(made, attachment_of(made)).made.values())).inputs
    small = {**inputs, "sample": inputs["sample"][:, :, :8]}
    family, compilations = family_of(made.unet), Compilations()
    settings = GraphSettings(packages=open_packages(packages))
    for _ in range(2):
        graphs = UNetGraphs(family, family.layout(made.unet).cut(0), settings, 4, Line(1.0), compilations)
        packaged, other = graphs.bucket(inputs, True), graphs.bucket(small, True)
        assert packaged.is_packaged and not packaged.is_plain
        assert other.is_plain and not other.is_packaged


def test_not_under_autocast(packages, caplog):
    made = pipe()
    accelerate(made, **HOW, compiled=packages)
    with torch.autocast("cpu", torch.bfloat16):
        generate(made)
    assert "without autocast" in caplog.text
    close(generate(made), eager(pipe()))


SCRIPT = """
import sys, torch
from support.packages import HOW, pipe
from support.small import generate
from stepcache import accelerate, last_run

torch.set_num_threads(1)
torch.set_flush_denormal(True)
made = pipe()
accelerate(made, **HOW, compiled=sys.argv[1], compiled_only=True)
torch.save(generate(made), sys.argv[2])
assert last_run(made).compile_seconds == 0
from torch._dynamo.utils import counters
assert not counters["stats"], counters
print("Inductor was imported:", "torch._inductor.compile_fx" in sys.modules)
"""


def test_the_next_process_compiles_nothing(packages, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "CXX": "/bin/false"}
    command = [sys.executable, "-c", SCRIPT, str(packages), str(tmp_path / "image.pt")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "imported: False" in process.stdout
    close(torch.load(tmp_path / "image.pt"), eager(pipe()))

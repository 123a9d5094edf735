"""What is compiled: the program itself, with the weights as inputs; and packages for real, in `make slow`."""

import pickle

import pytest
import torch
from support.packages import shared_folder
from support.small import ATTENDED, generate, loop_pipe, sdxl_pipe, tiny_pipe
from support.vaes import decode, make_graphs, make_latents, make_vae

from stepcache import accelerate, last_run, restore, save_compiled
from stepcache.forwards.nested import map_tensors, tensors_of
from stepcache.graphs.jobs import Jobs
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend
from stepcache.packages.job import exported
from stepcache.packages.spec import strides_of
from stepcache.packages.state import weights_of
from stepcache.run.attach import attachment_of
from stepcache.run.packaging import jobs_of


def jobs_for(made):
    return list(jobs_of(made, attachment_of(made)).made.values())


def ran(made, *call, **settings):
    """The pipe after a run, its last U-Net inputs kept by the test's own eyes."""
    accelerate(made, 2, compile=False, **settings)
    made(*call) if call else generate(made, 2)
    return made


PIPES = {
    "halves and a blend": lambda: ran(tiny_pipe(unet=ATTENDED), predict="linear", guidance="reuse"),
    "halves apart": lambda: ran(tiny_pipe(unet=ATTENDED), predict=(1, -0.25)),
    "SDXL": lambda: ran(sdxl_pipe()),
    "Triton joins": lambda: ran(loop_pipe("least"), 2, kernels=True),
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.slow] * (name == "SDXL"), id=name) for name, make in PIPES.items()]
)
def test_what_is_traced_computes_the_program(make):
    made = make()
    for job in jobs_for(made):
        job = pickle.loads(pickle.dumps(job))  # as the compiler's process gets it
        assert all(tensor.is_meta for tensor in (*job.model.parameters(), *tensors_of(job.inputs)))
        program = exported(job)
        assert not program.state_dict and not program.constants  # the weights are inputs
        generator = torch.Generator().manual_seed(0)

        def random(like, generator=generator):
            tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
            return tensor.copy_(torch.rand(like.shape, generator=generator).to(like.dtype))

        kept, inputs = map_kept(random, job.kept), map_tensors(random, job.inputs)
        weights = weights_of(made.unet, job.state.weights)
        with torch.no_grad():
            got = program.module()(weights, tensors_of(kept), tensors_of(inputs))
            output, values = job.compute()(made.unet, kept, inputs)
        for tensor, want in zip(got, (output, *values), strict=True):
            torch.testing.assert_close(tensor, want, rtol=1e-5, atol=1e-5)
        ops = {str(node.target) for node in program.graph.nodes}
        assert any("stepcache" in op for op in ops) == (job.joins is None)


def map_kept(function, kept):
    return tuple(
        type(value)(tuple(map(function, value.buffers)), function(value.weights))
        if hasattr(value, "buffers")
        else function(value)
        for value in kept
    )


def test_a_partial_steps_package_takes_only_the_weights_it_reads():
    full, partial = jobs_for(ran(loop_pipe("least"), 2))
    assert set(partial.state.weights) < set(full.state.weights)
    assert not any(name.startswith("mid_block") for name in partial.state.weights)
    assert len(strides_of(partial.entry.kept)) == 1 and not full.entry.kept


# For real. Each compiles for most of a minute.


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    def make(folder):
        made = ran(loop_pipe("least", **ATTENDED), 2, kernels=True)
        save_compiled(made, folder, progress=False)

    return shared_folder(tmp_path_factory, "joined", make)


@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, StandInBackend], ids=["uncaptured", "captured"])
def test_packages_with_triton_joins(joined, cuda_graphs):
    made = loop_pipe("least", **ATTENDED)
    want = accelerate(made, 2, compile=False)(6)
    # "auto" takes what was measured elsewhere, and so never imports the ops itself.
    accelerate(made, 2, compiled=joined, compiled_only=True, cuda_graphs=cuda_graphs)
    for _ in range(2):
        torch.testing.assert_close(made(6), want, rtol=1e-4, atol=1e-5)
    assert last_run(made).kinds == "FPFPFP"


@pytest.mark.slow
def test_the_compiled_paths_images(packages):
    """Just in time and ahead of time: the same kernels."""
    from support.packages import HOW, pipe

    made = pipe()
    accelerate(made, **HOW, compile=True)
    want = generate(made)
    assert last_run(made).compile_seconds > 0
    restore(made)
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    torch.testing.assert_close(generate(made), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_decoders_package(tmp_path):
    from stepcache.packages.build import build
    from stepcache.packages.folder import Writer
    from stepcache.packages.maker import maker_of
    from stepcache.packages.store import open_packages

    vae, latents = make_vae(), make_latents()
    with torch.no_grad():
        want = vae.decode(latents)[0]
    graphs, jobs = make_graphs(GraphSettings(False)), Jobs()
    assert torch.equal(decode(graphs, vae, latents), want)
    graphs.add_jobs(vae.decoder, jobs)
    build(list(jobs.made.values()), Writer(tmp_path, maker_of(torch.device("cpu"))), lambda *told: None)
    for cuda_graphs in (False, StandInBackend):
        settings = GraphSettings(False, cuda_graphs, packages=open_packages(tmp_path, only=True))
        graphs = make_graphs(settings)
        for _ in range(2):
            torch.testing.assert_close(decode(graphs, vae, latents), want, rtol=1e-5, atol=1e-5)
        assert graphs.costs.captures == (cuda_graphs is StandInBackend)

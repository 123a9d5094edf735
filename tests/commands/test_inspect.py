import json
import re
import shutil

import pytest
import torch

from stepcache import cli
from stepcache.commands.inspect import latent_size, what_runs
from stepcache.forwards import family_of, macs
from stepcache.forwards.macs import meta_unet
from stepcache.images.unet_configs import BUNDLED, read_config
from stepcache.packages.folder import read_manifest

TINY = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [4] * 4}))
    return tmp_path


def inspect(capsys, *arguments):
    """(exit status, output, errors) of `stepcache inspect`."""
    status = cli.main(["inspect", *map(str, arguments)])
    return status, *capsys.readouterr()


def line_of(output, branch):
    """The line of a branch, its columns separated by single blanks."""
    (line,) = (line for line in output.splitlines() if re.match(rf"{branch}\s", line))
    return " ".join(line.split())


def test_stable_diffusion_15(capsys, monkeypatch):
    # Each branch takes a second to count.
    branch_macs = macs.branch_macs
    monkeypatch.setattr(macs, "branch_macs", lambda *args: branch_macs(*args, branches=(0, 1, 11)))
    status, output, errors = inspect(capsys, "sd15")
    assert (status, errors) == (0, "")
    assert "860 M parameters" in output
    assert "latents of 64x64, for an image of 512x512 px.\n" in output
    assert "Full step: 401.6 GMACs." in output
    assert line_of(output, 0) == (
        "0 31.6 7.9 % 1.85x 2.59x 3.80x 320x64x64 2.62 conv_in; up 3: resnet 2, attention 2; conv_out"
    )
    assert line_of(output, 1).startswith(
        "1 90.1 22.4 % 1.63x 2.07x 2.64x 320x64x64 2.62 + down 0: resnet 0, attention 0;"
    )
    assert line_of(output, 11).endswith("1280x8x8 0.164 + down 3: resnet 1; up 0: resnet 0")


def test_what_each_branch_of_sdxl_adds():
    unet = meta_unet(read_config("sdxl"))
    layout = family_of(unet).layout(unet)
    assert [what_runs(unet, layout, branch) for branch in range(4)] == [
        "conv_in; up 2: resnet 2; conv_out",
        "+ down 0: resnet 0; up 2: resnet 1",
        "+ down 0: resnet 1; up 2: resnet 0",
        "+ down 0: downsampler; up 1: resnet 2, attention 2, upsampler",
    ]


# Block types and what else the config has then, beside TINY's; branches that the U-Net has.
KINDS = {
    "cross-attention": (["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"], {}, 4),
    "self-attention": (["AttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "AttnUpBlock2D"], {}, 4),
    "k": (
        ["KDownBlock2D", "KCrossAttnDownBlock2D"],
        ["KCrossAttnUpBlock2D", "KUpBlock2D"],
        {"block_out_channels": [32, 32], "mid_block_type": None, "layers_per_block": 2, "time_embedding_dim": 32},
        1,
    ),
    "ncsn++": (
        ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
        ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
        {"_class_name": "UNet2DModel", "block_out_channels": [32, 32]},
        4,
    ),
}


@pytest.mark.parametrize(("kind", "branch"), [(kind, m) for kind, (*_, n) in KINDS.items() for m in range(n)])
def test_the_words_are_what_a_partial_step_runs(kind, branch):
    """Every ResNet, attention and sampler that the words of branches 0..m name is called, and no other one."""
    from stepcache.forwards.macs import example_inputs

    down, up, settings, branches = KINDS[kind]
    unet = meta_unet({**TINY, "down_block_types": down, "up_block_types": up, **settings})
    family = family_of(unet)
    layout, inputs = family.layout(unet), example_inputs(unet, 8, 8)
    assert len(layout.joins) == branches
    called = set()
    for path, module in unet.named_modules():
        if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnet|attention|downsampler|upsampler)s\.(\d)", path):
            way, block, part, i = match.groups()
            name = f"{way} {block}: {part}" + ("" if "sampler" in part else f" {i}")
        elif match := re.fullmatch(r"up_blocks\.(\d)\.resnet_up", path):  # NCSN++'s upsampler of the hidden state
            name = f"up {match[1]}: upsampler"
        else:
            continue
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad():
        _, feature = family.full(unet, layout.cut(branch), **inputs)
        called.clear()
        family.partial(unet, layout.cut(branch), feature, **inputs)
    named = set()
    for m in range(branch + 1):
        for words in what_runs(unet, layout, m).removeprefix("+ ").split("; "):
            where, _, things = words.partition(": ")
            named |= {f"{where}: {thing}" for thing in things.split(", ") if thing}
    assert named == called


def test_size_batch_and_intervals(pipeline, capsys):
    status, output, _ = inspect(capsys, pipeline, "--size", "128x64", "--batch", "2", "--interval", "4,2")
    assert status == 0
    assert "batch 2 on latents of 16x8, for an image of 128x64 px.\n" in output
    assert re.search(r"I=4\s+I=2", output) and "I=3" not in output
    assert "8x16x8" in line_of(output, 0)


def document_of(capsys, *arguments):
    status, output, errors = inspect(capsys, *arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output, parse_constant=pytest.fail)


def test_the_document_has_what_the_table_has(pipeline, capsys):
    options = (pipeline, "--size", "128x64", "--batch", "2", "--interval", "4,2")
    document = document_of(capsys, *options)
    branches = document.pop("branches")
    parameters, full = document["parameters"], document["full_macs"]
    assert document == {
        "unet": str(pipeline), "class": "UNet2DConditionModel", "parameters": parameters, "batch": 2,
        "latent_height": 16, "latent_width": 8, "full_macs": full,
    }  # fmt: skip
    _, text, _ = inspect(capsys, *options)
    assert f"{parameters / 1e6:.0f} M parameters" in text and f"Full step: {full / 1e6:.1f} MMACs." in text
    assert [each["branch"] for each in branches] == [0, 1, 2, 3]
    for each in branches:
        line = line_of(text, each["branch"])
        macs, share, bounds = each["partial_macs"], each["share"], each["bounds"]
        assert line.startswith(f"{each['branch']} {macs / 1e6:.1f} {100 * share:.1f} % {bounds['4']:.2f}x")
        assert share == macs / full and list(bounds) == ["4", "2"] and bounds["2"] == 2 / (1 + share)
        batch, *shape = each["feature_shape"]
        assert batch == 2 and f"x {'x'.join(map(str, shape))} {each['feature_fp16_bytes'] / 1e6:.3g} " in line
        assert line.endswith("; ".join(each["adds"])) and set(each) == {
            "branch", "partial_macs", "share", "bounds", "feature_shape", "feature_fp16_bytes", "adds"
        }  # fmt: skip


def test_the_document_of_a_folder_of_packages(packages, tmp_path, capsys):
    folder = shutil.copytree(packages, tmp_path / "packages")
    (full,) = folder.glob("full*.pt2")
    full.write_bytes(b"")
    document = document_of(capsys, folder)
    entries = {entry.what: entry for entry in read_manifest(folder).packages}
    assert set(document) == {"folder", "bytes", "made_with", "packages"} and document["folder"] == str(folder)
    assert document["made_with"]["torch"] == torch.__version__
    assert document["bytes"] == sum(each["bytes"] for each in document["packages"])
    for each in document["packages"]:
        entry = entries[each["graph"]]
        assert (each["bytes"], each["compile_seconds"]) == (entry.nbytes, entry.seconds)
        assert each["settings"][:2] == ["UNet2DConditionModel", "float32"] and each["joins"] == 0
        broken = each["graph"].startswith("full")
        assert each["sound"] is not broken and ("has 0 bytes" in (each["damage"] or "")) is broken
        assert len(each) == 7


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_configs_are_read_and_have_a_size(name):
    height, width = latent_size(None, read_config(name), 8)
    assert height == width == {"sd15": 64, "sd21": 96, "sdxl": 128, "sdxl-refiner": 128}[name]


@pytest.mark.parametrize(
    ("size", "latents"), [("512", (64, 64)), ("512x768", (64, 96)), ("768X512", (96, 64)), ("8", (1, 1))]
)
def test_size_is_a_multiple_of_the_latents(size, latents):
    assert latent_size(size, {}, 8) == latents
    assert latent_size(size, {}, 4) == tuple(2 * side for side in latents)
    assert latent_size(size, {}, 1) == tuple(8 * side for side in latents)


@pytest.mark.parametrize(("sample_size", "latents"), [(32, (32, 32)), ([32, 48], (32, 48))])
def test_size_defaults_to_the_config(sample_size, latents):
    assert latent_size(None, {"sample_size": sample_size}, 4) == latents


def test_the_demo_and_its_own_vae(capsys):
    status, output, _ = inspect(capsys, "demo")
    assert status == 0 and output.startswith("demo: UNet2DConditionModel, ")
    assert "batch 1 on latents of 16x16, for an image of 64x64 px.\n" in output
    assert " 96x2x2 0.000768 + down 3: resnet 1" in line_of(output, 11)  # a feature of 768 bytes


def test_a_pipeline_without_a_vae_works_on_pixels(pipeline, capsys):
    shutil.rmtree(pipeline / "vae")
    assert "batch 1 on an image of 8x8 px.\n" in inspect(capsys, pipeline)[1]
    assert document_of(capsys, pipeline, "--size", "16")["latent_height"] == 16


def test_a_config_without_its_pipeline(pipeline, capsys):
    config = shutil.copy(pipeline / "unet" / "config.json", pipeline / "mine.json")
    for name in (pipeline / "unet", pipeline / "unet" / "config.json"):
        assert "for an image of 64x64 px.\n" in inspect(capsys, name)[1]
    assert "of 8x8, for an image of 64x64 px if the VAE's factor is 8.\n" in inspect(capsys, config)[1]


@pytest.mark.parametrize("size", ["500", "0", "-8", "8x8x8", "512x", "big", "512.0", "512x4"])
def test_bad_sizes(size, capsys):
    status, output, errors = inspect(capsys, "sd15", f"--size={size}")
    assert (status, output) == (2, "")
    assert repr(size) in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--batch", "0"], "--batch must be an integer of at least 1, got 0"), (["--interval", "2,0"], "got 0")],
)
def test_bad_settings(arguments, words, capsys):
    status, output, errors = inspect(capsys, "sd15", *arguments)
    assert (status, output) == (2, "")
    assert words in errors


def test_no_size_anywhere(pipeline, capsys):
    (pipeline / "unet" / "config.json").write_text(json.dumps({**TINY, "sample_size": None}))
    assert inspect(capsys, pipeline)[0] == 2
    assert inspect(capsys, pipeline, "--size", "64")[0] == 0


def bad_places(tmp_path):
    def config(name, content):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "config.json").write_text(content)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    (tmp_path / "flux" / "transformer").mkdir(parents=True)
    blocks = {**TINY, "up_block_types": ["UpDecoderBlock2D", "CrossAttnUpBlock2D"]}
    return {
        "absent": (tmp_path / "absent", "nothing is downloaded"),
        "empty": (tmp_path / "empty", "has no unet/config.json"),
        "transformer": (tmp_path / "flux", "is a pipeline with a transformer. stepcache is for U-Nets"),
        "broken": (config("broken", '{"sample_size": 8,'), "config.json is not JSON"),
        "binary": (config("binary", "\x00\x01"), "config.json is not JSON"),
        "list": (config("list", "[1, 2]"), "it has no _class_name"),
        "nameless": (config("nameless", "{}"), "it has no _class_name"),
        "vae": (config("vae", '{"_class_name": "AutoencoderKL"}'), "AutoencoderKL is not a U-Net that stepcache knows"),
        "block": (config("block", json.dumps(blocks)), "up_blocks.0 is a UpDecoderBlock2D"),
        "wrong": (config("wrong", json.dumps({**TINY, "block_out_channels": [8]})), "diffusers cannot build"),
        "size": (config("size", json.dumps({**TINY, "sample_size": "8"})), "sample_size must be an integer"),
        "widths": (
            config("widths", json.dumps({**TINY, "cross_attention_dim": [12, 16]})),
            "cross_attention_dim=[12, 16]",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "absent",
        "empty",
        "transformer",
        "broken",
        "binary",
        "list",
        "nameless",
        "vae",
        "block",
        "wrong",
        "size",
        "widths",
    ],
)
def test_bad_unets_are_named_with_the_way_out(case, tmp_path, capsys):
    path, words = bad_places(tmp_path)[case]
    status, output, errors = inspect(capsys, path)
    assert (status, output) == (2, "")
    assert errors.startswith("stepcache: ") and words in errors


def test_a_file_that_cannot_be_read(pipeline, capsys):
    (pipeline / "unet" / "config.json").unlink()
    (pipeline / "unet" / "config.json").mkdir()
    status, _, errors = inspect(capsys, pipeline)
    assert status == 2
    assert "Is a directory" in errors

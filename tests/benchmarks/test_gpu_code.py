"""Counts of the code that Inductor generates for a GPU: of functions with known counts, and of a small U-Net."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine import gpu_code
from stepcache.bench.rows import read, write

CASES = Path(__file__).parents[1] / "support" / "gpu_code_cases.py"
HALF = 2  # bytes


def counts_of(*names):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, str(CASES), *names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def counted():
    convolutions = "convolution as loaded", "convolution channels_last"
    graphs = "partial channels_last", "full on the ops", "partial on the ops"
    return counts_of(*convolutions, "transposed", "filled", "product", *graphs)


@pytest.fixture(scope="module")
def counted_slowly():
    return counts_of("full channels_last", "partial channels_last", "partial as loaded")


def test_a_weight_in_another_layout_than_its_input_is_relaid(counted):
    loaded, channels_last = counted["convolution as loaded"], counted["convolution channels_last"]
    weight, image, output = 128 * 64 * 9 * HALF, 2 * 64 * 32 * 32 * HALF, 2 * 128 * 32 * 32 * HALF
    assert loaded["relaid"] == [1, weight] and len(loaded["launches"]) == 1
    assert (loaded["read"], loaded["written"]) == (weight, weight)
    assert channels_last["relaid"] == [0, 0] and channels_last["launches"] == []
    for case in (loaded, channels_last):
        assert case["externs"] == "convolution 1"
        assert case["extern"] == image + weight + output
        assert case["flops"] == 2 * 128 * 64 * 9 * 2 * 32 * 32
        assert case["copies"] == [0, 0] and case["fills"] == 0
    # This convolution is limited by its FLOPs; copying the weight by bandwidth.
    assert channels_last["bound_ms"] == pytest.approx(1e3 * channels_last["flops"] / 800e12)
    assert loaded["bound_ms"] - channels_last["bound_ms"] == pytest.approx(1e3 * 2 * weight / 3.05e12)


def test_a_copy_is_no_relaid_weight(counted):
    case, size = counted["transposed"], 64 * 32 * HALF
    assert case["copies"] == [1, size] and case["relaid"] == [0, 0] and case["externs"] == ""
    assert (case["read"], case["written"], case["fills"]) == (size, size, 0)


def test_what_reads_nothing_is_a_fill(counted):
    case = counted["filled"]
    assert len(case["launches"]) == 2 and case["fills"] == 1 and case["copies"] == [0, 0]
    assert case["written"] == 64 * 32 * (HALF + 8) and case["read"] == 64 * 32 * HALF


def test_a_matrix_product_and_what_is_fused_behind_it(counted):
    case = counted["product"]
    assert case["externs"] == "addmm 1" and len(case["launches"]) == 1 and case["copies"] == [0, 0]
    assert case["flops"] == 2 * 64 * 32 * 16
    assert case["extern"] == HALF * (64 * 32 + 32 * 16 + 16 + 64 * 16)
    # Inductor's 1-d kernels have two configurations, and an option takes only the first.
    assert case["configs"] == {"default": [1], "torch": [2], "descent": [9]}


@pytest.mark.parametrize(("kind", "joins"), [("full", 4), ("partial", 1)])
def test_joins_on_the_ops_cost_their_launches_and_nothing_else(counted, kind, joins):
    case = counted[f"{kind} on the ops"]
    assert len(case["joins"]) == joins and set(case["joins"]) <= {2, 3}  # one or two for the norm, one for the shortcut
    assert case["join copies"] == 0 and case["fills"] == 0
    # Hidden states and skips arrive in channels_last. Only the latent is re-laid, at the input.
    assert all(case["formats"]["h"]) and all(case["formats"]["skip"])
    assert case["copies"] == [1, case["latent"]] and case["relaid"] == [0, 0]
    # The residual goes straight from its convolution to the shortcut: no launch adds its bias in between.
    assert case["shortcuts behind"] == ["convolution"] * joins
    assert "flash_attention" in case["externs"]
    assert case["flops"] == 2 * case["macs"]
    assert set(case["configs"]["default"]) == {1} < set(case["configs"]["torch"])


@pytest.mark.parametrize(
    ("kind", "fixture"), [("partial", "counted"), pytest.param("full", "counted_slowly", marks=pytest.mark.slow)]
)
def test_no_graph_of_an_accelerated_pipe_relays_a_weight(kind, fixture, request):
    """The full graph on the ops is above."""
    case = request.getfixturevalue(fixture)[f"{kind} channels_last"]
    assert case["relaid"] == [0, 0]
    assert len(case["launches"]) > 10 and "convolution" in case["externs"]
    # By default each kernel is compiled once, without a search.
    assert set(case["configs"]["default"]) == {1} < set(case["configs"]["torch"])
    assert case["flops"] == 2 * case["macs"]
    assert case["unet is as it was"]


@pytest.mark.slow
def test_with_weights_as_loaded_some_are_relaid(counted_slowly):
    """As for a single convolution above."""
    case = counted_slowly["partial as loaded"]
    count, size = case["relaid"]
    assert count >= 3 and size > 0
    others = counted_slowly["partial channels_last"]["launches"]
    assert len(case["launches"]) >= len(others) + count - 1


def test_patches_are_undone(counted):
    assert counted["undone"] and counted["fake"]


def test_rows_survive_the_file(tmp_path, capsys):
    # What main() writes and prints. The tests above compile.
    row = gpu_code.Row(
        "sd15", 512, "float16", 2, 0, "full", "reference", "as loaded", "{}", 386, 151, 151, 338, 1820,
        "addmm 134; mm 96", 52, 1, 1, 1, None, None, None, 0, 10**9, 10**9, 10**9, 10**12, 1.5, 7,
    )  # fmt: skip
    write(tmp_path / "rows.csv", [row])
    assert read(tmp_path / "rows.csv", gpu_code.Row) == [row]
    assert "sd15 full reference as loaded" in gpu_code.table([row])

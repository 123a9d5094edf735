"""Both graphs of the real architectures, in fp16."""

import pytest
import torch
from support.traces import counted, narrow_unet, zeros_for

from stepcache.forwards import family_of
from stepcache.forwards.macs import feature_shapes

# (convolutions, GroupNorms, concats) of the full graph, and of the partial graph of each branch. Two concats are in
# the time embedding (SDXL: five), the others are joins: branch m has m + 1 of them. The last branch skips only the mid
# block: two ResNets and an attention, with 6 convolutions (4 if its projections are linear) and 5 GroupNorms.
EXPECTED = {
    "sd15": {
        "full": (98, 61, 14),
        "partial": [
            (7, 4, 3), (16, 10, 4), (25, 16, 5), (32, 19, 6), (42, 25, 7), (51, 31, 8),
            (58, 34, 9), (68, 40, 10), (77, 46, 11), (82, 48, 12), (87, 52, 13), (92, 56, 14),
        ],
    },
    "sd21": {
        "full": (66, 61, 14),
        "partial": [
            (5, 4, 3), (10, 10, 4), (15, 16, 5), (20, 19, 6), (26, 25, 7), (31, 31, 8),
            (36, 34, 9), (42, 40, 10), (47, 46, 11), (52, 48, 12), (57, 52, 13), (62, 56, 14),
        ],
    },
    "sdxl": {
        "full": (51, 46, 14),
        "partial": [
            (5, 3, 6), (10, 7, 7), (15, 11, 8), (20, 14, 9), (26, 20, 10), (31, 26, 11),
            (36, 29, 12), (42, 35, 13), (47, 41, 14),
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_operations_of_each_graph(name):
    unet = narrow_unet(name)
    family, inputs = family_of(unet), zeros_for(unet)
    layout = family.layout(unet)
    (output, _), full = counted(family.full, unet, layout.cut(0), **inputs)
    assert output.shape == inputs["sample"].shape and output.dtype == torch.half
    partials = []
    with torch.no_grad():
        shapes = feature_shapes(unet, inputs)
    for branch, shape in enumerate(shapes):
        cut, feature = layout.cut(branch), torch.zeros(shape, dtype=torch.half)
        output, counts = counted(family.partial, unet, cut, feature, **inputs)
        assert output.shape == inputs["sample"].shape
        partials.append(counts)
    assert {"full": full, "partial": partials} == EXPECTED[name]


@pytest.mark.slow  # test_blocks.py compiles a U-Net of every block type
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_dynamo_takes_both_graphs_whole(name):
    """fullgraph=True: the graph has as many convolutions as counted. SDXL's has SD 2.1's linear projections too."""
    unet = narrow_unet(name)
    family, inputs = family_of(unet), zeros_for(unet)
    cut = family.layout(unet).cut(0)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        options = {"fullgraph": True, "dynamic": False, "backend": keep}
        _, feature = torch.compile(lambda unet, inputs: family.full(unet, cut, **inputs), **options)(unet, inputs)
        torch.compile(lambda unet, f, inputs: family.partial(unet, cut, f, **inputs), **options)(unet, feature, inputs)
    convolutions = [sum("conv2d" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert convolutions == [EXPECTED[name]["full"][0], EXPECTED[name]["partial"][0][0]]

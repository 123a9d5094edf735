import torch

from stepcache.buffers import Bucket, Buckets, Feature


def test_a_feature_keeps_its_address_and_strides():
    feature = Feature()
    value = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    feature.write(value, "first run")
    address = feature.tensor.data_ptr()
    assert feature.tensor.stride() == value.stride()
    for run in ("first run", "second run"):
        value = value + 1
        feature.write(value, run)
        assert feature.tensor.data_ptr() == address
        assert torch.equal(feature.tensor, value)
        assert feature.stamp == run
    assert feature.nbytes == 2 * 8 * 4 * 4 * 4


def test_a_feature_is_a_copy():
    feature, value = Feature(), torch.zeros(1, 2, 2, 2)
    feature.write(value, "run")
    value.add_(1)
    assert not feature.tensor.any()


def test_another_shape_or_dtype_allocates_anew_and_is_no_runs_yet():
    feature = Feature()
    feature.write(torch.zeros(1, 2, 2, 2), "run")
    feature.reserve(torch.zeros(1, 2, 2, 2))
    assert feature.stamp == "run"
    feature.reserve(torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16))
    assert feature.stamp is None and feature.tensor.dtype == torch.bfloat16


def test_a_buffer_allocated_in_inference_mode_can_be_written_outside():
    feature = Feature()
    with torch.inference_mode():
        feature.write(torch.zeros(1, 2, 2, 2), "run")
    with torch.no_grad():
        feature.write(torch.ones(1, 2, 2, 2), "run")
    assert feature.tensor.all()


def test_the_least_recently_used_bucket_goes():
    buckets, freed = Buckets(2), []

    class Graphs:
        nbytes = 3

        def free(self):
            freed.append(self)

    a, b = buckets.get("a", Graphs), buckets.get("b", Graphs)
    for bucket in (a, b):
        bucket.feature(0).write(torch.zeros(1, 4), "run")
    assert buckets.nbytes == 32 and buckets.static_nbytes == 6
    assert buckets.get("a", Graphs) is a
    c = buckets.get("c", Graphs)
    assert list(buckets.held) == ["a", "c"] and freed == [b.graphs]
    assert buckets.get("a", Graphs) is a and buckets.get("c", Graphs) is c
    assert buckets.nbytes == 16 and isinstance(c, Bucket)
    buckets.clear()
    assert not buckets.held and len(freed) == 3

import torch

from stepcache.commands.threads import one_thread


def test_one_thread_and_then_as_many_as_before():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    """Benchmarks set torch's threads and what it does with denormals, for their whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def quick_and_quiet():
    """Random U-Nets drift into denormals, which are slow."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A folder of packages (support/packages.py), which tests must not change."""
    from support.packages import shared_folder

    return shared_folder(tmp_path_factory)

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Small frames: threads that wait for each other on a busy machine cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

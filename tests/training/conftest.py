import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """For networks this small threads cost more than they give, most on a busy machine."""
    torch.set_num_threads(1)

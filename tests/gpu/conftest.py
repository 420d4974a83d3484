"""Tests on an NVIDIA GPU; without one they are skipped. ``make test`` runs them where it finds a GPU."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder, and skip them where PyTorch sees no GPU."""
    import torch

    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="PyTorch sees no NVIDIA GPU"))

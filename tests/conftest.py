"""What holds for all tests: repeatable random examples, and GPU tests only where there is one."""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("nlc", deadline=None, derandomize=True)
hypothesis.settings.load_profile("nlc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))

"""Fixtures that several test files share; the tiny models themselves are in tiny.py."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # processes for all cores: threads on top of them wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def minilm():
    """The real MiniLM as a bridge, from the package of the `demo` extra: no download."""
    from tl_norms import MissingExtraError, demo

    try:
        return demo.bert()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct as a bridge, 4-bit weights made float32; half a minute to load."""
    from tl_norms import MissingExtraError, demo

    try:
        return demo.lm()
    except MissingExtraError as error:
        pytest.skip(str(error))

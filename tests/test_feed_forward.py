"""Scopes through the feed-forward: against a dense reference, complete, whatever the memory, honest when sketched."""

import re
from dataclasses import replace

import feed_forward_reference as ref
import pytest
import torch
from torch import nn

import tl_norms
from tl_norms.linear import steps
from tl_norms.linear.maps import source_norms, sketch_standard_error

needs_bridge = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
needs_hooked = pytest.mark.skipif(ref.HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer")
layouts = pytest.mark.parametrize("layout", ref.LAYOUTS)
conventions = pytest.mark.parametrize("bias", ["player", "fixed"])


def relative(found, wanted):
    """The largest difference over the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_dense(cache, layer, block, bias, tolerance=1e-10):
    """Vectors, rest and map of every scope equal the dense reference's."""
    scopes = ref.dense_scopes(block, bias)
    assert tuple(scopes) == tl_norms.scopes(cache.model)
    norms = tl_norms.block_norms(cache, "all", layers=layer, bias=bias)
    for scope, (vectors, rest) in scopes.items():
        found = tl_norms.decompose(cache, layer, scope, bias=bias)
        assert relative(found.vectors(), vectors) < tolerance, scope
        assert relative(found.remainder, rest) < tolerance, scope
        assert relative(norms[scope][0], vectors.norm(dim=-1)) < tolerance, scope
        assert relative(found.norms(), vectors.norm(dim=-1)) < tolerance, scope


@needs_bridge
@layouts
@conventions
def test_blocks_against_dense_reference(layout, bias):
    """Llama too: its RMS norms compute in float32 inside transformers, but both sides start from the same values."""
    model, ids = ref.tiny(layout), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        assert_dense(cache, layer, block, bias)

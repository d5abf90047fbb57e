"""Products with directions, against the vectors themselves."""

import pytest
import tiny
import torch

import tl_norms

CASES = [(name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_gqa", "bert")]
DIRECTIONS = tiny.waves((3, tiny.D_MODEL), 0.4)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def cache(request):
    return tiny.make(*request.param).cache()


def test_projections_are_products_of_the_vectors(cache):
    for scope in tl_norms.scopes(cache.model):
        parts = tl_norms.decompose(cache, 1, scope)
        expected = parts.vectors() @ DIRECTIONS.T
        found = parts.project(DIRECTIONS)
        assert found.shape == (2, 7, 7, 3)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(parts.project(DIRECTIONS[1]), expected[..., 1], rtol=1e-9, atol=1e-11)


def test_a_feed_forward_is_projected_in_small_pieces(cache):
    scope = next(scope for scope in tl_norms.scopes(cache.model) if scope.endswith("_ff"))
    parts = tl_norms.decompose(cache, 0, scope, max_memory=1)
    torch.testing.assert_close(parts.project(DIRECTIONS), parts.vectors() @ DIRECTIONS.T, rtol=1e-9, atol=1e-11)


def test_heads_are_weighted_value_vectors_along_the_directions(cache):
    values = tl_norms.value_vectors(cache, 1)
    pattern = tl_norms.block_norms(cache, "attn", layers=1).patterns[0]
    expected = torch.einsum("bhqk,bhkd,rd->bhqkr", pattern, values, DIRECTIONS)
    torch.testing.assert_close(tl_norms.project_heads(cache, 1, DIRECTIONS), expected, rtol=1e-9, atol=1e-11)
    one = tl_norms.project_heads(cache, -1, DIRECTIONS[2])
    torch.testing.assert_close(one, expected[..., 2], rtol=1e-9, atol=1e-11)


def test_directions_of_another_width_are_refused(cache):
    parts = tl_norms.decompose(cache, 0, "attn_res")
    for wrong in (DIRECTIONS[:, :-1], DIRECTIONS[None], DIRECTIONS[:0], DIRECTIONS * float("nan")):
        with pytest.raises(tl_norms.UnknownOptionError, match="directions"):
            parts.project(wrong)
    with pytest.raises(tl_norms.UnknownOptionError, match="31"):
        tl_norms.project_heads(cache, 0, DIRECTIONS[:, :-1])


def test_weights_changed_since_are_noticed():
    made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
    cache = made.cache()
    with torch.no_grad():
        made.model.blocks[0].attn.W_O.mul_(1.5)
    with pytest.raises(tl_norms.DecompositionError, match="heads"):
        tl_norms.project_heads(cache, 0, DIRECTIONS)

"""Lengths of head mixtures of every size against vectors formed in float64, whichever way the sizes choose."""

from dataclasses import replace

import pytest
import torch

from tl_norms.errors import DecompositionError
from tl_norms.linear.carry.terms import MixedHeads, Mixture, Product, Sent
from tl_norms.linear.measure.factors import factored, head_norms, mixture_norms
from tl_norms.linear.measure.formed import mixture_norms as formed_norms
from tl_norms.linear.measure.formed import plain
from tl_norms.linear.pieces import pieces


def made(n_heads: int, n_queries: int, n_keys: int, causal: bool, dtype: torch.dtype, n_batch: int = 2) -> Mixture:
    random = torch.Generator().manual_seed(n_heads + n_keys)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    scores = draw(n_batch, n_heads, n_queries, n_keys) * 3
    if causal:
        scores = scores.masked_fill(~torch.ones(n_queries, n_keys, dtype=torch.bool).tril(), -torch.inf)
    values, weight = draw(n_batch, n_keys, n_heads, 3), draw(n_heads, 3, 10)
    heads = MixedHeads(scores.softmax(-1), values, crossed=n_queries != n_keys)
    return Mixture(Sent(heads, weight), draw(n_batch, n_queries))


def formed(mixture: Mixture, function=lambda x: x) -> torch.Tensor:
    """|v_ij| by a vector for every pair, a few queries at a time: [b q k]."""
    assert mixture.scale is not None
    heads = function(torch.einsum("bkhe,hed->bhkd", mixture.values.double(), mixture.sent.projection.double()))
    rows = [
        torch.einsum("bhqk,bhkd->bqkd", pattern.double(), heads).norm(dim=-1)
        for pattern in mixture.pattern.split(16, dim=2)
    ]
    return torch.cat(rows, 1) * mixture.scale.double().abs()[..., None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("n_heads", "n_queries", "n_keys", "causal"),
    [
        (1, 5, 5, True),
        (4, 72, 72, True),  # the most keys for products
        (4, 73, 73, True),  # the fewest for planes
        (4, 150, 150, True),  # two pieces of queries: the second sees more keys
        (3, 600, 600, False),
        (5, 7, 90, False),  # cross-attention
        (5, 90, 7, False),
        (64, 190, 190, True),  # products in pieces
        (64, 190, 190, False),
    ],
)
def test_lengths_of_all_pairs(n_heads, n_queries, n_keys, causal, dtype):
    mixture = made(n_heads, n_queries, n_keys, causal, dtype)
    gain = torch.linspace(-1, 2, 10, dtype=dtype)

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) * gain.to(x.dtype)

    lengths, (plain, image) = factored(mixture, causal, [function])
    close = dict(rtol=1e-10, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-4, atol=1e-6)
    for factor, wanted in ((plain, formed(mixture)), (image, formed(mixture, function))):
        found, spots = mixture_norms(mixture, factor, causal=causal)
        spots.compare(found, "norms")
        torch.testing.assert_close(found.double(), wanted, **close)
    heads = torch.einsum("bkhe,hed->bhkd", mixture.values.double(), mixture.sent.projection.double())
    torch.testing.assert_close(lengths.double(), heads.norm(dim=-1), **close)
    assert torch.equal(head_norms(mixture), lengths)
    mapped = mixture.mapped(function)
    torch.testing.assert_close(mapped.weight, function(mixture.sent.projection), rtol=0, atol=0)
    torch.testing.assert_close(
        mixture_norms(mapped, factored(mapped, causal)[1][0], causal=causal)[0].double(),
        formed(mixture, function),
        **close,
    )


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["formed piece by piece", "kept"])
def test_few_keys_at_a_time_change_nothing(monkeypatch, kept):
    mixture = made(4, 30, 30, True, torch.float64)
    lengths, (whole,) = factored(mixture, True)
    seven_keys = 7 * 4 * 10 * 8  # four pieces and a rest
    small = replace(pieces(torch.device("cpu")), head_vectors=seven_keys, kept=kept, formed=0)
    for module in ("linear.measure.factors", "linear.carry.terms"):
        monkeypatch.setattr(f"tl_norms.{module}.pieces", lambda device: small)
    parts, (made_of_pieces,) = factored(replace(mixture, sent=replace(mixture.sent)), True)
    torch.testing.assert_close(made_of_pieces.triangle.abs(), whole.triangle.abs(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts, lengths, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n_queries", "n_keys", "causal"), [(1, 1, True), (9, 9, True), (9, 9, False), (4, 7, False)])
def test_formed_vectors_against_factors(n_queries, n_keys, causal):
    """Two implementations that share nothing but the head vectors: off the diagonal, which belongs to neither."""
    mixture = made(4, n_queries, n_keys, causal, torch.float64)
    image = mixture.mapped(Product(torch.linspace(-1, 2, 10, dtype=torch.float64).diag())).mapped(torch.neg)
    assert mixture.few
    for one in (mixture, replace(mixture, functions=(torch.neg,)), replace(image, functions=(image.functions[0],))):
        _, (factor,) = factored(one, causal)
        wanted, _ = mixture_norms(one, factor, causal=causal)
        found, spots = formed_norms(one, plain(one, causal)[1])
        spots.compare(found, "norms")
        if n_queries == n_keys:
            wanted.diagonal(dim1=1, dim2=2).zero_()
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(plain(mixture, causal)[0], factored(mixture, causal)[0], rtol=1e-12, atol=0)


def test_a_wrong_formed_vector_is_refused():
    mixture = made(4, 9, 9, False, torch.float64)
    beside = plain(mixture, False)[1]
    mixture.formed[0, 3, 7 % 9] *= 1.01  # query (3 + 4) % 9 of key 3
    found, spots = formed_norms(mixture, beside)
    with pytest.raises(DecompositionError, match="norms of formed vectors"):
        spots.compare(found, "norms of formed vectors")

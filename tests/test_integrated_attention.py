"""Attention with its softmax integrated: against torch's softmax, autograd along the path, and its own adjoint."""

import numpy as np
import pytest
import torch

from tl_norms.linear.carry.forward import from_position
from tl_norms.linear.heads import JoinHeads, Rotary
from tl_norms.linear.hold import NormWeights, hold_norm
from tl_norms.linear.integrated_attention import hold_integrated_attention
from tl_norms.linear.operators import Chain, Mixing, Projection, Scaling, SplitHeads, applied
from tl_norms.linear.softmax_path import nodes_needed, softmax_path

B, N, D, KV, GROUP, E = 2, 7, 12, 2, 2, 6
H = KV * GROUP
CAUSAL = torch.ones(N, N).tril().bool()[None, None]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
PATH = [((node + 1) / 2, weight / 2) for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True)]


class Head:
    """One attention of random weights with biases, and its output written down once more."""

    def __init__(self, kind, dtype=torch.float64, sharp=1.0):
        generator = torch.Generator().manual_seed(3)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.kind, self.x = kind, random(B, N, D)
        self.source = random(B, N + 2, D) if kind == "cross" else None
        beside = self.x if self.source is None else self.source
        plain = {
            "q": Projection(random(D, H * E) * sharp, random(H * E)),
            "k": Projection(random(D, KV * E), random(KV * E)),
            "v": Projection(random(D, KV * E), random(KV * E)),
        }
        q, k = [plain["q"], SplitHeads(H)], [plain["k"], SplitHeads(KV, GROUP)]
        if kind in ("rotary", "interleaved"):
            angles = torch.arange(N)[:, None] * torch.tensor([1.0, 0.1])
            angles = angles.repeat_interleave(2, -1) if kind == "interleaved" else torch.cat([angles, angles], -1)
            norms = [NormWeights(False, 1e-6, random(E)), NormWeights(True, 1e-6, random(E), random(E))]
            turn = Rotary(angles.cos().to(dtype), angles.sin().to(dtype), kind == "interleaved")
            for chain, weights in zip((q, k), norms, strict=True):
                heads = applied(Chain(tuple(chain)), self.x)
                chain.extend([hold_norm(heads, weights), turn])
        self.operators = (Chain(tuple(q)), Chain(tuple(k)), Chain((plain["v"], SplitHeads(KV, GROUP))))
        self.q, self.k, self.v = (
            applied(part, vectors) for part, vectors in zip(self.operators, (self.x, beside, beside), strict=True)
        )
        options = {"scale": E**-0.5, "visible": None if kind in ("cross", "encoder") else CAUSAL}
        if kind == "alibi":
            options["added"] = -torch.arange(1.0, H + 1, dtype=dtype)[None, :, None, None] * (
                torch.arange(N)[:, None] - torch.arange(N)
            ).abs().to(dtype)
        if kind == "bias":  # one per sequence, without heads
            options["added"] = random(B, 1, N, N)
        if kind == "softcap":
            options["softcap"] = 2.0
        if kind == "sink":
            options["sink"] = random(H)
        if kind == "everything":
            options |= {"softcap": 3.0, "sink": random(H), "added": random(1, 1, N, N), "query_share": 0.3}
        if kind == "padding":
            options["visible"] = CAUSAL & torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * N]).bool()[:, None, None]
        self.options = options
        self.held = hold_integrated_attention(self.x, *self.operators, source=self.source, **options)

    def scores(self, q, k):
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * self.options["scale"]
        cap = self.options.get("softcap")
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        scores = scores + self.options.get("added", 0.0)
        visible = self.options["visible"]
        return scores if visible is None else scores.masked_fill(~visible, -torch.inf)

    def mixed(self, scores, v, t=1.0):
        """t v mixed by softmax(t scores)."""
        sink = self.options.get("sink")
        if sink is not None:
            scores = torch.cat([scores, sink[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
        pattern = torch.softmax(t * scores, -1).nan_to_num(0.0)
        return torch.einsum("bhqk,bkhe->bqhe", pattern[..., : v.shape[1]], t * v)

    def output(self):
        return self.mixed(self.scores(self.q, self.k), self.v)

    def inputs(self):
        return (self.x,) if self.source is None else (self.x, self.source)


KINDS = ["encoder", "causal", "rotary", "interleaved", "alibi", "bias", "softcap", "sink", "everything", "padding"]
ALL = [*KINDS, "cross"]


@pytest.fixture(params=ALL)
def head(request):
    return Head(request.param)


def given(head, x):
    """What all operators of an attention make of their streams, offsets included."""
    return sum(applied(op, vectors) for op, vectors in zip(head.held, x, strict=True))


def test_held_attention_gives_the_real_output(head):
    torch.testing.assert_close(given(head, head.inputs()), head.output(), rtol=0, atol=1e-12)
    assert head.held[0].path.error < 1e-11


@pytest.mark.parametrize("kind", ALL)
def test_in_float32(kind):
    head = Head(kind, torch.float32, sharp=3.0)
    error = (given(head, head.inputs()) - head.output()).abs().max() / head.output().abs().max()
    assert error < 2e-5


def test_operators_are_linear_but_for_their_offset(head):
    """So the Hessian vanishes."""
    for op, x in zip(head.held, head.inputs(), strict=True):
        z, y = torch.randn(2, 3, *x.shape, dtype=torch.float64)
        torch.testing.assert_close(op(2 * z - 3 * y), 2 * op(z) - 3 * op(y), rtol=0, atol=1e-10)


def test_the_hessian_vanishes_where_that_of_attention_does_not():
    head = Head("everything")
    g = torch.randn(B, N, H, E, dtype=torch.float64)

    def real(x):
        q, k, v = (applied(part, x) for part in head.operators)
        return (head.mixed(head.scores(q, k), v) * g).sum()

    hessian = torch.autograd.functional.hessian
    assert not hessian(lambda x: (applied(head.held[0], x) * g).sum(), head.x).any()
    assert hessian(real, head.x).abs().max() > 0.1


def test_transpose_is_the_adjoint(head):
    for op, x in zip(head.held, head.inputs(), strict=True):
        z = torch.randn(3, *x.shape, dtype=torch.float64)
        g = torch.randn(3, B, N, H, E, dtype=torch.float64)
        torch.testing.assert_close((op(z) * g).sum(), (z * op.transpose(g)).sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("first", [1, 4])
def test_positions_are_cut_off(head, first):
    """What stands at `first` or later gives the later positions what it gives them in the whole: all operators."""
    if head.kind in ("cross", "encoder"):
        pytest.skip("positions before a source are reached")
    op, join = head.held[0], JoinHeads(torch.randn(H, E, D).double(), None, torch.rand(B, N, H, 1).double())
    z = torch.randn(3, *head.x.shape, dtype=torch.float64)
    z[:, :, :first] = 0
    chain = Chain((op, join))
    assert not chain(z)[:, :, :first].any()
    cut = from_position(chain, first)
    torch.testing.assert_close(cut(z[:, :, first:]), chain(z)[:, :, first:], rtol=0, atol=1e-12)
    g = torch.randn(3, B, N - first, H, E, dtype=torch.float64)  # cut operators have an adjoint too
    op, y = cut.steps[0], z[:, :, first:]
    torch.testing.assert_close((op(y) * g).sum(), (y * op.transpose(g)).sum(), rtol=0, atol=1e-9)


def test_a_number_per_position_is_cut_off():
    """Queries scaled by their position: [pos 1 1] beside heads."""
    scaling = Scaling(torch.arange(1.0, N + 1).double()[:, None, None])
    z = torch.randn(3, B, N, H, E, dtype=torch.float64)
    torch.testing.assert_close(from_position(scaling, 3)(z[:, :, 3:]), scaling(z)[:, :, 3:])


def test_credits_are_the_mean_gradient_of_the_true_softmax_along_the_path(head):
    """200 nodes, autograd of the real function at (t s, t v)."""
    scores, g = head.scores(head.q, head.k), torch.randn(B, N, H, E, dtype=torch.float64)
    seen = scores.isfinite()
    logits, mean = torch.zeros_like(scores), torch.zeros_like(head.v)
    for t, weight in PATH:
        s = (t * scores.masked_fill(~seen, 0.0)).requires_grad_()
        v = (t * head.v).requires_grad_()
        sink = head.options.get("sink")
        full = s.masked_fill(~seen, -torch.inf)
        if sink is not None:
            full = torch.cat([full, t * sink[None, :, None, None].expand(*full.shape[:3], 1)], -1)
        dead = (full == -torch.inf).all(-1, keepdim=True)
        pattern = torch.softmax(full.masked_fill(dead, 0.0), -1) * ~dead
        out = torch.einsum("bhqk,bkhe->bqhe", pattern[..., : v.shape[1]], v)
        by_s, by_v = torch.autograd.grad((out * g).sum(), (s, v))
        logits, mean = logits + weight * by_s, mean + weight * by_v
    held = head.held
    torch.testing.assert_close(held[0].logits(g), logits, rtol=0, atol=1e-11)
    share, factor = head.options.get("query_share", 0.5), torch.as_tensor(held[0].held, dtype=torch.float64)
    by_query, by_key, by_value = held[0].transposes(g)
    if len(held) == 2:
        by_key, by_value = held[1].transposes(g)[1:]
        assert held[0].transposes(g)[1:] == (None, None) and held[1].transposes(g)[0] is None
    wanted = torch.einsum("bhqk,bkhe->bqhe", logits * factor * share, head.k)
    torch.testing.assert_close(by_query, head.operators[0].transpose(wanted), rtol=0, atol=1e-10)
    wanted = torch.einsum("bhqk,bqhe->bkhe", logits * factor * (1 - share), head.q)
    torch.testing.assert_close(by_key, head.operators[1].transpose(wanted), rtol=0, atol=1e-10)
    torch.testing.assert_close(by_value, head.operators[2].transpose(mean), rtol=0, atol=1e-10)


def test_logits_and_values_add_up():
    """sum_ij c_ij s_ij + sum_ij mean_ij <g_i, v_j> = <g, o>, whatever a row is shifted by."""
    head = Head("causal")
    g, scores = torch.randn(B, N, H, E, dtype=torch.float64), head.scores(head.q, head.k)
    op = head.held[0]
    moved = torch.einsum("bhqk,bkhe,bqhe->", op.mean, head.v, g)
    for shift in (0.0, 7.0):
        decided = (op.logits(g) * (scores.masked_fill(~CAUSAL, 0.0) + shift)).sum()
        torch.testing.assert_close(moved + decided, (g * head.output()).sum(), rtol=0, atol=1e-11)


def test_the_whole_attention_is_a_chain():
    head = Head("rotary")
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(H, E, D, generator=generator).double(), torch.randn(D, generator=generator).double()
    gate = torch.rand(B, N, H, 1, generator=generator).double()
    gated = (head.output() * gate).flatten(2)
    inner = hold_norm(gated, NormWeights(True, 1e-5, torch.rand(H * E).double(), torch.rand(H * E).double()))
    join = JoinHeads(weight, bias, gate, inner)
    chain = Chain((head.held[0], join))
    wanted = torch.nn.functional.layer_norm(gated, (H * E,), inner.gain, inner.beta, 1e-5) @ weight.flatten(0, 1) + bias
    torch.testing.assert_close(applied(chain, head.x), wanted, rtol=0, atol=1e-11)
    mixing = Mixing(torch.eye(N).double().expand(B, H, N, N), weight, bias, gate, inner)
    torch.testing.assert_close(join(head.v), mixing(head.v), rtol=0, atol=1e-12)
    z, g = torch.randn(2, 3, B, N, D, dtype=torch.float64)
    torch.testing.assert_close((chain(z) * g).sum(), (z * chain.transpose(g)).sum(), rtol=0, atol=1e-9)


def sharp_rows(span, dtype, generator):
    """One key far above, one far below, a block of equals, a sink with all the weight, noise."""
    rows = torch.randn(5, 40, generator=generator, dtype=torch.float64) / 4
    rows[0, 3] += span
    rows[1, 3] -= span
    rows[2, :20] += span
    rows[3, 0] += span / 2
    rows[3, 5] -= span / 2
    rows[4] = torch.linspace(-span / 2, span / 2, 40, dtype=torch.float64)
    return rows[None, None].to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("span", [0.0, 1.0, 20.0, 60.0, 120.0, 400.0])
def test_sharp_rows(span, dtype, tolerance):
    """Against panels of 64 nodes that get narrower towards t = 0."""
    logits = sharp_rows(span, dtype, torch.Generator().manual_seed(0))
    path = softmax_path(logits)
    alone = softmax_path(logits[..., :1, :])  # saturated at every node of a short quadrature, which then agrees
    edges = [0.0, *(2.0**-power for power in range(10, -1, -1))]
    nodes, weights = np.polynomial.legendre.leggauss(64)
    mean = torch.zeros_like(logits, dtype=torch.float64)
    spread, w = torch.zeros_like(mean), torch.randn(logits.shape, dtype=torch.float64)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        for node, weight in zip(nodes, weights, strict=True):
            t, share = left + (right - left) * (node + 1) / 2, weight * (right - left) / 2
            p = torch.softmax(t * logits.double(), -1)
            mean += share * p
            spread += share * t * p * (w - (p * w).sum(-1, keepdim=True))
    assert (path.mean.double() - mean).abs().max() < tolerance
    assert (alone.mean.double() - mean[..., :1, :]).abs().max() < tolerance
    assert (path.spread(w.to(dtype)).double() - spread).abs().max() < tolerance
    torch.testing.assert_close(path.pattern, torch.softmax(logits, -1))
    assert len(path.nodes) <= 300 and path.error <= tolerance


def test_too_few_nodes_are_noticed_and_more_are_taken(monkeypatch):
    from tl_norms.linear import softmax_path as module

    logits = sharp_rows(20.0, torch.float64, torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "nodes_needed", lambda *args: 4)
    path = module.softmax_path(logits)
    assert len(path.nodes) > 12 and path.error < 1e-10
    monkeypatch.setattr(module, "_MOST_NODES", 4)
    assert module.softmax_path(logits).error > 1e-3


def test_more_range_takes_more_nodes():
    assert nodes_needed(0.0, 10, 1e-13) < nodes_needed(5.0, 10, 1e-13) < nodes_needed(60.0, 10, 1e-13) < 120


def test_masks_written_as_numbers_count_as_masks():
    logits = torch.randn(1, 2, N, N, dtype=torch.float64)
    wanted = softmax_path(logits.masked_fill(~CAUSAL, -torch.inf))
    for number in (-1e9, torch.finfo(torch.float32).min):
        found = softmax_path(logits.masked_fill(~CAUSAL, number))
        assert torch.equal(found.mean, wanted.mean) and len(found.nodes) == len(wanted.nodes)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_of_the_last_columns(interleaved):
    """Latent attention turns the last columns of every head: those of a rotary embedding of these alone."""
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn(2, 5, 3, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    angles = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    last, alone = (Rotary(angles.cos(), angles.sin(), interleaved, last) for last in (True, False))
    assert torch.equal(last(x), torch.cat([x[..., :3], alone(x[..., 3:])], -1))
    torch.testing.assert_close((last.transpose(g) * x).sum(), (g * last(x)).sum())


def test_rotary_as_models_have_it():
    """NeoX halves and GPT-J pairs against complex multiplication; what lies beyond is kept."""
    x, angles = torch.randn(2, 5, 3, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    for interleaved in (True, False):
        double = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
        found = Rotary(double.cos(), double.sin(), interleaved)(x)
        pairs = x[..., :4].unflatten(-1, (2, 2)) if interleaved else x[..., :4].unflatten(-1, (2, 2)).mT
        turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, None]
        turned = torch.view_as_real(turned)
        wanted = turned.flatten(-2) if interleaved else turned.mT.flatten(-2)
        torch.testing.assert_close(found, torch.cat([wanted, x[..., 4:]], -1), rtol=0, atol=1e-12)

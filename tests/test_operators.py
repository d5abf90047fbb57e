"""Held operators: adjoint to their transposes, right about the real input, and without curvature."""

import pytest
import torch
from architectures import zoo
from einops import rearrange
from tiny import CASES, make
from torch import Tensor

import tl_norms
from tl_norms.blocks.structure import Attention
from tl_norms.freeze import FrozenBlock
from tl_norms.linear.graph import HeldBlock, HeldStep
from tl_norms.linear.hold import NormWeights, Unit, hold_feed_forward, hold_norm
from tl_norms.linear.operators import (
    Chain,
    HeldNorm,
    Mixing,
    Operator,
    Parallel,
    Projection,
    Scaling,
    SplitHeads,
    applied,
)
from tl_norms.plan import Plan

B, Q, H, E, D, M = 2, 5, 2, 3, 6, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed), dtype=torch.float64)


def unit(gated: bool = False, **options) -> Unit:
    up = Projection(draw(D, M, seed=3), draw(M, seed=4)) if gated else None
    return Unit(
        Projection(draw(D, M), draw(M, seed=1)),
        up,
        Projection(draw(M, D), draw(D)),
        torch.nn.functional.gelu,
        **options,
    )


def mixing(**options) -> Mixing:
    return Mixing(draw(B, H, Q, Q).softmax(-1), draw(H, E, D), draw(D), **options)


SENT = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.5]] * B, dtype=torch.float64)
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "projection": (Projection(draw(D, M), draw(M)), (D,)),
    "scaling": (Scaling(draw(B, Q, 1), draw(B, Q, D)), (D,)),
    "layer norm": (hold_norm(draw(B, Q, D), NormWeights(True, 1e-5, draw(D), draw(D, seed=1))), (D,)),
    "RMS norm": (hold_norm(draw(B, Q, D), NormWeights(False, 1e-5, draw(D))), (D,)),
    "feed-forward": (hold_feed_forward(draw(B, Q, D), unit()), (D,)),
    "gated": (hold_feed_forward(draw(B, Q, D), unit(True)), (D,)),
    "clipped gate": (hold_feed_forward(draw(B, Q, D), unit(True, up_offset=1.0, limit=0.7)), (D,)),
    "inner norm": (hold_feed_forward(draw(B, Q, D), unit(True, inner=NormWeights(True, 1e-5, draw(M), draw(M)))), (D,)),
    "expert": (hold_feed_forward(draw(B, Q, D), unit(True, scale_out=SENT)), (D,)),
    "expert of weighted inputs": (hold_feed_forward(draw(B, Q, D), unit(True, scale_in=SENT)), (D,)),
    "experts": (
        Parallel(tuple(hold_feed_forward(draw(B, Q, D), unit(k > 0, scale_out=SENT)) for k in range(2))),
        (D,),
    ),
    "grouped heads": (Chain((Projection(draw(D, 2 * E), draw(2 * E)), SplitHeads(2, 3))), (D,)),
    "mixing": (mixing(), (H, E)),
    "gate per head": (mixing(gate=draw(B, Q, H, 1)), (H, E)),
    "gate per number": (mixing(gate=draw(B, Q, H, E)), (H, E)),
    "norm of mixed heads": (
        mixing(inner=HeldNorm(True, draw(B, Q).abs(), draw(H * E), draw(H * E, seed=2)), gate=draw(B, Q, H, 1)),
        (H, E),
    ),
    "edited heads": (mixing(gate=draw(B, Q, H, 1), added=draw(B, Q, D)), (H, E)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_transpose_is_the_adjoint(name):
    """<transpose(g), x> = <g, operator(x)>, with leading axes on either side."""
    operator, width = OPERATORS[name]
    x = draw(3, B, Q, *width)
    g = draw(*operator(x).shape, seed=7)
    torch.testing.assert_close((operator.transpose(g) * x).sum(), (g * operator(x)).sum(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        operator(2 * x - draw(*x.shape, seed=5)), 2 * operator(x) - operator(draw(*x.shape, seed=5))
    )


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("bias", ["player", "fixed"])
@pytest.mark.parametrize("inner", [None, NormWeights(True, 1e-5, draw(M), draw(M))], ids=["", "inner norm"])
@pytest.mark.parametrize("limit", [None, 0.6])
def test_a_held_feed_forward_gives_what_the_feed_forward_gives(gated, bias, inner, limit):
    """Also with biases fixed: the base of an inner norm and of a clipped gate are part of the offset."""
    if limit is not None and not gated:
        pytest.skip("only gates are clipped")
    made = unit(gated, inner=inner, limit=limit, up_offset=0.5 if gated else 0.0)
    x, rest = draw(B, Q, D, seed=2), draw(B, Q, D, seed=9)
    operator = hold_feed_forward(x, made, bias, rest)
    u = x @ made.into.weight + made.into.bias
    hidden = torch.nn.functional.gelu(u if limit is None else u.clamp(max=limit))
    if made.up is not None:
        w = x @ made.up.weight + made.up.bias
        hidden = hidden * ((w if limit is None else w.clamp(-limit, limit)) + 0.5)
    if inner is not None:
        hidden = torch.nn.functional.layer_norm(hidden, (M,), inner.gain, inner.beta, inner.eps)
    torch.testing.assert_close(applied(operator, x), hidden @ made.out.weight + made.out.bias, rtol=1e-10, atol=1e-10)


def frozen_blocks(cache, stack=None) -> list[FrozenBlock]:
    plan, activations = Plan.of_cache(cache, "all", stack=stack)
    return [FrozenBlock(plan.reader, activations, block) for block in plan.blocks]


def check_points(frozen: FrozenBlock, tolerance: float) -> int:
    """Every held step, applied to the model's own activations, gives the model's activation; how many were compared."""
    compared = 0
    with torch.no_grad():
        for number, step in enumerate(frozen.block.steps, start=1):
            if step.truth is None or not step.truth.is_plain:
                continue
            held = frozen.step(number)
            if held.operator is None:
                made = frozen.real(held.reads) * held.scale + frozen.real(held.other) * held.other_scale
                made = made if held.beside is None else made + held.beside
            elif isinstance(step.operation, Attention):
                values, operator = frozen.mixing(number)
                made = applied(operator, values)
            else:
                made = applied(held.operator, frozen.real(held.reads))
            found = frozen.activations.truth(step.truth)
            assert float((made - found).abs().max() / found.abs().max()) < tolerance, step.scope
            compared += 1
    return compared


@pytest.mark.parametrize("name, kind", CASES)
def test_held_steps_give_the_models_activations(name, kind):
    for frozen in frozen_blocks(make(name, kind).cache()):
        assert check_points(frozen, 2e-6) >= 3


SOME = ["MixtralForCausalLM", "GraniteForCausalLM", "Gemma2ForCausalLM", "BitNetForCausalLM", "AfmoeForCausalLM"]


@pytest.mark.parametrize("name", [*SOME, "GPTNeoXForCausalLM", "GptOssForCausalLM", "FalconH1ForCausalLM"])
def test_held_steps_of_other_layouts(name):
    try:
        cache = zoo.cached(zoo.SPECS[name]).cache
    except (zoo.NotHere, ValueError, ImportError) as reason:
        pytest.skip(str(reason))
    for frozen in frozen_blocks(cache, zoo.SPECS[name].stack):
        assert check_points(frozen, 2e-6) >= 2


def test_a_held_block_has_no_curvature_and_its_transpose_is_its_gradient():
    norm, inner = OPERATORS["layer norm"][0], OPERATORS["gated"][0]
    block = HeldBlock((HeldStep(0, norm), HeldStep(1, inner), HeldStep(2, None, 0, 0.5, 2.0)))
    x, g = draw(B, Q, D).requires_grad_(), draw(B, Q, D, seed=3)
    value = (block.forward(x, offsets=True)[-1] * g).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    torch.testing.assert_close(gradient, block.backward({3: g})[0].expand_as(x), rtol=1e-11, atol=1e-11)
    assert not gradient.requires_grad, "the gradient depends on the input: the map is not affine"


def test_pairs_are_carried_by_the_same_operators():
    """The sum of all source vectors of a scope is the held block's own forward pass of the sources."""
    cache = make(*CASES[0]).cache()
    parts = tl_norms.decompose(cache, 1, "attn_res_ln")
    frozen = frozen_blocks(cache)[1]
    with torch.no_grad():
        values, mix = frozen.attention()
        sent = mix(values) + frozen.real(0)
        norm = frozen.step(3).operator
        torch.testing.assert_close(parts.vectors().sum(-2), norm(sent), rtol=1e-9, atol=1e-10)
        assert rearrange(values, "b k h e -> b k (h e)").shape[-1] == parts.vectors().shape[-1]

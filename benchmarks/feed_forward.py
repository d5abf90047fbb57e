"""Maps through the feed-forward of one layer: tl_norms, the plain pairwise way, and the machine's matrix products.

python benchmarks/feed_forward.py                  # a markdown table
python benchmarks/feed_forward.py --cases SmolLM2 --lengths 256 512 1024 --json out.json

tl_norms   ffn_maps(cache): all scopes with `ff` and the one before them, each checked against the activations
sketch     ffn_maps(cache, sketch=64), an estimate
plain      the same maps query by query: v W_in, times the coefficients, W_out, residual, norm, lengths
W_out      the time that the products with W_out alone would take, one per pair (causal: j <= i), at the matrix
           product rate measured in the same run
needed     W_out, and what makes the neurons: every head's output weights through W_in, and the values through those
           (gated: twice), and H products per pair and neuron that mix them
"""

from dataclasses import dataclass

import torch
from measure import DTYPES, begin, matrix_rate, parser, peak, report, timed
from models import SIZES, Case, case
from torch import Tensor, nn

import tl_norms
from tl_norms.linear import integrated


@dataclass(frozen=True)
class Layer:
    """What the plain implementation needs of a layer; projections are [in out]."""

    norm: nn.Module  # between attention and feed-forward
    into: tuple[Tensor, ...]  # one, or gate and up
    biases: tuple[Tensor | float, ...]
    out: Tensor
    activation: nn.Module
    last: nn.Module | None = None  # behind the feed-forward's residual: a post-norm block


def layer_of(name: str, model: Case) -> Layer:
    layer = model.layer
    if name == "BERT-base":
        into, last = layer.intermediate, layer.output
        norm, inside = layer.attention.output.LayerNorm, (into.dense.weight.T,)
        return Layer(norm, inside, (into.dense.bias,), last.dense.weight.T, into.intermediate_act_fn, last.LayerNorm)
    if name == "GPT-2":
        mlp = layer.mlp
        return Layer(layer.ln_2, (mlp.c_fc.weight,), (mlp.c_fc.bias,), mlp.c_proj.weight, mlp.act)
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    return Layer(norm, (mlp.gate_proj.weight.T, mlp.up_proj.weight.T), (0.0, 0.0), mlp.down_proj.weight.T, mlp.act_fn)


def linear_part(norm: nn.Module, vectors: Tensor, full: Tensor) -> Tensor:
    """A layer norm with the scale of the full vector held."""
    if isinstance(norm, nn.LayerNorm):
        centered = vectors - vectors.mean(-1, keepdim=True)
        return centered / (full.var(-1, unbiased=False) + norm.eps).sqrt() * norm.weight
    return vectors / (full.square().mean(-1) + norm.variance_epsilon).sqrt() * norm.weight


def plain_maps(cache, layer: Layer, scopes: tuple[str, ...], totals: dict[str, Tensor]) -> dict[str, Tensor]:
    """scope -> |v_ij| [q k], by forming the vectors of one query after the other."""
    values, pattern = tl_norms.value_vectors(cache, 0)[0], cache["pattern", 0][0]
    stream, n = cache["blocks.0.hook_in"][0], pattern.shape[-1]
    maps = {scope: pattern.new_zeros(n, n) for scope in scopes}
    u = [totals["attn_res_ln"] @ w + b for w, b in zip(layer.into, layer.biases, strict=True)]
    u, zero = [x.double() for x in u], torch.zeros_like(u[0]).double()
    if len(u) == 1:
        coefficients = [integrated.slope(layer.activation, zero, u[0]).float()]
    else:
        coefficients = [c.float() for c in integrated.gated(layer.activation, zero, u[0], zero, u[1])]
    for i in range(n):
        before = torch.einsum("hk,hkd->kd", pattern[:, i], values)
        before[i] += stream[i]
        normed = linear_part(layer.norm, before, totals["attn_res"][i])
        hidden = sum(normed @ w * c[i] for w, c in zip(layer.into, coefficients, strict=True))
        through = hidden @ layer.out
        found = {"attn_res_ln": normed, "attn_res_ln_ff": through}
        if layer.last is None:
            found["attn_res_ln_ff_res"] = through + before
        else:
            found["attn_res_ln_ff_res"] = after = through + normed
            found["attn_res_ln_ff_res_ln"] = linear_part(layer.last, after, totals["attn_res_ln_ff_res"][i])
        for scope in scopes:
            maps[scope][i] = found[scope].norm(dim=-1)
    return maps


def measure(name: str, options) -> list[dict[str, object]]:
    """One row per length; the plain implementation is left out beyond `--slowest`."""
    dtype, clock, size = DTYPES[options.dtype], options.clock, SIZES[name]
    model, rows = case(name, 1, options.device, dtype), []
    layer, chain = layer_of(name, model), tl_norms.scopes(model.bridge)
    n_weights = layer.out.numel()
    for n in options.lengths:
        filters = [*tl_norms.required_hooks(model.bridge, "all"), "blocks.0.hook_in"]
        _, cache = model.bridge.run_with_cache(model.tokens(n), names_filter=filters)
        totals = {scope: tl_norms.decompose(cache, 0, scope).total()[0] for scope in chain}
        contenders = {
            "tl_norms": lambda c=cache: tl_norms.ffn_maps(c),
            "sketch": lambda c=cache: tl_norms.ffn_maps(c, sketch=64),
            "forward": model.layer_forward(n),
        }
        if n <= options.slowest:
            norms = tl_norms.ffn_maps(cache)
            for scope, slow in plain_maps(cache, layer, norms.scopes, totals).items():
                torch.testing.assert_close(norms[scope][0, 0], slow, rtol=1e-3, atol=1e-5)
            contenders["plain"] = lambda c=cache, s=norms.scopes, t=totals: plain_maps(c, layer, s, t)
        rate = matrix_rate(clock=clock, device=options.device, dtype=dtype)
        found = timed(contenders, rounds=options.rounds, clock=clock)
        rate = (rate + matrix_rate(clock=clock, device=options.device, dtype=dtype)) / 2
        memory = peak(lambda c=cache: tl_norms.ffn_maps(c), options.device)
        n_pairs = size.pairs(n)
        w_out = 2 * n_pairs * n_weights / rate
        heads_through = min(n * size.heads, size.d_model + n) * size.d_model  # every head vector, or the weights first
        neurons = 2 * size.d_mlp * (size.matrices - 1) * (heads_through + size.heads * n_pairs) / rate
        plain = found.get("plain", float("nan"))
        rows.append(
            {
                "model": name,
                "n": n,
                "tl_norms s": found["tl_norms"],
                "sketch s": found["sketch"],
                "plain s": plain,
                "forward s": found["forward"],
                "faster than plain": plain / found["tl_norms"],
                "W_out s": w_out,
                "W_out share": w_out / found["tl_norms"],
                "share of the matrix rate": (w_out + neurons) / found["tl_norms"],
                "GFLOP/s peak": rate / 1e9,
                "us per pair": found["tl_norms"] / n_pairs * 1e6,
                "memory MB": memory / 1e6,
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    options = parser(
        "Time and memory of feed-forward maps, one layer.",
        ["BERT-base", "GPT-2", "SmolLM2"],
        [128, 256, 512],
        ["Llama-8B"],
    )
    options.add_argument("--slowest", type=int, default=512, help="longest sequence for the plain implementation")
    options = options.parse_args()
    begin(options)
    report([row for name in options.cases for row in measure(name, options)], options)


if __name__ == "__main__":
    main()

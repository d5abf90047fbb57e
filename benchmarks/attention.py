"""Attention-block maps: tl_norms, implementations that form the vectors, and the model's own forward pass.

    python benchmarks/attention.py                     # one layer; a markdown table
    python benchmarks/attention.py --json out.json     # the numbers as well
    python benchmarks/attention.py --lengths 64 128 --cases BERT-base --rounds 5
    python benchmarks/attention.py --layers 0 --cases MiniLM GPT-2 SmolLM2 --lengths 12 32    # whole models

What is compared, all from one ActivationCache, all scopes of the attention block with their mixing ratios:

    tl_norms   block_norms(cache): maps, mixing ratios, value norms, and the completeness check of every scope
    vectors    weighted vectors a f(x) per head, [head query key d_model], as the papers describe it, a few queries at
               a time so that they fit in memory
    einsum     the same with heads summed at once, [query key d_model]
    forward    the layer, or the whole model, as transformers runs it (eager attention, no hooks)
    bridge     the whole model as TransformerLens runs it, without a hook of the user's
"""

import argparse
import math

import torch
from measure import DTYPES, begin, parser, peak, report, timed
from models import SIZES, Case, case
from torch import Tensor

import tl_norms


def plain_maps(cache, case: Case, scopes: tuple[str, ...], *, by_head: bool, queries: int = 8) -> dict[str, Tensor]:
    """The maps of layer 0 by forming all vectors, `queries` of them at a time: scope -> [q k]."""
    values, pattern = tl_norms.value_vectors(cache, 0)[0], cache["pattern", 0][0]  # [h k d], [h q k]
    stream, norm = _input_and_norm(cache, case)
    n = pattern.shape[-1]
    maps = {scope: pattern.new_zeros(n, n) for scope in scopes}
    ratios = {scope: pattern.new_zeros(n) for scope in scopes}
    for first in range(0, n, queries):
        rows = torch.arange(first, min(first + queries, n), device=pattern.device)
        if by_head:
            vectors = (pattern[:, rows, :, None] * values[:, None]).sum(0)
        else:
            vectors = torch.einsum("hqk,hkd->qkd", pattern[:, rows], values)
        for scope in scopes:
            if scope == "attn_res":
                vectors[torch.arange(len(rows), device=rows.device), rows] += stream[rows]
            if scope == "attn_res_ln":
                full = vectors.sum(1) + case.layer.attention.output.dense.bias
                scale = (full.var(-1, unbiased=False) + norm.eps).sqrt()[:, None, None]
                vectors = (vectors - vectors.mean(-1, keepdim=True)) / scale * norm.weight
            maps[scope][rows] = vectors.norm(dim=-1)
            own = vectors[torch.arange(len(rows), device=rows.device), rows]
            off = (vectors.sum(1) - own).norm(dim=-1)
            ratios[scope][rows] = off / (off + own.norm(dim=-1))
    return maps | {f"ratio {scope}": ratio for scope, ratio in ratios.items()}


def _input_and_norm(cache, case: Case) -> tuple[Tensor, torch.nn.LayerNorm | None]:
    stream = cache["blocks.0.hook_in"][0]
    return stream, case.layer.attention.output.LayerNorm if hasattr(case.layer, "attention") else None


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per length."""
    model, rows = case(name, options.layers or SIZES[name].layers, options.device, DTYPES[options.dtype]), []
    for n in options.lengths:
        filters = [*tl_norms.required_hooks(model.bridge), "blocks.0.hook_in"]
        _, cache = model.bridge.run_with_cache(model.tokens(n), names_filter=filters)
        rows.append({"model": name, "layers": options.layers or SIZES[name].layers, "n": n})
        rows[-1] |= (one_layer if options.layers == 1 else all_layers)(model, cache, n, options)
    return rows


def one_layer(model: Case, cache, n: int, options: argparse.Namespace) -> dict[str, object]:
    """Beside the layer's own forward pass, and beside ways that form all vectors, whose numbers are compared first."""
    norms = tl_norms.block_norms(cache)
    quick = n <= options.slowest
    if options.dtype == "float32" and quick:
        for scope, slow in plain_maps(cache, model, norms.scopes, by_head=True).items():
            ours = norms.mixing_ratio(scope[6:]) if scope.startswith("ratio") else norms[scope]
            torch.testing.assert_close(ours[0, 0], slow, rtol=1e-4, atol=1e-6)
    fast = timed(
        {"tl_norms": lambda: tl_norms.block_norms(cache), "forward": model.layer_forward(n)},
        rounds=4 * options.rounds,
        clock=options.clock,
    )
    slow = timed(
        {
            "vectors": lambda: plain_maps(cache, model, norms.scopes, by_head=True),
            "einsum": lambda: plain_maps(cache, model, norms.scopes, by_head=False),
        }
        if quick
        else {},
        rounds=options.rounds,
        clock=options.clock,
        budget=10,
    )
    memory = peak(lambda: tl_norms.block_norms(cache), options.device)
    missing = dict.fromkeys(("vectors", "einsum"), math.nan)
    slow, pattern = missing | slow, cache["pattern", 0]
    return {
        "tl_norms ms": fast["tl_norms"] * 1e3,
        "forward ms": fast["forward"] * 1e3,
        "vectors ms": slow["vectors"] * 1e3,
        "einsum ms": slow["einsum"] * 1e3,
        "of forward": fast["tl_norms"] / fast["forward"],
        "faster than vectors": slow["vectors"] / fast["tl_norms"],
        "faster than einsum": slow["einsum"] / fast["tl_norms"],
        "memory / pattern": memory / (pattern.numel() * pattern.element_size()),
        "memory MB": memory / 1e6,
        "error": max(float(one.max()) for one in norms.error.values()),
    }


def all_layers(model: Case, cache, n: int, options: argparse.Namespace) -> dict[str, object]:
    """Beside the forward pass of the whole model, as TransformerLens and as transformers runs it."""
    tokens = model.tokens(n)
    found = timed(
        {
            "tl_norms": lambda: tl_norms.block_norms(cache),
            "bridge": lambda: model.bridge(tokens),
            "forward": lambda: model.plain(tokens),
        },
        rounds=4 * options.rounds,
        clock=options.clock,
    )
    return {
        "tl_norms ms": found["tl_norms"] * 1e3,
        "bridge ms": found["bridge"] * 1e3,
        "forward ms": found["forward"] * 1e3,
        "of bridge": found["tl_norms"] / found["bridge"],
        "of forward": found["tl_norms"] / found["forward"],
    }


def main() -> None:
    options = parser("Time and memory of attention-block maps.", SIZES, [128, 256, 512])
    options.add_argument("--slowest", type=int, default=1024, help="longest sequence for ways that form all vectors")
    options.set_defaults(cases=["BERT-base", "GPT-2"], rounds=5)
    options.add_argument("--layers", type=int, default=1, help="0: all of the model's, beside its whole forward pass")
    chosen = options.parse_args()
    begin(chosen)
    report([row for name in chosen.cases for row in measure(name, chosen)], chosen)


if __name__ == "__main__":
    main()

"""Attention-block maps of one layer: tl_norms, implementations that form the vectors, and the model's own forward pass.

    python benchmarks/attention.py                     # a markdown table
    python benchmarks/attention.py --json out.json     # the numbers as well
    python benchmarks/attention.py --lengths 64 128 --cases BERT-base --rounds 5

What is compared, all from one ActivationCache, all scopes of the attention block with their mixing ratios:

    tl_norms   block_norms(cache): maps, mixing ratios, value norms, and the completeness check of every scope
    vectors    weighted vectors a f(x) per head, [head query key d_model], as the papers describe it, a few queries at
               a time so that they fit in memory
    einsum     the same with heads summed at once, [query key d_model]
    forward    the layer as transformers runs it (eager attention, no hooks)
"""

import argparse
import json
from pathlib import Path

import torch
from measure import CLOCKS, PeakMemory, table, timed
from models import CASES, Case
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
        rows = torch.arange(first, min(first + queries, n))
        if by_head:
            vectors = (pattern[:, rows, :, None] * values[:, None]).sum(0)
        else:
            vectors = torch.einsum("hqk,hkd->qkd", pattern[:, rows], values)
        for scope in scopes:
            if scope == "attn_res":
                vectors[torch.arange(len(rows)), rows] += stream[rows]
            if scope == "attn_res_ln":
                full = vectors.sum(1) + case.layer.attention.output.dense.bias
                scale = (full.var(-1, unbiased=False) + norm.eps).sqrt()[:, None, None]
                vectors = (vectors - vectors.mean(-1, keepdim=True)) / scale * norm.weight
            maps[scope][rows] = vectors.norm(dim=-1)
            own = vectors[torch.arange(len(rows)), rows]
            off = (vectors.sum(1) - own).norm(dim=-1)
            ratios[scope][rows] = off / (off + own.norm(dim=-1))
    return maps | {f"ratio {scope}": ratio for scope, ratio in ratios.items()}


def _input_and_norm(cache, case: Case) -> tuple[Tensor, torch.nn.LayerNorm | None]:
    stream = cache["blocks.0.hook_in"][0]
    return stream, case.layer.attention.output.LayerNorm if hasattr(case.layer, "attention") else None


def measure(name: str, lengths: list[int], rounds: int, clock: str) -> list[dict[str, object]]:
    """One row per length."""
    case, rows = CASES[name](), []
    for n in lengths:
        filters = [*tl_norms.required_hooks(case.bridge), "blocks.0.hook_in"]
        _, cache = case.bridge.run_with_cache(case.tokens(n), names_filter=filters)
        norms = tl_norms.block_norms(cache)
        for scope, slow in plain_maps(cache, case, norms.scopes, by_head=True).items():
            ours = norms.mixing_ratio(scope[6:]) if scope.startswith("ratio") else norms[scope]
            torch.testing.assert_close(ours[0, 0], slow, rtol=1e-4, atol=1e-6)
        fast = timed(
            {"tl_norms": lambda c=cache: tl_norms.block_norms(c), "forward": case.layer_forward(n)},
            rounds=4 * rounds,
            clock=clock,
        )
        slow = timed(
            {
                "vectors": lambda c=cache, s=norms.scopes: plain_maps(c, case, s, by_head=True),
                "einsum": lambda c=cache, s=norms.scopes: plain_maps(c, case, s, by_head=False),
            },
            rounds=rounds,
            clock=clock,
            budget=10,
        )
        with PeakMemory() as memory:
            tl_norms.block_norms(cache)
        pattern = cache["pattern", 0]
        rows.append(
            {
                "model": name,
                "n": n,
                "tl_norms ms": fast["tl_norms"] * 1e3,
                "forward ms": fast["forward"] * 1e3,
                "vectors ms": slow["vectors"] * 1e3,
                "einsum ms": slow["einsum"] * 1e3,
                "of forward": fast["tl_norms"] / fast["forward"],
                "faster than vectors": slow["vectors"] / fast["tl_norms"],
                "faster than einsum": slow["einsum"] / fast["tl_norms"],
                "memory / pattern": memory.peak / (pattern.numel() * pattern.element_size()),
                "memory MB": memory.peak / 1e6,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of attention-block maps, one layer.")
    parser.add_argument("--cases", nargs="+", choices=["BERT-base", "GPT-2"], default=["BERT-base", "GPT-2"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    rows = [row for name in options.cases for row in measure(name, options.lengths, options.rounds, options.clock)]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

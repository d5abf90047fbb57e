"""Time of token vectors beside a plain dense propagation, and the share of the machine's matrix rate that is reached.

python benchmarks/propagation.py --cases MiniLM GPT-2 SmolLM2 --lengths 32 64 128 256

Models of real sizes with random weights, one layer of them: every layer costs the same. "needed" is the arithmetic of
value, output and feed-forward matrices for every pair that a source can reach, and of the mixing; queries and keys are
not among it. "plain" sends every token alone through the held layer, all positions, one token after the other.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from measure import CLOCKS, PeakMemory, matrix_rate, table, timed
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tl_norms
from tl_norms.blocks.activations import Activations
from tl_norms.model_map import hold_model
from tl_norms.plan import reader_of

_VOCABULARY = 1000
SIZES = {  # d_model, width of the values, feed-forward matrices, d_mlp, causal
    "MiniLM": (384, 384, 2, 1536, False),
    "GPT-2": (768, 768, 2, 3072, True),
    "SmolLM2": (576, 192, 3, 1536, True),
}


def model_of(name: str, layers: int) -> nn.Module:
    """Random weights of the model's size."""
    shared = dict(vocab_size=_VOCABULARY, attn_implementation="eager")
    torch.manual_seed(0)
    if name == "MiniLM":
        sizes = dict(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
        model = BertForMaskedLM(BertConfig(num_hidden_layers=layers, **sizes, **shared))
    elif name == "GPT-2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, **shared))
    else:
        sizes = dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **shared))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def needed(name: str, n: int, layers: int) -> float:
    """Floating point operations: two per weight and pair, and two per key and coordinate of the mixed values."""
    d, values, matrices, m, causal = SIZES[name]
    pairs = n * (n + 1) / 2 if causal else n * n
    keys = (n + 1) / 3 if causal else n  # keys from the source to the query, on average
    return layers * pairs * (2 * (d * values + d * d + matrices * d * m) + 2 * keys * d)


def plain(cache) -> torch.Tensor:
    """Every token alone through the held layers at all positions, one after the other; lengths after each."""
    reader = reader_of(cache.model)
    stack = hold_model(cache.model, Activations(cache.cache_dict, True, reader), reader, keep=True).stack
    x = stack.stream(0)
    norms = x.new_zeros(stack.n_layers, x.shape[1], x.shape[1])
    for t in range(x.shape[1]):
        alone = torch.zeros_like(x)
        alone[:, t] = x[:, t]
        for layer in range(stack.n_layers):
            alone = stack.layer(layer).block.forward(alone)[-1]
            norms[layer, :, t] = alone[0].norm(dim=-1)
    return norms


def measure(name: str, lengths: list[int], layers: int, rounds: int, clock: str) -> list[dict[str, object]]:
    """One row per length."""
    wrapped = model_of(name, layers)
    bridge = build_bridge_from_module(copy.deepcopy(wrapped), type(wrapped).__name__, hf_config=wrapped.config)
    hooks, rows = tl_norms.required_hooks(bridge, target=tl_norms.logit(7)), []
    for n in lengths:
        tokens = torch.randint(5, _VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
        cache = bridge.run_with_cache(tokens, names_filter=hooks)[1]
        guess = tl_norms.estimate(bridge, n)
        rate = matrix_rate(clock=clock)
        seconds = timed(
            {"propagate": lambda c=cache: tl_norms.propagate(c), "plain": lambda c=cache: plain(c)},
            rounds=rounds,
            clock=clock,
        )
        rate = max(rate, matrix_rate(clock=clock))
        found = tl_norms.propagate(cache)
        off = (found.norms[:, 0] - plain(cache)).abs().max() / found.norms.max()
        with PeakMemory() as memory:
            tl_norms.propagate(cache)
        rows.append(
            {
                "model": name,
                "n": n,
                "tl_norms s": seconds["propagate"],
                "plain s": seconds["plain"],
                "vs plain": seconds["plain"] / seconds["propagate"],
                "needed GFLOP": needed(name, n, layers) / 1e9,
                "GFLOP/s": needed(name, n, layers) / seconds["propagate"] / 1e9,
                "machine GFLOP/s": rate / 1e9,
                "share of the matrix rate": needed(name, n, layers) / seconds["propagate"] / rate,
                "estimate / measured": guess.seconds / seconds["propagate"],
                "peak MB": memory.peak / 1e6,
                "differs by": float(off),
                "error": float(found.error.max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of token vectors.")
    parser.add_argument("--cases", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    rows = []
    for name in options.cases:
        rows += measure(name, options.lengths, options.layers, options.rounds, options.clock)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Time of token vectors beside a plain dense propagation, and the share of the machine's matrix rate that is reached.

python benchmarks/propagation.py --cases MiniLM GPT-2 SmolLM2 --lengths 32 64 128 256

Models of real sizes with random weights, some layers of them: every layer costs the same. "needed" is the arithmetic of
value, output and feed-forward matrices for every pair that a source can reach, and of the mixing; queries and keys are
not among it. "plain" sends every token alone through the held layer, all positions, one token after the other.
"""

import time
from unittest.mock import patch

import torch
from measure import CLOCKS, DTYPES, begin, matrix_rate, parser, peak, report, timed
from models import SIZES, Size, case

import tl_norms
from tl_norms.blocks.activations import Activations
from tl_norms.model_map import hold_model
from tl_norms.plan import reader_of


def needed(size: Size, n: int, layers: int) -> float:
    """Floating point operations: two per weight and pair, and two per key and coordinate of the mixed values."""
    d, keys = size.d_model, (n + 1) / 3 if size.causal else n  # keys from the source to the query, on average
    weights = d * size.values + d * d + size.matrices * d * size.d_mlp
    return layers * size.pairs(n) * (2 * weights + 2 * keys * d)


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


def measure(name: str, options) -> list[dict[str, object]]:
    """One row per length."""
    size, layers, dtype = SIZES[name], options.layers or SIZES[name].layers, DTYPES[options.dtype]
    model, rows = case(name, layers, options.device, dtype), []
    for n in options.lengths:
        cache = model.cache(n)
        with patch.object(time, "perf_counter", CLOCKS[options.clock]):  # an estimate is of what is measured here
            guess = tl_norms.estimate(model.bridge, n)
        contenders = {"propagate": lambda c=cache: tl_norms.propagate(c), "plain": lambda c=cache: plain(c)}
        rate = matrix_rate(clock=options.clock, device=options.device, dtype=dtype)
        seconds = timed(contenders, rounds=options.rounds, clock=options.clock)
        rate = max(rate, matrix_rate(clock=options.clock, device=options.device, dtype=dtype))
        memory = peak(lambda c=cache: tl_norms.propagate(c), options.device)
        found = tl_norms.propagate(cache)
        off = (found.norms[:, 0] - plain(cache)).abs().max() / found.norms.max()
        rows.append(
            {
                "model": name,
                "n": n,
                "tl_norms s": seconds["propagate"],
                "plain s": seconds["plain"],
                "vs plain": seconds["plain"] / seconds["propagate"],
                "needed GFLOP": needed(size, n, layers) / 1e9,
                "machine GFLOP/s": rate / 1e9,
                "share of the matrix rate": needed(size, n, layers) / seconds["propagate"] / rate,
                "estimate / measured": guess.seconds / seconds["propagate"],
                "estimated memory / peak": guess.bytes / memory,
                "peak MB": memory / 1e6,
                "differs by": float(off),
                "error": float(found.error.max()),
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    options = parser("Time of token vectors.", ["MiniLM", "GPT-2", "SmolLM2"], [32, 64, 128, 256], ["Llama-8B"])
    options.add_argument("--layers", type=int, default=2, help="0: as many as the model has")
    options = options.parse_args()
    begin(options)
    report([row for name in options.cases for row in measure(name, options)], options)


if __name__ == "__main__":
    main()

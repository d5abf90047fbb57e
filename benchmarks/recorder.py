"""Memory of norms during the forward pass, as the number of layers grows; and one long input.

    python benchmarks/recorder.py                        # the curve: 2 to 32 layers
    python benchmarks/recorder.py --long 4096            # size of SmolLM2-135M-Instruct, one input of 4096 tokens
    python benchmarks/recorder.py --long 8192 --layers 2 --threads 1 --runs maps      # two of its layers
    python benchmarks/recorder.py --overhead --cases MiniLM GPT-2 SmolLM2 --lengths 12 32 128 --threads 1 --clock cpu
                                                         # time beyond forward and block_norms

What is compared on the same random Llama-like model:

    forward    the model alone
    recorder   NormRecorder(keep="mixing_ratio") and NormRecorder(keep=a function that reduces each layer's maps)
    cache      run_with_cache(names_filter=required_hooks(model)), then block_norms(cache)

The curve counts tensors alive at once, in MB (see measure.py); the long input the process's peak resident memory.
"""

import argparse
import resource

import torch
from measure import CLOCKS, DTYPES, PeakMemory, begin, machine, table, timed, waited
from models import SIZES, case
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import LlamaConfig, LlamaForCausalLM

import tl_norms


def model_of(
    options: argparse.Namespace, n_layers: int, *, width: int = 256, heads: int = 8, groups: int = 4, hidden: int = 512
) -> nn.Module:
    """A random Llama-like bridge."""
    config = LlamaConfig(
        num_hidden_layers=n_layers,
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=8192,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.to(device=options.device, dtype=DTYPES[options.dtype])
    config.dtype = DTYPES[options.dtype]
    return build_bridge_from_module(model, "LlamaForCausalLM", hf_config=config)


def reduced(norms: tl_norms.BlockNorms) -> torch.Tensor:
    """What a study might keep of one layer's map: the mean contribution by distance to the source."""
    lengths = norms["attn_res"][0, 0]
    return torch.stack([lengths.diagonal(-distance).mean() for distance in range(32)])


def curve(options: argparse.Namespace) -> list[dict[str, object]]:
    """Peak memory by number of layers."""
    rows = []
    for n_layers in options.layers or [2, 4, 8, 16, 32]:
        model = model_of(options, n_layers)
        tokens = torch.arange(options.n, device=options.device)[None] % 1000
        filters = tl_norms.required_hooks(model)
        contenders = {
            "forward": lambda m=model, t=tokens: m(t),
            "recorder, ratios": lambda m=model, t=tokens: recorded(m, t, "mixing_ratio"),
            "recorder, reduced maps": lambda m=model, t=tokens: recorded(m, t, reduced),
            "cache": lambda m=model, t=tokens, f=filters: tl_norms.block_norms(m.run_with_cache(t, names_filter=f)[1]),
        }
        row: dict[str, object] = {"layers": n_layers, "n": options.n}
        for name, run in contenders.items():
            run()
            with PeakMemory() as memory:
                run()
            row[name + " MB"] = memory.peak / 1e6
        rows.append(row)
    return rows


def recorded(model: nn.Module, tokens: torch.Tensor, keep) -> tl_norms.NormRecorder:
    recorder = tl_norms.NormRecorder(model, keep=keep)
    with recorder:
        model(tokens)
    return recorder


def overhead(options: argparse.Namespace) -> list[dict[str, object]]:
    """Time of a recorder beyond the forward pass and block_norms of a cache."""
    rows = []
    for name in options.cases:
        made = case(name, SIZES[name].layers, options.device, DTYPES[options.dtype])
        model, n_layers = made.bridge, SIZES[name].layers
        for n in options.lengths or [options.n]:
            tokens = made.tokens(n)
            _, cache = model.run_with_cache(tokens, names_filter=tl_norms.required_hooks(model))
            found = timed(
                {
                    "forward": lambda m=model, t=tokens: m(t),
                    "block_norms": lambda c=cache: tl_norms.block_norms(c),
                    "recorder": lambda m=model, t=tokens: recorded(m, t, "maps").norms,
                },
                rounds=options.rounds,
                clock=options.clock,
            )
            more = found["recorder"] - found["forward"] - found["block_norms"]
            row: dict[str, object] = {"model": name, "layers": n_layers, "n": n}
            row |= {f"{what} ms": seconds * 1e3 for what, seconds in found.items()}
            rows.append(row | {"overhead ms a layer": more * 1e3 / n_layers})
    return rows


def long_input(options: argparse.Namespace) -> list[dict[str, object]]:
    """One long input through layers of SmolLM2-135M-Instruct's size."""
    (layers,) = options.layers or [30]
    model = model_of(options, layers, width=576, heads=9, groups=3, hidden=1536)
    tokens = torch.arange(options.long, device=options.device)[None] % 1000
    contenders = {
        "forward": lambda: model(tokens),
        "ratios": lambda: recorded(model, tokens, "mixing_ratio"),
        "maps": lambda: recorded(model, tokens, reduced),
    }
    rows = []
    for name in options.runs:
        waited()
        begin_at = CLOCKS[options.clock]()
        contenders[name]()
        waited()
        seconds = CLOCKS[options.clock]() - begin_at
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # grows only: the contenders are in its order
        rows.append({"n": options.long, "layers": layers, "run": name, "s": seconds, "peak resident GiB": peak})
        print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of norms during the forward pass.")
    parser.add_argument("--layers", nargs="+", type=int, help="2 to 32 for the curve, 30 for a long input")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--cases", nargs="+", choices=list(SIZES), default=["SmolLM2"], help="models of --overhead")
    parser.add_argument("--lengths", nargs="+", type=int, help="of --overhead, instead of --n")
    parser.add_argument("--rounds", type=int, default=20, help="turns of --overhead")
    parser.add_argument("--long", type=int, help="one input of this many tokens instead of the curve")
    parser.add_argument("--overhead", action="store_true", help="time beyond forward pass and block_norms instead")
    parser.add_argument(
        "--runs", nargs="+", choices=["forward", "ratios", "maps"], default=["forward", "ratios", "maps"]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="of a long input, and of the overhead")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    options = parser.parse_args()
    begin(options)
    print(machine(options) + "\n")
    print(table((long_input if options.long else overhead if options.overhead else curve)(options)))


if __name__ == "__main__":
    main()

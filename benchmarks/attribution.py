"""Time and memory of one attribution beside the model's own forward pass and integrated gradients with 20 steps.

python benchmarks/attribution.py --cases SmolLM2 --lengths 32 128 512 1024 --layers 4

Models of real sizes with random weights, some layers of them: all parts of an attribution but the ends are per layer.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from measure import CLOCKS, PeakMemory, table, timed
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tl_norms

_VOCABULARY = 1000
_STEPS = 20


def model_of(name: str, layers: int) -> nn.Module:
    """Random weights; the sizes of benchmarks/models.py."""
    shared = dict(vocab_size=_VOCABULARY, attn_implementation="eager")
    torch.manual_seed(0)
    if name == "BERT-base":
        model = BertForMaskedLM(BertConfig(num_hidden_layers=layers, max_position_embeddings=1024, **shared))
    elif name == "GPT-2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, **shared))
    else:
        sizes = dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **shared))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def integrated_gradients(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """[pos], of logit 7 at the last position, from zero embeddings, by autograd."""
    embedded = model.get_input_embeddings()(tokens).detach()
    total = torch.zeros_like(embedded)
    with torch.enable_grad():
        for step in range(_STEPS):
            point = (embedded * (step + 0.5) / _STEPS).requires_grad_()
            (gradient,) = torch.autograd.grad(model(inputs_embeds=point).logits[0, -1, 7], point)
            total += gradient
    return (total / _STEPS * embedded).sum(-1)[0]


def measure(name: str, lengths: list[int], layers: int, rounds: int, clock: str) -> list[dict[str, object]]:
    """One row per length."""
    plain = model_of(name, layers)
    wrapped = copy.deepcopy(plain)
    bridge = build_bridge_from_module(wrapped, type(plain).__name__, hf_config=wrapped.config)
    target = tl_norms.logit(7)
    many = [tl_norms.logit(token) for token in range(16)]
    hooks, rows = tl_norms.required_hooks(bridge, target=target), []
    for n in lengths:
        tokens = torch.randint(5, _VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
        cache = bridge.run_with_cache(tokens, names_filter=hooks)[1]
        kept = sum({t.data_ptr(): t.nbytes for t in cache.cache_dict.values() if isinstance(t, torch.Tensor)}.values())
        found = tl_norms.attribute(cache, target)
        contenders = {
            "forward": lambda t=tokens: plain(t),
            "attribute": lambda c=cache: tl_norms.attribute(c, target),
            "16 targets": lambda c=cache: tl_norms.attribute(c, many),
            "edges": lambda a=found: a.edges(0),
            "gradients": lambda t=tokens: integrated_gradients(plain, t),
        }
        seconds = timed(contenders, rounds=rounds, clock=clock)
        with PeakMemory() as memory:
            tl_norms.attribute(cache, target)
        rows.append(
            {
                "model": name,
                "layers": layers,
                "n": n,
                "forward s": seconds["forward"],
                "attribute s": seconds["attribute"],
                "attribute / forward": seconds["attribute"] / seconds["forward"],
                "16 targets / forward": seconds["16 targets"] / seconds["forward"],
                "edges of a layer / forward of a layer": seconds["edges"] / (seconds["forward"] / layers),
                "integrated gradients / forward": seconds["gradients"] / seconds["forward"],
                "memory / cache": memory.peak / kept,
                "error": float(found.error.max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of attributions.")
    parser.add_argument(
        "--cases", nargs="+", choices=["BERT-base", "GPT-2", "SmolLM2"], default=["BERT-base", "GPT-2", "SmolLM2"]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128, 512, 1024])
    parser.add_argument("--layers", type=int, default=4)
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

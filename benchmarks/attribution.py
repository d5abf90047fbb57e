"""Time and memory of one attribution beside the model's own forward pass and integrated gradients with 20 steps.

python benchmarks/attribution.py --cases SmolLM2 --lengths 32 128 512 1024 --layers 4

Models of real sizes with random weights, some layers of them (--layers 0: as many as the model has): all parts of an
attribution but the ends are per layer.

attribute     one target: all cuts, heads and feed-forwards, checked
integrated    the same with attention="integrated"
16 targets    16 logits at once
edges         of one layer, beside one layer's own attention (queries, keys, values, pattern, output)
gradients     integrated gradients of the embeddings, by autograd, 20 steps, one target
memory        the peak of what `attribute` makes, over the activations that it reads
"""

import math

import torch
from measure import DTYPES, begin, parser, peak, report, timed
from models import SIZES, case
from torch import nn

import tl_norms

_STEPS = 20


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


def measure(name: str, options) -> list[dict[str, object]]:
    """One row per length."""
    layers = options.layers or SIZES[name].layers
    model = case(name, layers, options.device, DTYPES[options.dtype])
    target = tl_norms.logit(7)
    many = [tl_norms.logit(token) for token in range(16)]
    rows = []
    for n in options.lengths:
        tokens, cache = model.tokens(n), model.cache(n)
        kept = sum({t.data_ptr(): t.nbytes for t in cache.cache_dict.values() if isinstance(t, torch.Tensor)}.values())
        found = tl_norms.attribute(cache, target)
        contenders = {
            "forward": lambda t=tokens: model.plain(t),
            "attribute": lambda c=cache: tl_norms.attribute(c, target),
            "integrated": lambda c=cache: tl_norms.attribute(c, target, attention="integrated"),
            "16 targets": lambda c=cache: tl_norms.attribute(c, many),
            "edges": lambda a=found: a.edges(0),
            "attention": attention_of(model.layer, tokens, model),
            "gradients": lambda t=tokens: integrated_gradients(model.plain, t),
        }
        if n > options.slowest:
            del contenders["gradients"]
        seconds = timed(contenders, rounds=options.rounds, clock=options.clock, budget=options.budget)
        memory = peak(lambda c=cache: tl_norms.attribute(c, target), options.device)
        more = math.nan
        if math.isfinite(seconds["integrated"]):
            more = peak(lambda c=cache: tl_norms.attribute(c, target, attention="integrated"), options.device)
        forward = seconds["forward"]
        rows.append(
            {
                "model": name,
                "layers": layers,
                "n": n,
                "forward ms": 1e3 * forward,
                "attribute / forward": seconds["attribute"] / forward,
                "integrated / forward": seconds["integrated"] / forward,
                "16 targets / forward": seconds["16 targets"] / forward,
                "edges / attention": seconds["edges"] / seconds["attention"],
                "gradients / forward": seconds.get("gradients", float("nan")) / forward,
                "memory MB": memory / 1e6,
                "memory / cache": memory / kept,
                "integrated memory / cache": more / kept,
                "error": float(found.error.max()),
            }
        )
        print(*rows[-1].values(), flush=True)
    return rows


def attention_of(layer: nn.Module, tokens: torch.Tensor, model):
    """The layer's own attention module on what it is really given."""
    module = next(part for name, part in layer.named_modules() if name in ("attention", "attn", "self_attn"))
    given: list[tuple[tuple, dict]] = []
    handle = module.register_forward_pre_hook(lambda _, a, k: given.append((a, k)), with_kwargs=True)
    model.plain(tokens, **({} if model.plain.config.model_type == "bert" else {"use_cache": False}))
    handle.remove()
    ((args, kwargs),) = given
    return lambda: module(*args, **kwargs)


def main() -> None:
    options = parser(
        "Time and memory of attributions.", ["GPT-2", "SmolLM2", "BERT-base"], [32, 128, 512, 1024], ["Llama-8B"]
    )
    options.add_argument("--layers", type=int, default=4, help="0: as many as the model has")
    options.add_argument("--slowest", type=int, default=1024, help="longest sequence for integrated gradients")
    options.add_argument("--budget", type=float, default=60.0, help="seconds for each contender")
    options = options.parse_args()
    begin(options)
    report([row for name in options.cases for row in measure(name, options)], options)


if __name__ == "__main__":
    main()

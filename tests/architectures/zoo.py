"""A zoo of tiny random models, one spec per architecture and variant; the specs themselves are in zoo_*.py.

make(spec)          the Hugging Face model: every parameter and saved buffer jittered, eager attention and experts
boot(spec, model)   a TransformerBridge around it
cached(spec)        bridge and cache of both dtypes, made once per test run
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCAB, D_MODEL, N_HEADS, D_MLP, N_LAYERS, N_CTX = 100, 32, 4, 64, 2, 64

# what transformers computes in float32 whatever the model's dtype sets how exact a float64 run can be
FLOAT64, FLOAT32_NORMS = 1e-9, 2e-6


class NotHere(Exception):
    """This version of transformers or TransformerLens does not have the architecture."""


@dataclass(frozen=True)
class Spec:
    """One architecture or variant: how to build it, and what is expected of it.

    Attributes:
        name: "<registered architecture>" or "<registered architecture>@<variant>"
        build: makes the Hugging Face model
        stack: the stack of blocks analysed
        tolerance: completeness in float64: 1e-9, or 2e-6 where transformers computes norms or gates in float32
        refused: None, or what the message of the refusal must contain
        broken: None, or what TransformerLens itself raises (its own bug): asserted, so that a fix is noticed
        note: how it was built, where that is not plain
        only_float32: the model does not run in float64
        bridge: boots it, where build_bridge_from_module does not
    """

    name: str
    build: Callable[[], nn.Module]
    stack: str | None = None
    tolerance: float = FLOAT32_NORMS
    refused: str | None = None
    broken: str | None = None
    note: str = ""
    only_float32: bool = False
    bridge: Callable[[nn.Module], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self.name.partition("@")[0]


SPECS: dict[str, Spec] = {}


def add(name: str, build: Callable[[], nn.Module], **expected) -> None:
    """Register a spec with its own way of building."""
    if name in SPECS:
        raise ValueError(f"two specs are called {name}")
    SPECS[name] = Spec(name, build, **expected)


def spec(name: str, config: str, options: dict[str, Any], *, model: str = "", **expected) -> None:
    """Register a spec that is built from a configuration: transformers' `config`(**options) and `model`(config)."""
    model = model or name.partition("@")[0]

    def build() -> nn.Module:
        return from_config(model, config, options)

    add(name, build, **expected)
    SPECS[name] = replace(SPECS[name], options=options)


def from_config(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    """A model of transformers, by the names of its classes."""
    try:
        classes = getattr(transformers, model), getattr(transformers, config)
    except AttributeError as error:
        raise NotHere(str(error)) from error
    return classes[0](classes[1](**options))


def jitter(model: nn.Module, seed: int = 1) -> None:
    """Move every parameter and saved buffer: no default (a gain of one, a bias of zero) may hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in sorted(saved):
            tensor = saved[name]
            if tensor.is_floating_point() and "masked_bias" not in name and tensor.ndim:  # scalars: constants of xIELU
                size = 0.12 if tensor.ndim > 1 else 0.2
                tensor.add_(size * torch.randn(tensor.shape, generator=generator).to(tensor))


def make(spec: Spec, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The Hugging Face model of a spec."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = spec.build()
        jitter(model)
        model = model.to(torch.float32 if spec.only_float32 else dtype).eval()
        for call in ("set_attn_implementation", "set_experts_implementation"):  # grouped matmuls know no float64
            if hasattr(model, call):
                try:
                    getattr(model, call)("eager")
                except (ValueError, NotImplementedError):
                    continue
    return model


def boot(spec: Spec, model: nn.Module):
    """A TransformerBridge around a model of a spec."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if spec.architecture not in SUPPORTED_ARCHITECTURES:
        raise NotHere(f"this TransformerLens has no {spec.architecture}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.bridge is not None:
            return spec.bridge(model)
        model.config.architectures = [spec.architecture]
        return build_bridge_from_module(model, spec.architecture, hf_config=model.config)


def tokens(batch: int = 2, positions: int = 7, vocab: int = 90) -> Tensor:
    return torch.randint(5, vocab, (batch, positions), generator=torch.Generator().manual_seed(2))


def run(bridge, input: Tensor, **options):
    """run_with_cache, with a decoder's input where one is needed; the cache."""
    if hasattr(bridge, "decoder_blocks"):
        options["decoder_input"] = input[:, :5]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return bridge.run_with_cache(input, **options)[1]


@dataclass(frozen=True)
class Made:
    """A bridge and a cache of it."""

    bridge: Any
    cache: Any


_made: dict[tuple[str, torch.dtype], Made] = {}


def cached(spec: Spec, dtype: torch.dtype = torch.float64) -> Made:
    """A spec's bridge and the cache of its standard input, once per run.

    Raises:
        NotHere: the installed libraries do not have it
    """
    key = spec.name, dtype
    if key not in _made:
        bridge = boot(spec, make(spec, dtype))
        _made[key] = Made(bridge, run(bridge, tokens()))
    return _made[key]


def forget(spec: Spec) -> None:
    """Drop what `cached` keeps of a spec."""
    for dtype in (torch.float64, torch.float32):
        _made.pop((spec.name, dtype), None)


from . import zoo_dense, zoo_encoders, zoo_experts, zoo_hybrids, zoo_standins  # noqa: E402, F401 (they fill SPECS)

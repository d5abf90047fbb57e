"""A zoo of tiny random models, one spec per architecture and variant; the specs themselves are in zoo_*.py.

make(spec)          the Hugging Face model: every parameter and saved buffer jittered, eager attention and experts
boot(spec, model)   a TransformerBridge around it
run(bridge, ids)    the cache of a run
cached(spec)        bridge and cache of both dtypes, made once per test run

What the installed libraries do not have is NotHere; what TransformerLens itself cannot run with them is CannotRun.
Tests skip both, with the reason, and the table of architectures shows it.
"""

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

VOCAB, D_MODEL, N_HEADS, D_MLP, N_LAYERS, N_CTX = 100, 32, 4, 64, 2, 64

# what transformers computes in float32 whatever the model's dtype sets how exact a float64 run can be
FLOAT64, FLOAT32_NORMS = 1e-9, 2e-6
FLOAT32 = 2e-5  # for whole runs in float32
LIBRARIES, OURS = ("transformers", "transformer_lens"), ("tl_norms", __name__.partition(".")[0], "tests")
MOST_THAT_CANNOT_RUN = 8


class NotHere(Exception):
    """This version of transformers or TransformerLens does not have the architecture."""


class CannotRun(NotHere):
    """The model runs by itself and TransformerLens' bridge of it does not: there is nothing for tl_norms to analyse."""


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

    def limit(self, dtype: torch.dtype = torch.float64) -> float:
        """How exact sums are, relative to their size: as what is computed in the least exact dtype."""
        return FLOAT32 if self.only_float32 or dtype == torch.float32 else self.tolerance


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
    """A TransformerBridge around a model of a spec.

    Raises:
        NotHere: the installed TransformerLens does not know the architecture
        CannotRun: TransformerLens fails with the installed transformers, see `run`
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if spec.architecture not in SUPPORTED_ARCHITECTURES:
        raise NotHere(f"this TransformerLens has no {spec.architecture}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.bridge is not None:
            return spec.bridge(model)
        model.config.architectures = [spec.architecture]
        try:
            return build_bridge_from_module(model, spec.architecture, hf_config=model.config)
        except Exception as error:
            raise _judged(error, spec, tokens()) from error


def tokens(batch: int = 2, positions: int = 7, vocab: int = 90) -> Tensor:
    return torch.randint(5, vocab, (batch, positions), generator=torch.Generator().manual_seed(2))


def run(bridge, input: Tensor, spec: Spec | None = None, **options):
    """run_with_cache, with a decoder's input where one is needed; the cache.

    Raises:
        CannotRun: given a spec, the bridge's own plain forward pass raises inside of TransformerLens or transformers,
            and transformers' model runs the same input. All other errors pass through.
    """
    if hasattr(bridge, "decoder_blocks"):
        options["decoder_input"] = input[:, :5]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return bridge.run_with_cache(input, **options)[1]
        except Exception:
            if spec is None:
                raise
            try:
                bridge(input, **options)
            except Exception as error:
                raise _judged(error, spec, input) from error
            raise  # the plain pass works: what failed is the cache, and that is to be seen


_cannot_run: set[str] = set()


def _judged(error: Exception, spec: Spec, input: Tensor) -> Exception:
    """CannotRun if TransformerLens is at fault; else the error itself: a mistake of ours must not look like theirs.

    At fault is who raised: the innermost frame that is neither torch's nor Python's own. Models that we wrote
    (stand-ins) and configurations that transformers itself cannot run are ours. So are too many failures: then it is
    this zoo that no longer knows how models are booted.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in reversed(frames)]
    at_fault = next((name for name in packages if name in LIBRARIES + OURS), "")
    alone = make(spec, torch.float32)
    if at_fault not in LIBRARIES or not type(alone).__module__.startswith("transformers."):
        return error
    own = {"decoder_input_ids": input[:, :5]} if alone.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            alone(input, **own)
    except Exception:
        return error
    if spec.broken is None:
        _cannot_run.add(spec.architecture)
    if len(_cannot_run) > MOST_THAT_CANNOT_RUN:
        return AssertionError(f"TransformerLens cannot run {len(_cannot_run)} architectures: {sorted(_cannot_run)}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformer_lens", "transformers"))
    return CannotRun(f"TransformerLens cannot run it ({versions}): {error}")


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
        CannotRun: TransformerLens cannot run it with the installed transformers
    """
    key = spec.name, dtype
    if key not in _made:
        bridge = boot(spec, make(spec, dtype))
        _made[key] = Made(bridge, run(bridge, tokens(), spec))
    return _made[key]


def forget(spec: Spec) -> None:
    """Drop what `cached` keeps of a spec."""
    for dtype in (torch.float64, torch.float32):
        _made.pop((spec.name, dtype), None)


from . import zoo_dense, zoo_encoders, zoo_experts, zoo_hybrids, zoo_standins  # noqa: E402, F401 (they fill SPECS)

KINDS = [
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "GPTNeoXForCausalLM",  # parallel
    "BloomForCausalLM",
    "Gemma2ForCausalLM",  # norms behind each branch
    "MixtralForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen3NextForCausalLM",  # gated attention, layers without any
    "T5ForConditionalGeneration@decoder",
    "BartForConditionalGeneration@encoder",
]


def is_of_each_kind(name: str) -> bool:
    """Whether this architecture stands for its kind."""
    return name in KINDS or name.partition("@")[0] in KINDS


def others_slow(names: list[str]) -> list:
    """Those that stand for their kind, and all others in the slow group: what follows from what is tested on all."""
    return [name if is_of_each_kind(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]

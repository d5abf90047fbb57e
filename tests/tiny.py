"""Tiny models with fixed weights: no download, no random numbers, every gain and bias away from its default.

Weights are sines of squares: the same in every version of torch, of full rank, and the same under every class that has
a parameter of that name, so that a bridge and a HookedTransformer of one family compute the same function.
"""

import copy
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformer_lens import ActivationCache

try:  # TransformerLens 3 and 4
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
except ImportError:
    build_bridge_from_module = None

try:  # TransformerLens 2 and 3; 4 raises on purpose
    from transformer_lens import HookedEncoder, HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions
except ImportError:
    HookedTransformer = None

VOCAB, D_MODEL, N_HEADS, D_MLP, N_LAYERS, N_CTX = 61, 32, 4, 48, 2, 32
KINDS = [kind for kind, there in (("bridge", build_bridge_from_module), ("hooked", HookedTransformer)) if there]


@dataclass(frozen=True)
class Family:
    """How to build one family: Hugging Face's class and configuration, and TransformerLens' own."""

    name: str
    hf_class: str
    config: str
    options: dict[str, Any]
    converter: str | None = None  # None: TransformerLens' own classes cannot hold this model
    hooked: dict[str, Any] = field(default_factory=dict)
    post_norm: bool = False
    rms: bool = False


_BASE = dict(
    num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS, hidden_size=D_MODEL, intermediate_size=D_MLP,
    vocab_size=VOCAB, max_position_embeddings=N_CTX, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_GPT2 = dict(
    n_layer=N_LAYERS, n_head=N_HEADS, n_embd=D_MODEL, n_inner=D_MLP, n_positions=N_CTX, vocab_size=VOCAB,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_ROTARY = dict(
    normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=D_MODEL // N_HEADS, final_rms=True,
    gated_mlp=True, act_fn="silu", eps=1e-6, rotary_adjacent_pairs=False,
)  # fmt: skip

FAMILIES = {
    family.name: family
    for family in (
        Family("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT2, "gpt2", dict(act_fn="gelu_new", eps=1e-5)),
        Family("llama_mha", "LlamaForCausalLM", "LlamaConfig", _BASE, "llama", _ROTARY, rms=True),
        Family(
            "llama_gqa", "LlamaForCausalLM", "LlamaConfig", dict(_BASE, num_key_value_heads=2), "llama",
            dict(_ROTARY, n_key_value_heads=2), rms=True,
        ),
        Family(
            "llama_mqa_biased", "LlamaForCausalLM", "LlamaConfig",
            dict(_BASE, num_key_value_heads=1, attention_bias=True, mlp_bias=True), rms=True,
        ),
        Family(
            "mistral", "MistralForCausalLM", "MistralConfig",
            dict(_BASE, num_key_value_heads=2, sliding_window=3, head_dim=D_MODEL // N_HEADS), "mistral",
            dict(_ROTARY, n_key_value_heads=2, use_local_attn=True, window_size=3, attn_types=["local"] * N_LAYERS),
            rms=True,
        ),
        Family(
            "qwen2", "Qwen2ForCausalLM", "Qwen2Config", dict(_BASE, num_key_value_heads=2), "qwen2",
            dict(_ROTARY, n_key_value_heads=2), rms=True,
        ),
        Family(
            "gemma", "GemmaForCausalLM", "GemmaConfig",
            dict(_BASE, num_key_value_heads=1, head_dim=D_MODEL // N_HEADS), "gemma",
            dict(_ROTARY, n_key_value_heads=1, act_fn="gelu_new"), rms=True,
        ),
        Family(
            "bert", "BertForMaskedLM", "BertConfig", _BASE, "bert",
            dict(act_fn="gelu", eps=1e-12, attention_dir="bidirectional"), post_norm=True,
        ),
        Family("roberta", "RobertaForMaskedLM", "RobertaConfig", _BASE, post_norm=True),
    )
}  # fmt: skip

CASES = [(name, kind) for name, family in FAMILIES.items() for kind in KINDS if kind == "bridge" or family.converter]


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers in -1..1 that look random: sin(0.7123 k² + phase)."""
    k = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return torch.sin(0.7123 * k * k + phase).reshape(shape)


def fill(model: nn.Module) -> None:
    """Give every parameter its own fixed values: embeddings, matrices, gains, biases."""
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = waves(tuple(parameter.shape), phase=zlib.crc32(name.encode()) % 1000 / 100)
            if parameter.ndim == 1:
                gain = name.endswith("weight") and not gemma  # Gemma multiplies by 1 + weight
                values = 0.3 * values + (1.0 if gain else 0.0)
                if gemma:  # Hugging Face adds the one in float32: make that sum exact
                    values = (values * 1024).round() / 1024
            elif "embed" not in name and ".wte." not in name and ".wpe." not in name:
                values = 1.6 * values / D_MODEL**0.5
            parameter.copy_(values)


def hugging_face(family: Family, dtype: torch.dtype = torch.float64, hf_class: str | None = None) -> nn.Module:
    """The family's model as Hugging Face builds it."""
    config = getattr(transformers, family.config)(**family.options)
    config._attn_implementation = "eager"
    model = getattr(transformers, hf_class or family.hf_class)(config)
    fill(model)
    return model.to(dtype).eval()


def boot(model: nn.Module, architecture: str):
    """A bridge around a model that exists already."""
    try:
        return build_bridge_from_module(model, architecture, hf_config=model.config)
    except ValueError as error:
        if "Unsupported architecture" not in str(error):
            raise
        pytest.skip(f"this TransformerLens has no {architecture}")


def hooked(family: Family, dtype: torch.dtype = torch.float64, processing: tuple[str, ...] = ()) -> nn.Module:
    """The same weights in TransformerLens' own class; `processing` names steps of loading to switch on."""
    with warnings.catch_warnings():  # TransformerLens 3 announces on every call that 4 has these classes no more
        warnings.filterwarnings("ignore", message="Hooked.* is deprecated", category=DeprecationWarning)
        return _hooked(family, dtype, processing)


def _hooked(family: Family, dtype: torch.dtype, processing: tuple[str, ...]) -> nn.Module:
    config = HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=D_MODEL, n_heads=N_HEADS, d_head=D_MODEL // N_HEADS, d_mlp=D_MLP, n_ctx=N_CTX,
        d_vocab=VOCAB, dtype=dtype, device="cpu", **{"normalization_type": "LN", **family.hooked},
    )  # fmt: skip
    source = hugging_face(family, dtype, "BertForPreTraining" if family.name == "bert" else None)
    weights = getattr(weight_conversions, f"convert_{family.converter}_weights")(source, config)
    if family.name == "bert":
        model = HookedEncoder(config, move_to_device=False)
        missing = model.load_state_dict(
            {name: value.detach() for name, value in weights.items()}, strict=False
        ).missing_keys
        assert not [name for name in missing if "mask" not in name.lower() and "IGNORE" not in name], missing
    else:
        model = HookedTransformer(config, move_to_device=False)
        on = {step: step in processing for step in ("fold_ln", "center_writing_weights", "fold_value_biases")}
        model.load_and_process_state_dict(
            {name: value.detach().clone() for name, value in weights.items()}, center_unembed=bool(processing), **on
        )
    return model.eval()


@dataclass
class Tiny:
    """A model of one family, with Hugging Face's own beside it."""

    family: Family
    kind: str
    model: nn.Module
    hf: nn.Module
    dtype: torch.dtype

    def cache(self, tokens: Tensor | None = None, mask: Tensor | None = None, **options) -> ActivationCache:
        if mask is not None:
            encoder = self.kind == "hooked" and self.family.post_norm
            options["one_zero_attention_mask" if encoder else "attention_mask"] = mask
        with torch.no_grad():
            return self.model.run_with_cache(self.tokens() if tokens is None else tokens, **options)[1]

    @staticmethod
    def tokens(batch: int = 2, positions: int = 7) -> Tensor:
        return (torch.arange(batch * positions).reshape(batch, positions) * 13 + 5) % (VOCAB - 3) + 3


_made: dict[tuple, Tiny] = {}


def make(name: str, kind: str, dtype: torch.dtype = torch.float64, fresh: bool = False) -> Tiny:
    """A tiny model, made once per test run unless `fresh` (for tests that change it)."""
    key = (name, kind, dtype)
    if fresh or key not in _made:
        family = FAMILIES[name]
        hf = hugging_face(family, dtype)
        model = boot(copy.deepcopy(hf), family.hf_class) if kind == "bridge" else hooked(family, dtype)
        tiny = Tiny(family, kind, model, hf, dtype)
        if fresh:
            return tiny
        _made[key] = tiny
    return _made[key]


class Alive(TorchDispatchMode):
    """Bytes of tensors made inside that are alive at once, scratch space of single operators aside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in before:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding: a matrix product may round differently where its memory lies differently."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point() or not found.numel():
        return torch.equal(found, expected)
    eps = 100 * torch.finfo(found.dtype).eps
    return torch.allclose(found, expected, rtol=eps, atol=eps * float(expected.nan_to_num(0).abs().max()))

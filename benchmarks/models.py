"""Models of real sizes with random weights, and their caches. Nothing is downloaded."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tl_norms

_VOCABULARY = 1000


@dataclass(frozen=True)
class Size:
    """What a model's arithmetic depends on.

    Attributes:
        values: width of the values of all key-value heads
        matrices: of the feed-forward, each d_model x d_mlp
        layers: of the real model
    """

    d_model: int
    values: int
    matrices: int
    d_mlp: int
    heads: int
    causal: bool
    layers: int

    def pairs(self, n: int) -> float:
        """(query, key) pairs that there are."""
        return n * (n + 1) / 2 if self.causal else n * n


SIZES = {
    "MiniLM": Size(384, 384, 2, 1536, 12, False, 6),
    "BERT-base": Size(768, 768, 2, 3072, 12, False, 12),
    "GPT-2": Size(768, 768, 2, 3072, 12, True, 12),
    "SmolLM2": Size(576, 192, 3, 1536, 9, True, 30),
    "Llama-8B": Size(4096, 1024, 3, 14336, 32, True, 32),
}

GROUPS = {"SmolLM2": 3, "Llama-8B": 8}  # of keys and values


@dataclass(frozen=True)
class Case:
    """A model as TransformerLens sees it, and the same model as transformers runs it."""

    bridge: nn.Module
    plain: nn.Module
    layer: nn.Module  # the first of `plain`

    def tokens(self, n: int) -> Tensor:
        """[1 n], the same for the same n."""
        tokens = torch.randint(5, _VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
        return tokens.to(next(self.plain.parameters()).device)

    def cache(self, n: int):
        """What an attribution needs."""
        hooks = tl_norms.required_hooks(self.bridge, target=tl_norms.logit(7))
        return self.bridge.run_with_cache(self.tokens(n), names_filter=hooks)[1]

    def layer_forward(self, n: int) -> Callable[[], object]:
        """The model's own forward pass of the layer alone, eager attention, without hooks."""
        arguments: list[tuple[tuple, dict]] = []
        handle = self.layer.register_forward_pre_hook(lambda _, a, k: arguments.append((a, k)), with_kwargs=True)
        self.plain(self.tokens(n), **({} if self.plain.config.model_type == "bert" else {"use_cache": False}))
        handle.remove()
        ((args, kwargs),) = arguments
        return lambda: self.layer(*args, **kwargs)


def case(name: str, layers: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Case:
    """A model of some layers, eager attention; biases and gains are random too, or weights would look folded.

    MiniLM, BERT-base   post-norm, bidirectional, GELU
    GPT-2               pre-norm, causal, GELU (tanh)
    SmolLM2             SmolLM2-135M-Instruct's size: 9 heads on 3 keys and values, gated feed-forward, pre-norm, causal
    Llama-8B            Llama 3 8B's size, for a card: 32 heads on 8 keys and values, else as SmolLM2
    """
    size = SIZES[name]
    shared = dict(vocab_size=_VOCABULARY, attn_implementation="eager")
    wide = dict(hidden_size=size.d_model, intermediate_size=size.d_mlp, num_hidden_layers=layers)
    torch.manual_seed(0)
    if name == "GPT-2":
        model, layer = GPT2LMHeadModel(GPT2Config(n_layer=layers, **shared)), "transformer.h.0"
    elif name in GROUPS:
        heads = dict(num_attention_heads=size.heads, num_key_value_heads=GROUPS[name], max_position_embeddings=8192)
        model, layer = LlamaForCausalLM(LlamaConfig(**wide, **heads, **shared)), "model.layers.0"
    else:
        heads = dict(num_attention_heads=size.heads, max_position_embeddings=1024)
        model, layer = BertForMaskedLM(BertConfig(**wide, **heads, **shared)), "bert.encoder.layer.0"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.eval().to(device=device, dtype=dtype)
    model.config.dtype = dtype
    plain = copy.deepcopy(model)  # the bridge replaces parts of the model it is given
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    return Case(bridge, plain, plain.get_submodule(layer))

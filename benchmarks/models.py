"""One-layer models of real sizes with random weights, and their caches. Nothing is downloaded."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

_VOCABULARY = 1000


@dataclass(frozen=True)
class Case:
    """A model as TransformerLens sees it, and the same model as transformers runs it."""

    bridge: nn.Module
    plain: nn.Module
    layer: nn.Module  # of `plain`

    def tokens(self, n: int) -> Tensor:
        """[1 n], the same for the same n."""
        return torch.randint(5, _VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))

    def layer_forward(self, n: int) -> Callable[[], object]:
        """The model's own forward pass of the layer alone, eager attention, without hooks."""
        arguments: list[tuple[tuple, dict]] = []
        handle = self.layer.register_forward_pre_hook(lambda _, a, k: arguments.append((a, k)), with_kwargs=True)
        self.plain(self.tokens(n), **({} if self.plain.config.model_type == "bert" else {"use_cache": False}))
        handle.remove()
        ((args, kwargs),) = arguments
        return lambda: self.layer(*args, **kwargs)


def bert_base() -> Case:
    """12 heads, 768 wide, feed-forward 3072 (GELU), post-norm, bidirectional."""
    model = BertForMaskedLM(BertConfig(num_hidden_layers=1, vocab_size=_VOCABULARY, attn_implementation="eager"))
    return _case(model, lambda m: m.bert.encoder.layer[0])


def gpt2() -> Case:
    """12 heads, 768 wide, feed-forward 3072 (GELU, tanh), pre-norm, causal."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, vocab_size=_VOCABULARY, attn_implementation="eager"))
    return _case(model, lambda m: m.transformer.h[0])


def smollm2() -> Case:
    """SmolLM2-135M-Instruct's size: 9 heads on 3 keys and values, 576 wide, gated feed-forward 1536, pre-norm."""
    config = LlamaConfig(
        num_hidden_layers=1,
        vocab_size=_VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        attn_implementation="eager",
    )
    return _case(LlamaForCausalLM(config), lambda m: m.model.layers[0])


CASES = {"BERT-base": bert_base, "GPT-2": gpt2, "SmolLM2": smollm2}


def _case(model: nn.Module, layer: Callable[[nn.Module], nn.Module]) -> Case:
    config: PretrainedConfig = model.config
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gains of one and biases of zero would look like folded weights
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    plain = copy.deepcopy(model)  # the bridge replaces parts of the model it is given
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=config)
    return Case(bridge, plain, layer(plain))

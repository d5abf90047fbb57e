"""Tiny models with tokenizers, made by functions that other processes can call."""

import tempfile

import torch
from tiny import FAMILIES, KINDS, VOCAB, hooked, hugging_face
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(7, VOCAB)]


def tokenizer(bert: bool) -> PreTrainedTokenizerFast:
    """Words w7 to w60, comma, period; [CLS] and [SEP] around a text, or <s> in front of it."""
    names = ["[PAD]", "[CLS]" if bert else "<s>", "[SEP]" if bert else "</s>", "[MASK]", "[UNK]", ",", "."]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(names + WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "[CLS] $A [SEP]" if bert else "<s> $A"
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if bert else None
    made.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=[(name, n) for n, name in enumerate(names) if name in template]
    )
    special = dict(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]") if bert else {}
    if not bert:
        special = dict(bos_token="<s>", eos_token="</s>")
    special["model_input_names"] = ["input_ids", "attention_mask"] + ["token_type_ids"] * bert
    found = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **special)
    folder = tempfile.mkdtemp()  # TransformerLens loads the tokenizer a second time, from where it came from
    found.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def bert() -> nn.Module:
    return _model("bert", torch.float64)


def gpt2() -> nn.Module:
    return _model("gpt2", torch.float64)


def hooked_gpt2() -> nn.Module:
    """TransformerLens' own class, which can be pickled (not in TransformerLens 4)."""
    return _with_tokenizer(hooked(FAMILIES["gpt2"]), tokenizer(False))


def tokens(model: nn.Module, text: str) -> torch.Tensor:
    """[1 pos]; HookedEncoder gives segments and mask beside them."""
    found = model.to_tokens(text)
    return found[0] if isinstance(found, tuple) else found


def _model(name: str, dtype: torch.dtype) -> nn.Module:
    family, words = FAMILIES[name], tokenizer(name == "bert")
    if "bridge" not in KINDS:
        return _with_tokenizer(hooked(family, dtype), words)
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    source = hugging_face(family, dtype)
    return build_bridge_from_module(source, family.hf_class, hf_config=source.config, tokenizer=words)


def _with_tokenizer(model: nn.Module, words: PreTrainedTokenizerFast) -> nn.Module:
    if hasattr(model, "set_tokenizer"):
        model.set_tokenizer(words)
    else:
        model.tokenizer = words
    return model

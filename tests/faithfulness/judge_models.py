"""A tiny language model whose tokenizer knows the words of the templates, made by functions that processes can call."""

import tempfile
import warnings

import torch
import transformers
from tiny import KINDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from tl_norms.faithfulness.tasks import probing, words

_OTHER = "The the said that list : , . color of is When and went to gave a No have saw liked bought found took No"


def vocabulary(without: tuple[str, ...] = ()) -> list[str]:
    """All words of all templates, less some."""
    found = [*words.PLURALS, *words.PLURALS.values(), *words.PEOPLE, *words.PEOPLE.values(), *words.GENDERED]
    found += [
        *words.GENDERED.values(),
        "themselves",
        *words.VERBS,
        *words.VERBS.values(),
        *words.RELATIONS,
        *words.PAST,
        *words.ADVERBS,
    ]
    found += [*words.MALE, *words.FEMALE, *words.PLACES, *words.THINGS, *words.ADJECTIVES, *words.COLOURS]
    found += [*words.LICENSED, *words.UNLICENSED, *words.DETERMINERS, *words.DETERMINERS.values(), *_OTHER.split()]
    found += [word for group in probing.SUBJECTS.values() for word in group]
    found += [word for frame in probing._FRAMES for word in frame.replace(",", " ,").replace(".", " .").split()]
    return [word for word in dict.fromkeys(found) if word not in without and "{" not in word]


def tokenizer(without: tuple[str, ...] = (), bert: bool = False) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if bert else ["[PAD]", "<s>", "</s>", "[UNK]"]
    names = [*special, *vocabulary(without)]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "[CLS] $A [SEP]" if bert else "<s> $A"
    used = [(name, n) for n, name in enumerate(names[:3]) if name in template]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    named = dict(cls_token="[CLS]", sep_token="[SEP]") if bert else dict(bos_token="<s>", eos_token="</s>")
    found = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **named)
    folder = tempfile.mkdtemp()  # TransformerLens loads the tokenizer a second time, from where it came from
    found.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def hugging_face(family: str, size: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random weights of a fixed seed, with biases and gains away from their defaults."""
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=64, vocab_size=size)
    elif family == "llama":
        config = transformers.LlamaConfig(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
            vocab_size=size, max_position_embeddings=64,
        )  # fmt: skip
    else:
        config = transformers.BertConfig(
            num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48, vocab_size=size,
            max_position_embeddings=64,
        )  # fmt: skip
    config._attn_implementation = "eager"
    kind = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "bert": "BertForMaskedLM"}[family]
    model = getattr(transformers, kind)(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def boot(family: str = "gpt2", without: tuple[str, ...] = ()) -> nn.Module:
    """A bridge with that tokenizer."""
    assert "bridge" in KINDS
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    found = tokenizer(without, family == "bert")
    model = hugging_face(family, len(found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=found)


def gpt2() -> nn.Module:
    return boot("gpt2")

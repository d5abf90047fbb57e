"""Tiny random translation models with their tokenizers, made by functions that other processes can call."""

import functools
import io
import json
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

SOURCE = "das kleine haus steht am alten fluss und der wald rauscht unaufhörlich leise , sagt man dort .".split()
TARGET = "the little house stands near an ancient river while woods are murmuring unceasingly , people say .".split()
CONFIG = dict(
    encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
    decoder_ffn_dim=64, d_model=32, max_position_embeddings=64, eos_token_id=0, decoder_start_token_id=99,
    pad_token_id=99, forced_eos_token_id=None,
)  # fmt: skip

PAIRS = [
    ("das kleine haus .", "the little house ."),
    ("der wald rauscht leise , sagt man", "woods are murmuring , people say"),
    ("haus am fluss", "house near an ancient river"),
    ("wald", "unceasingly"),
    ("und der alten fluss steht dort unaufhörlich .", "while ancient river stands unceasingly near the woods ."),
]


def _spm(words: list[str], size: int) -> bytes:
    import sentencepiece

    written = io.BytesIO()
    lines = [" ".join(words[n:] + words[:n]) for n in range(len(words))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=size, model_type="bpe", hard_vocab_limit=False,
        minloglevel=2, bos_id=-1, num_threads=1,
    )  # fmt: skip
    return written.getvalue()


@functools.cache
def marian_folder(separate: bool = False) -> str:
    """A folder with a slow Marian tokenizer whose two sides have pieces of their own (and numbers, if `separate`)."""
    import sentencepiece

    folder = Path(tempfile.mkdtemp())
    pieces = {}
    for side, words in (("source", SOURCE), ("target", TARGET)):
        model = _spm(words, 45)
        (folder / f"{side}.spm").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces[side] = [processor.id_to_piece(n) for n in range(processor.get_piece_size())]
    special = ["</s>", "<unk>"]
    tables = [pieces["source"], pieces["target"]] if separate else [pieces["source"] + pieces["target"]]
    for name, table in zip(("vocab.json", "target_vocab.json"), tables, strict=False):
        words = dict.fromkeys(special + [piece for piece in table if piece not in special])
        vocabulary = {piece: n for n, piece in enumerate(words)}
        assert len(vocabulary) < 99
        vocabulary["<pad>"] = 99
        (folder / name).write_text(json.dumps(vocabulary))
    options = {"separate_vocabs": separate} | ({"target_vocab_file": "target_vocab.json"} if separate else {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer", **options}))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return str(folder)


def marian_tokenizer(separate: bool = False):
    folder = Path(marian_folder(separate))
    files = dict(source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm"))
    files["vocab"] = str(folder / "vocab.json")
    if separate:
        files["target_vocab_file"] = str(folder / "target_vocab.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends another package
        return transformers.MarianTokenizer(**files, separate_vocabs=separate)


def hugging_face_marian(separate: bool = False) -> nn.Module:
    """Random weights, every parameter moved off its default."""
    torch.manual_seed(0)
    options = dict(CONFIG, vocab_size=100, scale_embedding=True, share_encoder_decoder_embeddings=not separate)
    options |= {"decoder_vocab_size": 100} if separate else {}
    model = transformers.MarianMTModel(transformers.MarianConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.set_attn_implementation("eager")
    return model.to(torch.float64).eval()


def marian(separate: bool = False) -> nn.Module:
    """A TransformerBridge of a tiny Marian, in float64, with its tokenizer."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    source = hugging_face_marian(separate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = build_bridge_from_module(source, "MarianMTModel", hf_config=source.config)
        bridge.tokenizer = marian_tokenizer(separate)
    return bridge


def fast_tokenizer(kind: str):
    """Fast tokenizers trained on the words above: "wordpiece", "bytes", "metaspace", "words"."""
    words = SOURCE + TARGET
    lines = [" ".join(words[n:] + words[:n]) for n in range(len(words))]
    special = ["<unk>", "<pad>", "</s>"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=110, special_tokens=special, show_progress=False)
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    made.train_from_iterator(lines, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = dict(unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)

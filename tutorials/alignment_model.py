"""The tokenizer, the Marian model and its training for the made-up language pair of synthetic_pair.py."""

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from synthetic_pair import Grammar, SentencePair, pieces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

HELD_OUT_SEED, DEVELOPMENT_SEED, TRAINING_SEED = 1, 2, 3
SPECIAL = ("</s>", "<unk>", "<pad>")
EOS, UNK, PAD = range(3)
TRAINING_SENTENCES, STEPS, PIECES, WARMUP, LEARNING_RATE = 60_000, 4_800, 1_500, 300, 2e-3


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Syllables as pieces, ▁ where a word begins, </s> behind each sentence; one vocabulary for both languages."""
    # All pieces are equally likely, and no syllable can be read in two ways: nothing has to be trained.
    vocabulary = [(piece, 0.0 if piece in SPECIAL else -5.0) for piece in (*SPECIAL, *pieces())]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=UNK))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=128,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(vocabulary: int, d_model: int = 96, layers: int = 3) -> MarianMTModel:
    """A small Marian: layer norms behind each step, sines as positions, embeddings tied, as in its large relatives.

    Without dropout: it learns faster, and held-out sentences are translated well all the same. Encoder
    and decoder have the same number of layers, as TransformerLens wants it.
    """
    config = MarianConfig(
        vocab_size=vocabulary, d_model=d_model, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=4 * d_model, decoder_ffn_dim=4 * d_model,
        activation_function="relu", dropout=0.0, max_position_embeddings=128, scale_embedding=True,
        init_std=d_model**-0.5, pad_token_id=PAD, eos_token_id=EOS, forced_eos_token_id=None,
        # The decoder begins with the end of a sentence, as fairseq's does (Marian's own begin with padding).
        decoder_start_token_id=EOS,
    )  # fmt: skip
    return MarianMTModel(config)


def train(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, steps: int = STEPS, log: bool = True, **size: int
) -> MarianMTModel:
    """From scratch: AdamW, a warm-up and then a cosine, label smoothing of 0.1."""
    torch.manual_seed(seed)
    model = build_model(len(tokenizer), **size).train()
    held_out = {pair.source for pair in Grammar(HELD_OUT_SEED).sentences(500)}
    development = [pair for pair in Grammar(DEVELOPMENT_SEED).sentences(100) if pair.source not in held_out]
    corpus = [pair for pair in Grammar(TRAINING_SEED).sentences(TRAINING_SENTENCES) if pair.source not in held_out]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    begun, cpu = time.perf_counter(), time.process_time()
    for step, (source, target) in enumerate(_batches(corpus, tokenizer, steps, seed), start=1):
        shifted = torch.cat([torch.full_like(target[:, :1], EOS), target[:, :-1]], 1)
        logits = model(input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=shifted).logits
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if log and step % 500 == 0:
            exact = exact_match(model, tokenizer, development)
            times = f"{time.perf_counter() - begun:.0f} s, {time.process_time() - cpu:.0f} s of processor time"
            print(f"step {step}: loss {loss.item():.3f}, {exact:.1%} of {len(development)} sentences exact; {times}")
            model.train()
    return model.eval()


def _batches(
    corpus: Sequence[SentencePair], tokenizer: PreTrainedTokenizerFast, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sentences of like length together, about PIECES pieces; at first, for a quarter of the steps, short ones only."""
    ids = [tokenizer([" ".join(getattr(pair, side)) for pair in corpus])["input_ids"] for side in ("source", "target")]
    sizes = [len(source) + len(target) for source, target in zip(*ids, strict=True)]
    batches: list[list[int]] = [[]]
    for n in sorted(range(len(corpus)), key=lambda n: (sizes[n], len(ids[0][n]))):
        if sizes[n] * (len(batches[-1]) + 1) > PIECES:
            batches.append([])
        batches[-1].append(n)
    rng = random.Random(seed)
    short = batches[: len(batches) // 4]
    for step in range(steps):
        batch = rng.choice(short if step < steps // 4 else batches)
        yield tuple(_padded([side[n] for n in batch]) for side in ids)  # type: ignore[misc]


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


@torch.no_grad()
def translate(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, sources: Sequence[str]) -> list[str]:
    """Greedy decoding, one sentence's translation per sentence."""
    model.eval()
    found: list[str] = []
    for n in range(0, len(sources), 100):
        batch = tokenizer(list(sources[n : n + 100]), padding=True, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**batch, num_beams=1, do_sample=False, max_new_tokens=100)
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return found


def exact_match(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[SentencePair]) -> float:
    """The share of sentences that are translated without any mistake."""
    found = translate(model, tokenizer, [" ".join(pair.source) for pair in pairs])
    return sum(text == " ".join(pair.target) for text, pair in zip(found, pairs, strict=True)) / len(pairs)


def save(folder: Path, model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[SentencePair]) -> None:
    """Model, tokenizer, sentence pairs and gold links: all that the analysis reads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Known to transformers 4 and 5; and it keeps </s> behind a sentence if told to add a token in front, which a plain
    # fast tokenizer does not, and which TransformerBridge.boot_transformers does tell it.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{' '.join(pair.source)} ||| {' '.join(pair.target)}" for pair in pairs]
    (folder / "held_out.pairs").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "held_out.gold").write_text("\n".join(pair.pharaoh for pair in pairs) + "\n", encoding="utf-8")

"""Word alignment by norms and by weights, on a translation model trained here from scratch.

    python tutorials/train_alignment_model.py               alignment error rates of the model in alignment_model/
    python tutorials/train_alignment_model.py --train       train it anew first (a few minutes)

A small Marian learns the language pair of synthetic_pair.py, whose gold alignment is known. Kobayashi et al. 2020
(section 5) found that the norms of cross-attention, |alpha f(x)|, are closer to gold alignments than its weights are.
Here the same is measured: for each target word the source word of greatest weight or norm, the end of sentence among
them, at the step that predicts the word (AWO) and at the one that reads it (AWI).
"""

import argparse
import os
import time
from pathlib import Path

import torch
from alignment_model import HELD_OUT_SEED, STEPS, build_tokenizer, exact_match, save, train
from synthetic_pair import Grammar
from transformers import AutoTokenizer, MarianMTModel

from tl_norms import alignment, cross_norms
from tl_norms.alignment import AlignmentErrorRate, GoldLinks, WordAlignments

FOLDER = Path(__file__).parent / "alignment_model"
SETTINGS, METHODS = ("AWO", "AWI"), ("weight", "norm")


def load(folder: Path = FOLDER):
    """The model as a TransformerBridge with its tokenizer, the held-out sentence pairs, and their gold links."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf_model = MarianMTModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = build_bridge_from_module(hf_model, "MarianMTModel", hf_config=hf_model.config, tokenizer=tokenizer)
    return model, alignment.read_pairs(folder / "held_out.pairs"), alignment.read_pharaoh(folder / "held_out.gold")


def best_possible(gold: list[GoldLinks]) -> AlignmentErrorRate:
    """The least error that one link per target word allows: a word that stands for two can show one of them only."""
    chosen = []
    for links in gold:
        of_word = {target: source for source, target in sorted(links.possible)}
        of_word |= {target: source for source, target in sorted(links.sure)}
        chosen.append({(source, target) for target, source in of_word.items()})
    return alignment.alignment_error_rate(chosen, gold)


def mean_norms(model, pairs: list[alignment.SentencePair]) -> list[float]:
    """The mean of |sum_h alpha f(x)| of each layer, over the decoder steps and source pieces of all sentences."""
    totals, n = torch.zeros(model.cfg.n_layers), 0
    for pair in pairs:
        encoded = alignment.encode_pair(model.tokenizer, pair)
        source, target, options = alignment.teacher_forced(model, [encoded])
        _, cache = model.run_with_cache(source, decoder_input=target, **options)
        norms = cross_norms(cache).norms
        totals, n = totals + norms.sum((1, 2, 3)), n + norms[0].numel()
    return (totals / n).tolist()


def report(found: WordAlignments, gold: list[GoldLinks], norms: list[float]) -> str:
    """AER in percent of each layer, by setting and method; 0 is best."""
    columns = [(setting, method) for setting in SETTINGS for method in METHODS]
    rates = {
        column: [100 * alignment.alignment_error_rate(found.links(*column, layer), gold).aer for layer in found.layers]
        for column in columns
    }
    lines = ["| layer | " + " | ".join(f"{a} {b}" for a, b in columns) + " | mean norm |", "|---" * 6 + "|"]
    for number, layer in enumerate(found.layers):
        values = " | ".join(f"{rates[column][number]:.1f}" for column in columns)
        lines.append(f"| {layer + 1} | {values} | {norms[number]:.3f} |")
    lines.append("| mean | " + " | ".join(f"{sum(rates[c]) / len(rates[c]):.1f}" for c in columns) + " | |")
    best = {
        column: min(
            (100 * alignment.alignment_error_rate(found.links(*column, layer, head), gold).aer, layer + 1, head + 1)
            for layer in found.layers
            for head in range(found.n_heads)
        )
        for column in columns
    }
    lines.append("| best head | " + " | ".join("{:.1f} ({}.{})".format(*best[column]) for column in columns) + " | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train the model anew before it is analysed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is, or will be")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train:
        clocks = time.perf_counter(), time.process_time()
        tokenizer = build_tokenizer()
        trained = train(tokenizer, seed=options.seed, steps=options.steps)
        held_out = list(Grammar(HELD_OUT_SEED).sentences(500))
        save(options.folder, trained, tokenizer, held_out)
        seconds, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
        print(f"trained in {seconds:.0f} s, {processor:.0f} s of processor time")
        print(f"{exact_match(trained, tokenizer, held_out):.1%} of {len(held_out)} held-out sentences are exact")
    if not (options.folder / "config.json").is_file():
        parser.error(f"there is no model in {options.folder}; pass --train")
    model, pairs, gold = load(options.folder)
    found = alignment.align(model, pairs, settings=SETTINGS)
    print(f"\nAlignment error rate in percent on {len(pairs)} held-out sentences, the end of sentence competing:\n")
    print(report(found, gold, mean_norms(model, pairs)))
    print(f"\nwith one link per target word no less than {100 * best_possible(gold).aer:.1f} can be reached")


if __name__ == "__main__":
    main()

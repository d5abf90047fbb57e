"""Word alignment by norms and by weights, on a translation model trained here from scratch.

    python tutorials/train_alignment_model.py               alignment error rates of the model in alignment_model/
    python tutorials/train_alignment_model.py --train       train it anew first (530 s of processor time)

A small Marian learns the language pair of synthetic_pair.py, whose gold alignment is known. Kobayashi et al. 2020
(section 5) found that the norms of cross-attention, |alpha f(x)|, are closer to gold alignments than its weights are.
Here the same is measured: for each target word the source word of greatest weight or norm, the end of sentence among
them, at the step that predicts the word (AWO) and at the one that reads it (AWI).
"""

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from alignment_model import HELD_OUT_SEED, STEPS, build_tokenizer, exact_match, save, train
from synthetic_pair import Grammar
from transformers import AutoTokenizer, MarianMTModel

from tl_norms import alignment, studies
from tl_norms.alignment import AlignmentErrorRate, GoldLinks

FOLDER = Path(__file__).parent / "alignment_model"
METHODS = ("weight", "norm")


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


def report(found: studies.Alignments) -> str:
    """AER in percent, 0 is best: each layer as a whole, their mean, the layer of highest norm, and the best head."""
    columns = [(s, m) for s in range(len(found.settings)) for m in range(len(METHODS))]
    rates, heads = 100 * found.aer, 100 * found.head_aer
    strongest = found.strongest_layer()

    def line(name: str, values: Iterable[str], norm: str = "") -> str:
        return "| " + " | ".join([name, *values, norm]) + " |"

    lines = [line("layer", (f"{found.settings[s]} {METHODS[m]}" for s, m in columns), "mean norm"), "|---" * 6 + "|"]
    for number, layer in enumerate(found.layers):
        values = (f"{rates[s, m, number]:.1f}" for s, m in columns)
        lines.append(line(str(layer), values, f"{found.mean_norms[number].sum():.2f}"))
    lines.append(line("mean", (f"{rates[s, m].mean():.1f}" for s, m in columns)))
    lines.append(line("best", (f"{rates[s, m].min():.1f}" for s, m in columns)))
    lines.append(line(f"of highest norm ({strongest})", (f"{rates[s, m, strongest]:.1f}" for s, m in columns)))
    lines.append(line("best head", (f"{heads[s, m].min():.1f}" for s, m in columns)))
    spearman = found.correlations()["spearman"]
    rho = ", ".join(f"{rho:.2f} ({setting})" for setting, rho in zip(found.settings, spearman, strict=True))
    return "\n".join(lines) + f"\n\nSpearman's correlation of a head's AER by norms with its mean norm: {rho}"


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
    found = studies.alignment(model, pairs, gold)
    print(f"\nAlignment error rate in percent on {len(pairs)} held-out sentences, the end of sentence competing:\n")
    print(report(found))
    print(f"\nwith one link per target word no less than {100 * best_possible(gold).aer:.1f} can be reached")


if __name__ == "__main__":
    main()

"""What a study costs beyond the model and its norms: `python study_overhead.py [--limit 200] [STUDY ...]`.

The reference is the same batches through the model with a recorder of the same scopes, and nothing else: no reading of
texts, no tokenizer, no statistics, no merging. Both are measured in one process, in turns, in processor time; the
least of all turns counts.
"""

import argparse
import functools
import time
from collections.abc import Callable

import torch
from measure import table
from studies import STUDIES, sentences

import tl_norms
from tl_norms.cli import load

REFERENCES = {  # study -> scopes, what is kept, whether batches are padded
    "mixing-ratio": (None, "mixing_ratio", True),
    "value-norm-dispersion": (["attn"], None, True),
    "frequency": (["attn"], None, True),
    "weight-against-norm": (["attn"], None, True),
    "amplified-pairs": ("feed-forward", "maps", False),
    "contextualization-change": ("all", "maps", False),
    "cancellation": ("behind", "maps", False),
}


def batches_of(model, texts: list[str], pad: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, mask) [batch pos] of chunks of 128 texts, sorted by length, at most 4,096 positions each."""
    found = []
    for start in range(0, len(texts), 128):
        rows = sorted((model.tokenizer(text)["input_ids"] for text in texts[start : start + 128]), key=len)
        batch: list[list[int]] = []
        for row in rows:
            if batch and ((not pad and len(row) != len(batch[0])) or len(row) * (len(batch) + 1) > 4096):
                found.append(_padded(batch))
                batch = []
            batch.append(row)
        found.append(_padded(batch))
    return found


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    n = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (n - len(row)) for row in rows])
    return ids, torch.arange(n) < torch.tensor([len(row) for row in rows])[:, None]


def reference(model, batches, scopes, keep) -> None:
    for ids, mask in batches:
        options = {"keep": lambda norms: None, "maps": False} if keep is None else {"keep": keep}
        recorder = tl_norms.NormRecorder(model, scopes, mask=mask, **options)
        with torch.no_grad(), recorder:
            model(ids, attention_mask=mask.long())


def seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(REFERENCES))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = sentences()[: options.limit]
    model = load.load(load.model_name(None), torch.float32)
    n_tokens = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)
    print(f"MiniLM, {len(texts)} texts of {n_tokens / len(texts):.0f} tokens on average, one thread\n")
    chain = tl_norms.scopes(model)
    forward = next(scope for scope in chain if scope.endswith("_ff"))
    named = {
        "feed-forward": [forward.removesuffix("_ff"), forward],
        "behind": list(chain[chain.index(forward) - 1 :]),
    }
    rows = []
    for name in options.studies or REFERENCES:
        scopes, keep, pad = REFERENCES[name]
        plain = functools.partial(reference, model, batches_of(model, texts, pad), named.get(str(scopes), scopes), keep)
        study = functools.partial(STUDIES[name], model, texts, progress=False)
        times = [(seconds(plain), seconds(study)) for _ in range(options.turns)]
        base, whole = (min(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "study": name,
                "model and norms, ms per text": f"{1e3 * base / len(texts):.2f}",
                "study, ms per text": f"{1e3 * whole / len(texts):.2f}",
                "beyond": f"{100 * (whole / base - 1):.0f} %",
            }
        )
        print(*rows[-1].values(), flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()

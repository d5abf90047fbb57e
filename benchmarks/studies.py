"""All studies over real English on a real model: `python studies.py [--model NAME] [--limit 1000] [STUDY ...]`.

The corpus is the Python standard library's own documentation, `pydoc_data.topics`, cut into sentences.
"""

import argparse
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

from measure import table

from tl_norms import studies
from tl_norms.cli import load

STUDIES = {
    "expansion-rate": lambda model, texts, **options: studies.expansion_rate(model),
    "mixing-ratio": studies.mixing_ratio,
    "mixing-ratio, 12 % masked": lambda model, texts, **options: studies.mixing_ratio(
        model, texts, mask_tokens=0.12, **options
    ),
    "value-norm-dispersion": studies.value_norm_dispersion,
    "frequency": studies.frequency,
    "weight-against-norm": studies.weight_against_norm,
    "amplified-pairs": studies.amplified_pairs,
    "contextualization-change": studies.contextualization_change,
    "cancellation": studies.cancellation,
}


def sentences(shortest: int = 20, longest: int = 160) -> list[str]:
    """Sentences of the documentation between two lengths in characters, each once, in the order of the topics."""
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            if not paragraph.startswith((" ", "*", ">", "-", "=")):  # code, lists, rules
                text = re.sub(r"[*“”\"]|\s+", lambda mark: " " if mark[0].isspace() else "", paragraph).strip()
                for sentence in re.split(r"(?<=[.?!]) +(?=[A-Z])", text):
                    if shortest <= len(sentence) <= longest and sentence[0].isupper() and sentence.endswith("."):
                        found[sentence] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--model", help="name, folder or .gguf file; default: the embedded MiniLM")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=160, help="characters per sentence")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write every row to FOLDER/STUDY.csv")
    options = parser.parse_args()
    if options.csv:
        options.csv.mkdir(parents=True, exist_ok=True)
    texts = sentences(longest=options.longest)[: options.limit]
    model = load.load(load.model_name(options.model), load.torch.float32)
    print(f"{len(texts)} sentences, {sum(map(len, texts)) / len(texts):.0f} characters on average\n")
    for name in options.studies or STUDIES:
        begin = time.perf_counter()
        result = STUDIES[name](model, texts, progress=False)
        print(f"## {name}: {time.perf_counter() - begin:.0f} s\n", flush=True)
        rows = result.to_dataframe()
        if options.csv:
            rows.to_csv(options.csv / f"{name}.csv", index=False)
        print(table(rows.head(60).to_dict("records")) + "\n")
        if len(rows) > 60:
            print(f"{len(rows) - 60} further rows; --csv writes them all\n")
        if name == "weight-against-norm":
            print(table(result.correlations().to_dict("records")) + "\n")
        if name == "value-norm-dispersion":
            print(f"average over heads: {result.average}\n")
        if hasattr(result, "corpus"):
            print(f"{result.corpus}\n", flush=True)


if __name__ == "__main__":
    main()

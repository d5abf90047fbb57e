"""Write docs/architectures.md: every text architecture that TransformerLens registers, and how exactly it is analysed.

python scripts/architecture_table.py
"""

import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from architectures import zoo  # noqa: E402
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES  # noqa: E402

import tl_norms  # noqa: E402

COMMAND = "python scripts/architecture_table.py"
# an image or audio encoder, or a language model behind one: not text architectures
NOT_TEXT = (
    "AST", "AudioFlamingo", "DeiT", "Emu3", "Florence", "Gemma3ForConditional", "Gemma4ForConditional", "Gemma4Unified",
    "Glm4v", "GlmAsr", "Hubert", "Idefics", "Llama4ForConditional", "Llava", "Mistral3", "MuseGlimmer", "MusicFlamingo",
    "Qwen2_5_VL", "Qwen2Audio", "Qwen3VL", "Qwen3_5ForConditional", "Qwen3_5MoeForConditional", "ViT", "Wav2Vec2",
)  # fmt: skip
NOT_BUILT = {
    "BD3LM": "code on the Hub only; residual connections gated inside compiled code",
    "GiddForDiffusionLM": "code on the Hub only",
    "HyenaDNAForCausalLM": "code on the Hub only; no attention",
    "LLaDA2MoeModelLM": "code on the Hub only",
    "LLaDAModelLM": "code on the Hub only; its block holds the projections itself, without a pattern",
    "MinGPTForCausalLM": "no class in transformers; TransformerLens' first forward fails on minGPT's layout",
    "NeelSoluOldForCausalLM": "no model class exists",
    "OpenELMForCausalLM": "code on the Hub only; another number of heads in every layer",
    "RWKV7ForCausalLM": "code on the Hub only; no attention",
    "RavenForCausalLM": "code on the Hub only",
    "TransformerLensPretrain": "the user's own module",
}
LAYOUTS = (
    ("attn_ln_res_cross", "sandwich decoder"),
    ("attn_res_ln_cross", "post-norm decoder"),
    ("attn_res_cross", "pre-norm decoder"),
    ("attn_ff", "parallel"),
    ("attn_ln_res_ln", "sandwich"),
    ("attn_ln_res", "norm behind each branch"),
    ("attn_res_ln_ff_res_ln", "post-norm"),
    ("attn_res", "pre-norm"),
)


def main() -> None:
    warnings.simplefilter("ignore")
    text = [name for name in SUPPORTED_ARCHITECTURES if not name.startswith(NOT_TEXT)]
    rows = sorted(table(text))
    exact = {row[0].partition("@")[0] for row in rows if row[4] != ""}
    stand_ins = {
        name for name in exact if all(s.note == "stand-in" for s in zoo.SPECS.values() if s.architecture == name)
    }
    pairs = {row[0].partition("@")[0] for row in rows if row[4] != "" and row[0].endswith("decoder")}
    halves = {name for name in pairs if not any(row[0] == name and row[4] != "" for row in rows)}
    whole, softmaxes = ({row[0].partition("@")[0] for row in rows if row[n][:1].isdigit()} for n in (6, 7))
    lines = [
        "# Architectures",
        "",
        f"{len(exact)} of {len(text)} text architectures that TransformerLens registers are exact through the whole "
        f"block; the rest are refused with an error that names the component, cannot be run by TransformerLens itself, "
        f"or could not be built here. "
        f"Variants (`@`) are not counted. Of the {len(exact)}, {len(stand_ins)} are stand-ins and {len(pairs)} are "
        f"encoder-decoders with their decoders ({' and '.join(sorted(halves))}: the decoder only; "
        f"of T5Gemma2 it is the encoder only).",
        "",
        "Each is a tiny model with random weights, built from a configuration (`tests/architectures/`). The errors are "
        "the largest relative difference between the sum of the parts and the model's own activation, over all scopes, "
        "layers and positions. In float64 they are about 1e-7 where the model itself computes norms in float32. "
        "A stand-in has the module names of a model whose own code is on the Hub. Encoder-decoders: the row without "
        "`@` is the encoder, `@decoder` the decoder with its cross-attention.",
        "",
        f"Attribution: {len(whole)} of these architectures are attributed as a whole, from the embeddings to a logit; "
        f"{len(softmaxes)} with their softmaxes integrated. "
        "The errors (float64, float32) are what the contributions of all tokens, cuts and edges of all layers miss a "
        "difference of two logits by, relative to the largest of them. An encoder-decoder is attributed through "
        "both stacks, in the decoder's row.",
        "",
        f"Made by `{COMMAND}` with "
        + ", ".join(f"{name} {version(name)}" for name in ("transformer_lens", "transformers", "torch"))
        + ".",
        "",
        "| architecture | layout | scopes | last scope | float64 | float32 | attribution | softmax integrated | note |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    target = ROOT / "docs" / "architectures.md"
    target.write_text("\n".join(lines) + "\n")
    print(f"{len(exact)} of {len(text)} exact; written to {target.relative_to(ROOT)}")


def table(text: list[str]) -> Iterator[tuple[str, ...]]:
    """Rows: name, layout, number of scopes, last scope, error in float64 and float32, note."""
    for name in text:
        specs = [spec for spec in zoo.SPECS.values() if spec.architecture == name]
        for spec in specs:
            yield measured(spec)
            zoo.forget(spec)
        if not specs:
            yield (name, "", "", "", "", "", "", "", f"not built here: {NOT_BUILT[name]}")


def measured(spec: zoo.Spec) -> tuple[str, ...]:
    """One row, from running the spec."""
    try:
        made, single_made = zoo.cached(spec), zoo.cached(spec, torch.float32)
    except zoo.NotHere as reason:
        return (spec.name, "", "", "", "", "", "", "", _short(reason))
    except Exception as error:  # known to be TransformerLens' own, or ours: then it ends the script
        if spec.broken is None or spec.broken not in str(error):
            raise
        return (spec.name, "", "", "", "", "", "", "", f"TransformerLens cannot run it: {_short(error)}")
    try:
        norms = tl_norms.block_norms(made.cache, "all", stack=spec.stack)
        single = tl_norms.block_norms(single_made.cache, "all", stack=spec.stack)
    except tl_norms.DecompositionError as error:
        return (spec.name, "", "", "", "", "", "", "", f"NOT COMPLETE: {_short(error)}")
    except tl_norms.TLNormsError as error:
        return (spec.name, "", "", "", "", "", "", "", f"refused: {_short(error)}")
    last = norms.scopes[-1]
    layout = next(layout for start, layout in LAYOUTS if last.startswith(start))
    skipped = f"layers without attention: {', '.join(map(str, norms.skipped))}" if norms.skipped else ""
    note = "; ".join(part for part in (spec.note, skipped) if part)
    if not (_worst(norms) < spec.limit() and _worst(single) < spec.limit(torch.float32)):
        return (spec.name, "", "", "", "", "", "", "", f"NOT COMPLETE: {_worst(norms):.0e}, {_worst(single):.0e}")
    errors = ("" if spec.only_float32 else f"{_worst(norms):.0e}", f"{_worst(single):.0e}")
    attributed = "" if spec.stack == "encoder" else attribution(spec, made, single_made)
    runs = (single_made,) if spec.only_float32 else (made, single_made)
    paths = integrated(runs) if attributed[:1].isdigit() else ""
    numbers = (errors[0] or "float32 only", errors[1], attributed, paths)
    return (spec.name, layout, str(len(norms.scopes)), f"`{last}`", *numbers, note)


def integrated(runs: tuple[zoo.Made, ...]) -> str:
    """Errors with the softmaxes integrated, or why there are none."""
    target = tl_norms.logit(7) - 2 * tl_norms.logit(9, at=2)
    found = []
    try:
        for made in runs:
            why = tl_norms.attribute(made.cache, target, attention="integrated")
            for layer in why.layers:
                if layer not in why.unattended:
                    why.logits(layer)  # compared when they are made
            found.append(float(why.error.max()))
    except tl_norms.DecompositionError as error:
        return f"NOT COMPLETE: {_short(error)}"
    except tl_norms.TLNormsError:
        return "held only"
    return ", ".join(f"{error:.0e}" for error in found)


def attribution(spec: zoo.Spec, *runs: zoo.Made) -> str:
    """The errors of a whole-model attribution in both dtypes, or why there is none."""
    target = tl_norms.logit(7) - 2 * tl_norms.logit(9, at=2)
    found = []
    try:
        for made in runs:
            why = tl_norms.attribute(made.cache, target)
            for layer in why.layers:
                if layer not in why.unattended:
                    why.edges(layer)  # compared when they are made
            errors = [why.error] if why.source_error is None else [why.error, why.source_error]
            found.append(float(torch.cat(errors).max()))
    except tl_norms.DecompositionError as error:
        return f"NOT COMPLETE: {_short(error)}"
    except tl_norms.TLNormsError as error:
        return f"refused: {_short(error)}"
    return ", ".join(f"{error:.0e}" for error in (found[1:] if spec.only_float32 else found))


def _worst(norms: tl_norms.BlockNorms) -> float:
    """The largest error; nan, which is below nothing, if a scope was not compared."""
    return float(torch.stack(list(norms.error.values())).max())


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "\\|")
    return text if len(text) < 200 else text[:197] + "..."


if __name__ == "__main__":
    main()

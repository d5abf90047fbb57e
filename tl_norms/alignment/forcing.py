"""Teacher forcing: the decoder reads the given target, and its cross-attention is taken at each step."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..options import Layers
from .encoding import encode_pair
from .errors import AlignmentInputError
from .extraction import SETTINGS, Setting, WordAlignments, checked_settings, extract
from .pairs import EncodedPair, as_pair

_OWN_PATTERN = "decoder.0.attn.hook_pattern"  # of HookedEncoderDecoder


def align(
    model: nn.Module,
    pairs: Iterable[Any],
    *,
    layers: Layers = None,
    settings: Sequence[Setting] = SETTINGS,
    end_of_sentence: bool = True,
    source_prefix: str = "",
    tokenizer: Any = None,
    batch_tokens: int = 2048,
) -> WordAlignments:
    """Word alignments of sentence pairs by a translation model's cross-attention, its weights and its norms.

    The decoder reads the start token and the given target (teacher forcing); for each target word the source word of
    greatest weight alpha, or of greatest norm |alpha f(x)|, is its link (Kobayashi et al. 2020, section 5).

    Args:
        model: an encoder-decoder, a TransformerBridge or a HookedEncoderDecoder, with its tokenizer
        pairs: (source, target), each a string of words with blanks between them or a list of words; or EncodedPair
        layers: one layer of the decoder, several, or None for all
        settings: "AWO" (the step that predicts a piece) and "AWI" (the step that reads it)
        end_of_sentence: let the source's special tokens compete, as the paper does; see `extract`
        source_prefix: put before every source, belonging to no word: a task or a language code
        tokenizer: None for the model's own
        batch_tokens: positions of the longer side per batch, padding included

    Returns:
        WordAlignments: `.links(setting, method, layer, head)` for each sentence pair, in the order given.

    Raises:
        AlignmentInputError: no pairs, a pair that is none, one too long for the model, or no encoder-decoder.
        TokenizerSchemeError: the tokenizer's pieces show no word boundaries.
        whatever `cross_norms` raises

    Example:
        >>> found = align(model, [("das Haus", "the house")])                   # doctest: +SKIP
        >>> found.links("AWI", "norm", layer=1)                                 # doctest: +SKIP
        [frozenset({(0, 0), (1, 1)})]
    """
    settings = checked_settings(settings)
    check_translates(model)
    encoded = [
        encoded_pair(model, thing, f"pair {number}", source_prefix=source_prefix, tokenizer=tokenizer)
        for number, thing in enumerate(pairs)
    ]
    for number, pair in enumerate(encoded):
        if problem := misfit(model, pair):
            raise AlignmentInputError(f"pair {number} {problem}: leave it out.")
    if not encoded:
        raise AlignmentInputError("there are no sentence pairs to align.")
    order = sorted(range(len(encoded)), key=lambda number: encoded[number].size)
    choices: dict[Setting, dict[int, Any]] = {setting: {} for setting in settings}
    one = None
    waiting = list(_batches(order, encoded, batch_tokens))
    for batch in waiting:
        rows = [encoded[number] for number in batch]
        try:
            maps = cross_maps(model, rows, layers)
        except NonFiniteError:
            if len(batch) == 1:
                raise
            waiting += [[number] for number in batch]  # T5Gemma's window makes NaN of a row's padding
            continue
        one = extract(maps, rows, settings=settings, end_of_sentence=end_of_sentence)
        for setting in settings:
            choices[setting] |= dict(zip(batch, one.choices[setting], strict=True))
    if one is None:
        raise AlignmentInputError("there is no pair to align.")
    ordered: dict[Setting, list[Any]] = {
        setting: [found[number] for number in range(len(encoded))] for setting, found in choices.items()
    }
    return WordAlignments(settings, one.layers, one.n_heads, ordered)


def encoded_pair(
    model: nn.Module, thing: Any, name: str = "the pair", *, source_prefix: str = "", tokenizer: Any = None
) -> EncodedPair:
    """One pair as token ids, by the model's tokenizer unless it has ids already."""
    pair = as_pair(thing, name)
    if isinstance(pair, EncodedPair):
        return pair
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise AlignmentInputError("this model has no tokenizer: pass tokenizer=, or EncodedPair in place of sentences.")
    try:
        return encode_pair(tokenizer, pair, source_prefix=source_prefix)
    except AlignmentInputError as error:
        raise AlignmentInputError(f"{name}: {error}") from None


def misfit(model: nn.Module, pair: EncodedPair) -> str:
    """Why a pair cannot be given to the model, or "" if it can."""
    relative = "relative" in str(getattr(model.cfg, "positional_embedding_type", ""))  # T5: nothing limits it
    limit = 0 if relative else int(getattr(model.cfg, "n_ctx", 0) or 0)
    longest = max(len(pair.source), len(decoder_input(model, pair)))
    if 0 < limit < longest:
        return f"has {longest} tokens, more than the {limit} of this model's context"
    config = getattr(getattr(model, "original_model", None), "config", None)
    n_source = int(getattr(model.cfg, "d_vocab", 0) or 0)
    n_target = int(getattr(config, "decoder_vocab_size", 0) or n_source)
    for ids, n in ((pair.source, n_source), (pair.target, n_target)):
        if 0 < n <= max(ids) or min(ids) < 0:
            return f"holds token id {max(ids) if min(ids) >= 0 else min(ids)}, outside the vocabulary of {n}"
    return ""


def cross_maps(model: nn.Module, pairs: Sequence[EncodedPair], layers: Layers = None):
    """CrossNorms of a batch of pairs, teacher-forced."""
    from ..cross import cross_norms
    from ..norms import required_hooks

    source, target, options = teacher_forced(model, pairs)
    lens: Any = model  # torch's stubs do not know run_with_cache
    with torch.no_grad():
        hooks = [*required_hooks(model, "cross", layers), _OWN_PATTERN]
        _, cache = lens.run_with_cache(source, decoder_input=target, names_filter=hooks, **options)
    if _OWN_PATTERN in cache and cache[_OWN_PATTERN].triu(1).any():
        raise AlignmentInputError(
            "this model's decoder sees target words that it has not read yet, so that nothing forces it to predict "
            "them: TransformerLens 2 runs T5 so. Upgrade it: pip install 'transformer_lens>=3.9'"
        )
    masks = [_mask([len(pair.source) for pair in pairs]), _mask([len(decoder_input(model, pair)) for pair in pairs])]
    return cross_norms(cache, layers=layers, mask=masks[1].to(source.device), source_mask=masks[0].to(source.device))


def teacher_forced(model: nn.Module, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What an encoder-decoder is run with to read given targets.

    Returns:
        source ids [batch source_pos], decoder input [batch target_pos], and the source's mask under the name the model
        takes it by: `model.run_with_cache(source, decoder_input=target, **options)`. Both are padded on the right; as
        the decoder is causal, no step of a target sees its padding.

    Raises:
        AlignmentInputError: the model is no encoder-decoder, or does not know its start token.
    """
    check_translates(model)
    device = next(model.parameters()).device
    source = _padded([pair.source for pair in pairs]).to(device)
    target = _padded([decoder_input(model, pair) for pair in pairs]).to(device)
    parameters = inspect.signature(model.forward).parameters
    mask = _mask([len(pair.source) for pair in pairs])
    if "attention_mask" in parameters:
        return source, target, {"attention_mask": mask.long().to(device)}
    # In the model's own dtype: HookedEncoderDecoder makes NaN of whole numbers times the least float64.
    return source, target, {"one_zero_attention_mask": mask.to(device, next(model.parameters()).dtype)}


def check_translates(model: nn.Module) -> None:
    """Refuse models without cross-attention.

    Raises:
        AlignmentInputError: the model is no encoder-decoder.
    """
    if not (hasattr(model, "decoder_blocks") or (hasattr(model, "encoder") and hasattr(model, "decoder"))):
        name = type(getattr(model, "original_model", model)).__name__
        raise AlignmentInputError(
            f"{name} is no encoder-decoder: word alignments are read from cross-attention; load a translation model."
        )


def decoder_input(model: nn.Module, pair: EncodedPair) -> tuple[int, ...]:
    """The start token and the target's tokens, without a last one that is special: nothing after it is predicted."""
    ends = pair.target_words[-1] is None
    return (_start(model, pair), *(pair.target[:-1] if ends else pair.target))


def _start(model: nn.Module, pair: EncodedPair) -> int:
    """The token that decoding starts from: the pair's, the configuration's, or as the model makes it from labels."""
    if pair.start is not None:
        return pair.start
    config = getattr(getattr(model, "original_model", None), "config", None)
    if getattr(config, "model_type", "") == "mbart" and pair.target_words[-1] is None:
        return pair.target[-1]  # mBART moves the last token, a language code or the end of sentence, to the front
    generation = getattr(getattr(model, "original_model", None), "generation_config", None)
    for holder in (config, getattr(model, "cfg", None), generation):
        start = getattr(holder, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    start = getattr(getattr(config, "decoder", None), "bos_token_id", None)  # T5Gemma
    if start is not None:
        return int(start)
    raise AlignmentInputError(
        "the model's configuration has no decoder_start_token_id; set model.original_model.config."
        "decoder_start_token_id, or give EncodedPair(..., start=id)."
    )


def _batches(order: Sequence[int], pairs: Sequence[EncodedPair], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of pairs, the shortest first, as many together as fit."""
    batch: list[int] = []
    for number in order:
        if batch and pairs[number].size * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """[batch pos]; padding repeats the last token, as it is masked and any id will do."""
    n = max(len(row) for row in rows)
    return torch.tensor([[*row, *[row[-1]] * (n - len(row))] for row in rows])


def _mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

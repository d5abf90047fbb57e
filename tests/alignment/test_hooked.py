"""TransformerLens' own encoder-decoder, up to its version 3."""

from importlib.metadata import version

import pytest
import torch
import translation_models as models

from tl_norms import alignment

try:
    from transformer_lens import HookedEncoderDecoder, HookedTransformerConfig
except ImportError:
    pytest.skip("this TransformerLens has no HookedEncoderDecoder", allow_module_level=True)

_VERSION = int(version("transformer_lens").split(".")[0])


@pytest.fixture(scope="module")
def model():
    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=4, d_head=8, n_heads=4, d_mlp=64, d_vocab=110, act_fn="relu",
        attention_dir="bidirectional", normalization_type="RMS", positional_embedding_type="relative_positional_bias",
        relative_attention_num_buckets=32, relative_attention_max_distance=128, use_attn_scale=False,
        tie_word_embeddings=True, decoder_start_token_id=1, original_architecture="T5ForConditionalGeneration",
        dtype=torch.float64, device="cpu", seed=0,
    )  # fmt: skip
    made = HookedEncoderDecoder(config, tokenizer=models.fast_tokenizer("metaspace"), move_to_device=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    return made


def test_links_are_those_of_the_pattern(model):
    """Pairs of several lengths in one batch, against each alone, by the greatest weight of each word's pieces."""
    if _VERSION < 3:
        with pytest.raises(alignment.AlignmentInputError, match="sees target words that it has not read yet"):
            alignment.align(model, models.PAIRS)
        return
    found = alignment.align(model, models.PAIRS)
    seen = set()
    for number, (source, target) in enumerate(models.PAIRS):
        pair = alignment.encode_pair(
            model.tokenizer, alignment.SentencePair(tuple(source.split()), tuple(target.split()))
        )
        read = torch.tensor([[1, *pair.target[:-1]]])
        _, cache = model.run_with_cache(torch.tensor([pair.source]), read)
        pattern = cache["decoder.1.cross_attn.hook_pattern"][0]
        for head in range(4):
            rows = alignment.merge_words(pattern[head], pair.source_words, pair.target_words)
            chosen = rows[: len(target.split())].argmax(-1).tolist()
            wanted = {(word, t) for t, word in enumerate(chosen) if word < len(source.split())}
            assert found.links("AWO", "weight", 1, head)[number] == wanted
            assert all(t < len(target.split()) for _, t in found.links("AWI", "norm", 1, head)[number])
            seen.add(frozenset(wanted))
    assert len(seen) > 5, "the links hardly differ: they test nothing"

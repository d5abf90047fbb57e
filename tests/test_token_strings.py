"""Token strings and the model's name are kept with a result, and tables use them."""

import copy

import plot_results
import pytest
import test_storage
import tiny
import torch

import tl_norms
from tl_norms import UnknownOptionError, UnknownPositionError, attribute, logit, plot
from tl_norms.labels import id_hook, model_name
from tl_norms.linear.measure.measures import Onto

WORDS = [f" w{n}" for n in range(7)]
MASK = test_storage.MASK
pytestmark = pytest.mark.skipif("bridge" not in tiny.KINDS, reason="token ids are in the caches of bridges")


class Tokenizer:
    """Decodes a token as its number."""

    def decode(self, ids):
        return f" {ids[0]}"


@pytest.fixture
def speaking():
    """A tiny model with a tokenizer."""
    made = tiny.make("gpt2", "bridge", fresh=True)
    made.model.tokenizer = Tokenizer()
    return made


def decoded(ids):
    return tuple(tuple(f" {token}" for token in row) for row in ids.tolist())


def test_strings_are_those_of_the_cached_ids(speaking):
    cache, tokens = speaking.cache(), speaking.tokens()
    norms = tl_norms.block_norms(cache)
    assert norms.token_strings == decoded(tokens) and norms.source_strings is None
    assert tl_norms.ffn_maps(cache).token_strings == decoded(tokens)
    assert attribute(cache, logit(7)).token_strings == decoded(tokens)
    assert norms.model_name == attribute(cache, logit(7)).model_name == "GPT2LMHeadModel"
    speaking.model.cfg.model_name = "gpt2"
    assert tl_norms.block_norms(cache).model_name == model_name(speaking.model) == "gpt2"


def test_strings_of_a_recorded_run(speaking):
    with torch.no_grad():
        _, norms = tl_norms.run_with_norms(speaking.model, speaking.tokens())
        assert norms.token_strings == decoded(speaking.tokens())
        recorder = tl_norms.NormRecorder(speaking.model)
        for tokens in (speaking.tokens(), speaking.tokens().flip(1)):
            with recorder:
                speaking.model(tokens)
            assert recorder.norms.token_strings == decoded(tokens)
            recorder.reset()


def test_without_ids_or_tokenizer_there_are_none(speaking):
    cache = speaking.cache(names_filter=tl_norms.required_hooks(speaking.model))
    assert tl_norms.block_norms(cache).token_strings is None
    assert tl_norms.block_norms(tiny.make("gpt2", "bridge").cache()).token_strings is None
    with_prefix = speaking.cache()
    entries = dict(with_prefix.cache_dict) | {"embed.hook_in": speaking.tokens()[:, 1:]}
    other = type(with_prefix)(entries, speaking.model)
    assert tl_norms.block_norms(other).token_strings is None  # ids of other positions name nothing


def test_a_decoder_has_its_own_strings_and_the_encoders():
    cache = test_storage.encoder_decoder()
    cache.model.tokenizer = Tokenizer()
    source, target = cache.cache_dict["embed.hook_in"], cache.cache_dict["decoder_embed.hook_in"]
    norms = tl_norms.block_norms(cache, "all")
    assert norms.token_strings == decoded(target) and norms.source_strings == decoded(source)
    assert attribute(cache, logit(7)).token_strings == decoded(target)
    encoder = tl_norms.block_norms(cache, stack="encoder")
    assert encoder.token_strings == decoded(source) and encoder.source_strings is None
    assert id_hook(cache.model) == "decoder_embed.hook_in" and id_hook(cache.model, "encoder_blocks") == "embed.hook_in"
    both = [f"t{n}" for n in range(5)] + [f"s{n}" for n in range(7)]
    given = tl_norms.block_norms(cache, "all", tokens=both)
    assert given.token_strings == (tuple(both[:5]),) and given.source_strings == (tuple(both[5:]),)
    top = given.top(2, k=12)
    assert {row[3]: row[4] for row in top} == {n: both[n] for n in range(12) if n < 3 or n > 4}
    assert tl_norms.page.page_of_norms(norms)  # needs the encoder's tokens


@pytest.mark.parametrize("batch", [True, False])
def test_strings_as_given(batch):
    made = tiny.make("gpt2", "bridge")
    cache = made.cache(made.tokens(1))
    if not batch:
        cache.remove_batch_dim()
    for tokens in (WORDS, tuple(WORDS), [WORDS]):
        assert tl_norms.block_norms(cache, tokens=tokens).token_strings == (tuple(WORDS),)


@pytest.mark.parametrize(
    "tokens, words",
    [
        ("a string", ["list of strings"]), (7, ["7"]), ([], ["list of strings"]), ([1, 2], ["list of strings"]),
        ([["a"], "b"], ["list of strings"]), ([WORDS, [1] * 7], ["list of strings"]),
        (WORDS, ["1 texts", "those of 2"]), ([WORDS] * 3, ["3 texts", "those of 2"]),
        ([WORDS, WORDS[:4]], ["4 tokens", "text 1", "expected 7"]),
        ([WORDS + ["more"]] * 2, ["8 tokens", "text 0", "to_str_tokens"]),
    ],
    ids=str,
)  # fmt: skip
def test_strings_that_do_not_fit(tokens, words):
    with pytest.raises(UnknownOptionError) as caught:
        tl_norms.block_norms(tiny.make("gpt2", "bridge").cache(), tokens=tokens)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_padding_may_be_left_out_of_the_strings():
    norms = test_storage.padded()
    assert norms.top(-1, row=1).rows[0][1] == 3  # the last real token
    with pytest.raises(UnknownOptionError, match="3 tokens for text 1"):
        tl_norms.block_norms(
            tiny.make("bert", "bridge").cache(mask=MASK), mask=MASK, tokens=[list("abcdefg"), list("abc")]
        )


def test_a_decomposition_keeps_its_strings(speaking):
    cache = speaking.cache()
    found = tl_norms.decompose(cache, 0, "attn")
    assert found.token_strings == decoded(speaking.tokens()) and found.model_name == "GPT2LMHeadModel"
    given = [WORDS, list("abcdefg")]
    assert tl_norms.decompose(cache, 0, "attn", tokens=given).token_strings == tuple(map(tuple, given))
    with pytest.raises(UnknownOptionError, match="those of 2"):
        tl_norms.decompose(cache, 0, "attn", tokens=WORDS)
    ticks = plot.layer_maps(found, batch=0).layout.yaxis.ticktext
    assert list(ticks) == [f"·{token}" for token in speaking.tokens()[0].tolist()]


METHODS = {
    "attention_rollout": tl_norms.methods.attention_rollout,
    "norm_rollout": tl_norms.methods.norm_rollout,
    "alti": tl_norms.methods.alti,
    "globenc": tl_norms.methods.globenc,
    "value_zeroing": tl_norms.methods.value_zeroing,
    "information_flow": tl_norms.methods.information_flow,
    "decompx": tl_norms.methods.decompx,
    "propagate": tl_norms.propagate,
    "direct_attribution": lambda cache: tl_norms.direct_attribution(cache, logit(7)),
}


@pytest.mark.parametrize("name", METHODS)
def test_results_of_methods_keep_strings_and_model(speaking, name, tmp_path):
    found = METHODS[name](speaking.cache())
    assert found.token_strings == decoded(speaking.tokens()) and found.model_name == "GPT2LMHeadModel"
    found.save(tmp_path / "kept")
    assert tl_norms.load(tmp_path / "kept").token_strings == found.token_strings
    if hasattr(found, "layers"):
        ticks = plot.layer_maps(found, batch=1).layout.xaxis.ticktext
        assert list(ticks) == [f"·{token}" for token in speaking.tokens()[1].tolist()]


# ------------------------------------------------------------------------------------------------ two sequences


def test_cross_norms_keep_the_strings_of_both(tmp_path):
    pytest.importorskip("pandas")
    cache = test_storage.encoder_decoder()
    assert tl_norms.cross_norms(cache).token_strings is None
    cache.model.tokenizer = Tokenizer()
    target, source = (decoded(cache.cache_dict[name]) for name in ("decoder_embed.hook_in", "embed.hook_in"))
    found = tl_norms.cross_norms(cache)
    assert (found.token_strings, found.source_strings) == (target, source) and found.model_name == "MarianMTModel"
    found.save(tmp_path / "kept")
    for one in (found, tl_norms.load(tmp_path / "kept")):
        table = one.to_dataframe()
        assert len(table) == 2 * 5 * 7
        row = table.iloc[-2]
        assert (row["layer"], row["query"], row["key"]) == (1, 4, 5)
        assert (row["query_token"], row["key_token"]) == (target[0][4], source[0][5])
        assert row["norm"] == pytest.approx(float(found.norms[1, 0, 4, 5]), rel=1e-6)
        assert row["weight"] == pytest.approx(float(found.attention[1, 0, :, 4, 5].mean()), rel=1e-6)
        for figure in (plot.layer_maps(one), plot.head_maps(one), plot.weight_and_norm(one), plot.alignment_maps(one),
                       plot.head_edges(one, layer=1, head=0)):  # fmt: skip
            axes = figure.layout.to_plotly_json()
            names = [next(list(axes[key]["ticktext"]) for key in axes if key.startswith(axis) and axes[key]["ticktext"])
                     for axis in ("yaxis", "xaxis")]  # fmt: skip
            assert names == [[f"·{token.strip()}" for token in row[0]] for row in (target, source)]
            assert "MarianMTModel" in str(figure.layout)
    own = tl_norms.cross_norms(cache, tokens=list("abcde"), source_tokens=[list("tuvwxyz")])
    assert (own.token_strings, own.source_strings) == ((tuple("abcde"),), (tuple("tuvwxyz"),))
    assert list(plot.layer_maps(own, list("ABCDE")).layout.yaxis.ticktext) == list("ABCDE")
    for wrong in (dict(tokens=list("abc")), dict(source_tokens=list("abc")), dict(tokens="abc")):
        with pytest.raises(UnknownOptionError, match="tokens"):
            tl_norms.cross_norms(cache, **wrong)


def test_the_table_of_cross_norms_leaves_padding_out():
    pytest.importorskip("pandas")
    mask, source_mask = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    found = plot_results.cross_norms(2, mask, source_mask)
    table = found.to_dataframe()
    assert len(table) == 2 * (3 * 5 + 2 * 3) and "key_token" not in table
    second = table[(table["batch"] == 1) & (table["layer"] == 3)]
    assert sorted(set(second["key"])) == [2, 3, 4] and sorted(set(second["query"])) == [0, 1]
    assert second["norm"].tolist() == pytest.approx(found.norms[1, 1, :2, 2:].flatten().tolist())
    assert "batch" not in plot_results.cross_norms().to_dataframe()


def test_token_norms_keep_the_encoders_strings():
    pytest.importorskip("pandas")
    cache = test_storage.encoder_decoder()
    cache.model.tokenizer = Tokenizer()
    found = tl_norms.propagate(cache)
    assert found.source_strings == decoded(cache.cache_dict["embed.hook_in"])
    table = found.to_dataframe()
    assert set(table[table["key"] == 6]["key_token"]) == {found.source_strings[0][1]}  # 5 of the target before it
    drawn = list(plot.layer_maps(found).layout.xaxis.ticktext)
    assert drawn == [f"·{token.strip()}" for token in (*found.token_strings[0], *found.source_strings[0])]
    own = tl_norms.propagate(cache, tokens=list("abcde"), source_tokens=list("tuvwxyz"))
    assert own.token_strings == (tuple("abcde"),) and own.source_strings == (tuple("tuvwxyz"),)
    with pytest.raises(UnknownOptionError, match="3 tokens"):
        tl_norms.propagate(cache, tokens=list("abc"))
    why = attribute(cache, logit(7), tokens=list("abcde"), source_tokens=list("tuvwxyz"))
    assert why.token_strings == own.token_strings and why.source_strings == own.source_strings
    _, run = tl_norms.run_with_propagation(
        cache.model, torch.arange(3, 10)[None], decoder_input=torch.arange(20, 25)[None], tokens=list("abcde")
    )
    assert run.token_strings == own.token_strings and run.source_strings == found.source_strings


# ------------------------------------------------------------------------------------------------ top


def of(**options):
    words = [WORDS[:3] + WORDS[1:2] + WORDS[4:], list("abcdefg")]  # " w1" twice in the first text
    return tl_norms.block_norms(tiny.make("gpt2", "bridge").cache(), "all", tokens=words, **options), words


def test_top_lists_the_largest_norms_of_a_position():
    norms, words = of()
    table = norms.top(4, k=3, scope="attn_res", layer=0, row=1)
    lengths = norms["attn_res", 0][1, 4]
    order = sorted(range(5), key=lambda key: -float(lengths[key]))[:3]
    assert table.columns == ("layer", "query", "query_token", "source", "source_token", "norm", "share")
    for row, key in zip(table, order, strict=True):
        value = float(lengths[key])
        assert row == (0, 4, "e", key, words[1][key], value, pytest.approx(value / float(lengths.sum())))
    assert "e" in repr(table) and "+" not in repr(table)
    everything = norms.top(4, k=99, row=1)
    assert len(everything) == 5 and sum(row[-1] for row in everything) == pytest.approx(1)
    assert everything.rows[0][0] == 1 and norms.top(4, k=99, row=1, layer=-2).rows[0][0] == 0
    assert everything.rows == norms.top(4, k=99, row=1, layer=1, scope=norms.scopes[-1]).rows


def test_top_finds_a_position_by_its_token():
    norms, words = of()
    assert [row[1] for row in norms.top(" w4", k=2)] == [4, 4]
    assert norms.top("w4", k=2).rows == norms.top(" w4", k=2).rows == norms.top(4, k=2).rows
    assert sorted({row[1] for row in norms.top(" w1", k=2)}) == [1, 3]
    assert norms.top(-1, k=2).rows == norms.top(6, k=2).rows
    pairs = norms.top(k=4, scope="attn_res")
    values = norms["attn_res", 1][0].flatten().sort(descending=True).values
    assert [row[-2] for row in pairs] == values[:4].tolist()
    assert pairs.to_dataframe()["norm"].tolist() == values[:4].tolist()


def test_top_of_a_signed_measure_ranks_by_size():
    norms, _ = of(measure="share")
    values = norms["attn_res", 1][0, 6]
    values[2] = -50  # a view of the result's own map
    table = norms.top(6, k=99, scope="attn_res")
    order = values.abs().argsort(descending=True).tolist()
    assert table.columns[-2:] == ("value", "share") and [row[3] for row in table] == order
    assert [row[-2] for row in table] == values[order].tolist() and bool((values < 0).any())
    assert sum(row[-1] for row in table) == pytest.approx(1) and "-50.0000" in repr(table)
    onto, _ = of(measure=Onto(torch.rand(3, tiny.D_MODEL, dtype=torch.float64)))
    with pytest.raises(UnknownOptionError, match="direction"):
        onto.top(6)


def test_top_leaves_padding_out():
    norms = test_storage.padded()
    for row in norms.top(row=1, k=100):
        assert row[1] < 4 and row[3] < 4 and row[2] and row[4]
    assert len(norms.top(row=1, k=100)) == 16
    with pytest.raises(UnknownPositionError, match="no position 4.*0 to 3"):
        norms.top(4, row=1)


@pytest.mark.parametrize(
    "query, words",
    [(" w9", ["' w9'", "' w0'"]), (7, ["no position 7", "0 to 6"]), (-8, ["-8"]), (True, ["True"])],
)
def test_top_says_what_is_not_there(query, words):
    norms, _ = of()
    with pytest.raises(UnknownPositionError) as caught:
        norms.top(query)
    assert all(word in str(caught.value) for word in words)


def test_top_needs_a_row_a_layer_and_strings_that_exist():
    norms, _ = of()
    for row in (2, -1, True):
        with pytest.raises(UnknownPositionError, match="no text"):
            norms.top(0, row=row)
    with pytest.raises(tl_norms.UnknownLayerError):
        norms.top(0, layer=2)
    with pytest.raises(tl_norms.UnknownScopeError):
        norms.top(0, scope="nothing")
    for k in (0, -1, True):
        with pytest.raises(UnknownOptionError, match="k is"):
            norms.top(0, k)
    plain = tl_norms.block_norms(tiny.make("gpt2", "bridge").cache())
    with pytest.raises(UnknownPositionError, match="tokens="):
        plain.top(" are")
    assert plain.top(0).rows[0][2] == ""


# ------------------------------------------------------------------------------------------------ pages and tables


def test_results_show_their_page_in_a_notebook(speaking, monkeypatch):
    cache = speaking.cache(speaking.tokens(1))
    norms, why = tl_norms.block_norms(cache), attribute(cache, logit(7))
    for result in (norms, why):
        assert "<iframe" in result._repr_html_() and "GPT2LMHeadModel" in result._repr_html_()
    shown = []
    monkeypatch.setattr("tl_norms.page.show", shown.append)
    norms.show(), why.show(), why.show([f"t{n}" for n in range(7)])
    assert len(shown) == 3 and " 18" in shown[1] and "t6" in shown[2]
    several = attribute(cache, [logit(7), logit(8)])
    assert "<table" in several._repr_html_() and "<iframe" not in several._repr_html_()
    plain = tl_norms.block_norms(tiny.make("gpt2", "bridge").cache())
    assert "<table" in plain._repr_html_() and "<iframe" not in plain._repr_html_()
    assert "Attribution(" in why.without_edges()._repr_html_()


def test_the_table_of_amplified_pairs_uses_the_strings():
    maps = tl_norms.ffn_maps(tiny.make("gpt2", "bridge").cache(), tokens=[WORDS, list("abcdefg")])
    found = tl_norms.metrics.ff_amplification(maps)
    table = found.top_pairs(3)
    assert table["key_token"].tolist() == [
        (WORDS, "abcdefg")[text][key] for text, key in zip(table["batch"], table["key"], strict=True)
    ]
    plain = copy.copy(found)
    object.__setattr__(plain, "token_strings", None)
    assert "key_token" not in plain.top_pairs(3)

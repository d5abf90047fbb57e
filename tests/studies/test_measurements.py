"""Every study against loops over single, unpadded texts and over scipy."""

import dataclasses

import numpy as np
import pytest
import study_models
import torch
from scipy import stats

import tl_norms
from tl_norms import plot, scopes, studies
from tl_norms.metrics import cancellation, component_changes, ff_amplification


@pytest.fixture(scope="module")
def each(model, texts):
    """Tokens, cache and norms of each text on its own."""
    found = []
    for text in texts:
        ids = study_models.tokens(model, text)
        with torch.no_grad():
            cache = model.run_with_cache(ids)[1]
            found.append((ids[0].tolist(), cache, tl_norms.block_norms(cache, "all")))
    return found


def kind(model, number: int) -> str:
    name = model.tokenizer.convert_ids_to_tokens(number)
    return {",": "comma and period", ".": "comma and period"}.get(name, name if name[0] in "[<" else "other")


def test_dispersion(model, texts, each):
    found = studies.value_norm_dispersion(model, texts, chunk=3)
    lengths = torch.cat([norms.value_norms[:, 0] for *_, norms in each], -1).numpy()  # [layer head token]
    for name, wanted in (("mean", lengths.mean(-1)), ("sd", lengths.std(-1)), ("max", lengths.max(-1))):
        assert np.allclose(getattr(found, name), wanted, rtol=1e-10), name
    assert np.allclose(found.min, lengths.min(-1)) and np.allclose(found.cv, lengths.std(-1) / lengths.mean(-1))
    assert found.average["cv"] == pytest.approx((lengths.std(-1) / lengths.mean(-1)).mean())
    table = found.to_dataframe()
    assert len(table) == 8 and table[(table["layer"] == 1) & (table["head"] == 2)]["mean"].item() == found.mean[1, 2]
    assert found.corpus.n_tokens == lengths.shape[-1] and found.corpus.n_texts == len(texts)


def test_weight_against_norm(model, texts, each):
    found = studies.weight_against_norm(model, texts, chunk=1)  # rounding of a padded batch orders ties differently
    wanted = {"[CLS]", "[SEP]"} if model.tokenizer.cls_token else {"<s>"}
    assert set(found.categories) == wanted | {"comma and period", "other"}
    for number, category in enumerate(found.categories):
        weights, weighted, lengths, alphas, norms_of = [], [], [], [], []
        for ids, cache, norms in each:
            keys = [p for p, i in enumerate(ids) if kind(model, i) == category]
            pattern = torch.stack([cache["pattern", layer][0] for layer in range(2)]).numpy()
            f = norms.value_norms[:, 0].numpy()
            weights.append(pattern[..., keys].sum(-1).mean(-1))
            weighted.append((pattern * f[:, :, None])[..., keys].sum(-1).mean(-1))
            if keys:
                lengths.append(f[..., keys].mean(-1))
            for key in keys:
                for query in range(key if norms.causal else 0, len(ids)):
                    alphas.append(pattern[:, :, query, key])
                    norms_of.append(f[:, :, key])
        assert np.allclose(found.weight[number], np.mean(weights, 0), rtol=1e-9), category
        assert np.allclose(found.weighted_norm[number], np.mean(weighted, 0), rtol=1e-9)
        assert np.allclose(found.norm[number], np.mean(lengths, 0), rtol=1e-9)
        exact = found.spearman[category]
        assert exact.n == np.size(alphas) and exact.error == 0
        assert exact.rho == pytest.approx(stats.spearmanr(np.ravel(alphas), np.ravel(norms_of))[0], abs=1e-9)
    binned = studies.weight_against_norm(model, texts, exact_pairs=10)
    for category, exact in found.spearman.items():
        rough = binned.spearman[category]
        assert rough.n == exact.n and 0 < rough.error and abs(rough.rho - exact.rho) <= rough.error + 0.01
    assert set(found.correlations()["category"]) == set(found.categories)
    assert len(found.to_dataframe()) == found.weight.size


@pytest.mark.parametrize("ranks", ["corpus", {number: number - 3 for number in range(3, 61)}])
def test_frequency(model, texts, each, ranks):
    found = studies.frequency(model, texts, ranks=ranks, chunk=1)
    ids, lengths, weights = [], [], []
    for tokens, cache, norms in each:
        pattern = torch.stack([cache["pattern", layer][0] for layer in range(2)]).numpy().mean((0, 1))
        ids += tokens
        lengths += norms.value_norms[:, 0].mean((0, 1)).tolist()
        weights += [pattern[key if norms.causal else 0 :, key].mean() for key in range(len(tokens))]
    if ranks == "corpus":
        rank = [1 + sum(ids.count(other) > ids.count(i) for other in set(ids)) for i in ids]
    else:
        rank = [ranks.get(i, 58) for i in ids]
    plain = [p for p, i in enumerate(ids) if i > 2]
    for name, values in (("norm", lengths), ("weight", weights)):
        assert getattr(found, name).rho == pytest.approx(stats.spearmanr(rank, values)[0], abs=1e-6)
        without = stats.spearmanr([rank[p] for p in plain], [values[p] for p in plain])[0]
        assert getattr(found, f"{name}_without_special").rho == pytest.approx(without, abs=1e-6)
    assert len(found.to_dataframe()) == 4


def test_mixing_ratio(model, texts, each):
    found = studies.mixing_ratio(model, texts, chunk=3)
    post_norm = "AttnResLn-N" in found.methods
    assert found.methods == ("Attn-W", "Attn-N", "AttnRes-W", "AttnRes-N", "AttnResLn-N")[: 4 + post_norm]
    scopes = {"Attn-N": "attn", "AttnRes-N": "attn_res", "AttnResLn-N": "attn_res_ln"}
    ids = [i for tokens, *_ in each for i in tokens]
    rank = [1 + sum(ids.count(other) > ids.count(i) for other in set(ids)) for i in ids]
    for number, method in enumerate(found.methods):
        per_text = [
            (
                norms.mixing_ratio(scopes[method])
                if method in scopes
                else norms.attention_mixing_ratio(residual=method == "AttnRes-W")
            )[:, 0].numpy()
            for *_, norms in each
        ]
        values = np.concatenate(per_text, -1)
        assert found.mean[method] == pytest.approx(values.mean(), rel=1e-10)
        assert found.max[method] == pytest.approx(values.max()) and found.min[method] == pytest.approx(values.min())
        overall = np.mean([value.mean(-1) for value in per_text], 0)
        assert np.allclose(found.by_layer[0, number], overall)
        assert found.depth[method] == pytest.approx(stats.spearmanr([0, 1], overall)[0])
        for row, name in enumerate(found.types[1:], start=1):
            chosen = []
            for (tokens, *_), value in zip(each, per_text, strict=True):
                where = [p for p, i in enumerate(tokens) if kind(model, i).replace("comma and period", "other") == name]
                chosen += [value[:, where].mean(-1)] * bool(where)
            assert np.allclose(found.by_layer[row, number], np.mean(chosen, 0)), (method, name)
        wanted = stats.spearmanr(rank, values.mean(0))[0]
        assert found.frequency[method].rho == pytest.approx(wanted, abs=1e-6)
    assert len(found.to_dataframe()) == len(found.methods)
    assert len(found.layers_to_dataframe()) == found.by_layer.size


def test_contextualization_change(model, texts, each):
    found = studies.contextualization_change(model, texts, chunk=4)
    for row, (*_, norms) in enumerate(each):
        for number, (name, change) in enumerate(component_changes(norms).items()):
            assert found.components[number] == name
            assert np.allclose(found.values[number, :, row], change[:, 0], atol=1e-9, equal_nan=True)
    assert np.allclose(found.mean, np.nanmean(found.values, -1))
    assert len(found.texts_to_dataframe()) == found.values.size
    assert found.texts[:, 0].tolist() == list(range(len(texts)))


def test_cancellation(model, texts, each):
    found = studies.cancellation(model, texts, chunk=4)
    for row, (_, cache, _) in enumerate(each):
        with torch.no_grad():
            wanted = cancellation(cache, leave_out=0)
        assert found.components == wanted.steps
        for number, step in enumerate(wanted.steps):
            change = wanted.changes["all"][step][:, 0]
            assert np.allclose(found.values[number, :, row], change, atol=1e-9, equal_nan=True)
        assert np.allclose(found.norms["output_norm"][:, row], wanted.output_norm[:, 0])
    assert len(found.to_dataframe()) == found.values[..., 0].size


@pytest.mark.parametrize("largest", [True, False])
def test_amplified_pairs(model, texts, each, largest):
    k, seen = 3, {}
    for ids, _, norms in each:
        pairs = ff_amplification(norms).top_pairs(1000, diagonal=False, largest=largest)
        pairs = pairs[(pairs["difference"] > 0) == largest].groupby("layer").head(k)
        for pair in pairs.itertuples():
            seen.setdefault((pair.layer, ids[pair.query], ids[pair.key]), []).append(pair.difference)
    found = studies.amplified_pairs(model, texts, k=k, largest=largest, chunk=3)
    table = found.to_dataframe()
    assert {(r["layer"], r["query"], r["key"]): r["count"] for _, r in table.iterrows()} == {
        key: len(values) for key, values in seen.items()
    }
    for _, row in table.iterrows():
        assert row["mean"] == pytest.approx(np.mean(seen[row["layer"], row["query"], row["key"]]), abs=1e-9)
        assert row["query_token"] == model.tokenizer.decode([row["query"]])
    for layer in found.layers:
        counts = table[table["layer"] == layer]["count"].tolist()
        assert counts == sorted(counts, reverse=True)


def test_expansion_rate(model):
    found = studies.expansion_rate(model)
    for layer in (0, 1):
        attention = model.blocks[layer].attn
        value = attention.W_V.detach().double().permute(1, 0, 2).flatten(1).numpy()
        bias = attention.b_V.detach().double().flatten().numpy()
        out = attention.W_O.detach().double().flatten(0, 1).numpy()
        out_bias = attention.b_O.detach().double().numpy()
        affine = np.vstack([value @ out, bias @ out + out_bias])
        singular = np.linalg.svd(affine, compute_uv=False)
        assert found.paper[layer] == pytest.approx(np.sqrt((singular**2).sum() / 32), rel=1e-6)
        d = len(value)
        left = np.block([[value, np.zeros((d, 1))], [bias[None], np.ones((1, 1))]])
        right = np.block([[out, out_bias[:, None]], [np.zeros((1, d)), np.ones((1, 1))]])
        singular = np.linalg.svd(left @ right, compute_uv=False)
        assert found.released[layer] == pytest.approx(np.sqrt((singular**2).sum() / 33), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 32, generator=generator, dtype=torch.float64).numpy()
    empirical = np.linalg.norm(x @ affine[:-1] + affine[-1], axis=-1).mean() / np.linalg.norm(x, axis=-1).mean()
    assert found.paper[1] == pytest.approx(empirical, rel=0.02)
    assert found.to_dataframe()["layer"].tolist() == [0, 1]


def test_layers_can_be_chosen(model, texts):
    one, all_layers = (studies.mixing_ratio(model, texts[:3], layers=layers) for layers in (1, None))
    assert one.layers == (1,) and np.allclose(one.by_layer[..., 0], all_layers.by_layer[..., 1])


def test_own_categories_and_their_number(model, texts):
    def parity(tokenizer, ids):
        return ["even" if i % 2 == 0 else "odd" for i in ids]

    found = studies.weight_against_norm(model, texts, categories=parity)
    assert found.categories == ("even", "odd")
    assert np.allclose(found.weight.sum(0), 1)
    with pytest.raises(studies.StudyInputError, match="gave 1 names"):
        studies.weight_against_norm(model, texts, categories=lambda tokenizer, ids: ["one"])


RESULTS = {
    "AmplifiedPairs": lambda model, texts: studies.amplified_pairs(model, texts, k=2),
    "Changes": studies.contextualization_change,
    "Changes of cancellation": studies.cancellation,
    "ExpansionRates": lambda model, texts: studies.expansion_rate(model),
    "Frequency": studies.frequency,
    "MixingRatios": studies.mixing_ratio,
    "ValueNormDispersion": studies.value_norm_dispersion,
    "WeightAgainstNorm": studies.weight_against_norm,
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_kept_in_files(model, texts, tmp_path, name):
    found = RESULTS[name](model, texts)
    found.save(tmp_path / "study.safetensors")
    again = tl_norms.load(tmp_path / "study.safetensors")
    assert type(again) is type(found) is type(again.cpu())
    for field in dataclasses.fields(found):
        one, other = getattr(found, field.name), getattr(again, field.name)
        assert type(one) is type(other), field.name
        np.testing.assert_equal(other, one, err_msg=field.name)
    table, kept = (one.to_dataframe() for one in (found, again))
    assert table.equals(kept) and len(table)


def test_figures_of_both_kinds_of_changes_have_their_own_titles(model, texts):
    pytest.importorskip("plotly")
    change, cancelled = studies.contextualization_change(model, texts), studies.cancellation(model, texts)
    assert change.base is None and cancelled.base in scopes(model) and cancelled.components[0] != cancelled.base
    titles = [str(plot.changes(found).layout.to_plotly_json()) for found in (change, cancelled)]
    assert "Change of the map by each component" in titles[0] and "since" not in titles[0]
    assert f"Change of the map since {cancelled.base}" in titles[1] and "by each component" not in titles[1]

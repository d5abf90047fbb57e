"""propagate against one held forward pass of Hugging Face's modules per token; and what it refuses."""

import held_reference
import pytest
import tiny
import torch

import tl_norms
from tl_norms import attribute, logit, propagate, run_with_propagation
from tl_norms.linear.measure.measures import Onto
from tl_norms.walk import Walk

CASES = [
    (name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_mha", "llama_gqa", "llama_mqa_biased", "bert")
]
N = 7


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    made = tiny.make(*request.param)
    tokens = made.tokens()
    return made, made.cache(tokens), held_reference.held(held_reference.Run(made.hf, tokens))


def tolerance_of(made):
    # Hugging Face's Llama computes norms in float32, TransformerLens' own does not: their streams differ
    return 5e-6 if made.family.rms and made.kind == "hooked" else 1e-6 if made.family.rms else 1e-11


def one_by_one(reference, start=0):
    """Vectors [layer b q t d] and remainders [layer b q d] of the held map: one pass per token, less one of nothing."""
    x = reference.streams[start]

    def through(y):
        made = []
        for layer in reference.layers[start:]:
            y = layer(y)
            made.append(y.detach())
        return torch.stack(made)

    nothing = through(torch.zeros_like(x))
    vectors = []
    for t in range(x.shape[1]):
        alone = torch.zeros_like(x)
        alone[:, t] = x[:, t]
        vectors.append(through(alone) - nothing)
    return torch.stack(vectors, dim=3), nothing


def close(found, expected, tolerance, size=None):
    size = expected.abs().max() if size is None else size
    return float((found - expected).abs().max() / size) < tolerance


@pytest.mark.parametrize("start", [0, 1])
def test_vectors_norms_and_remainders_are_those_of_one_pass_per_token(case, start):
    made, cache, reference = case
    vectors, nothing = one_by_one(reference, start)
    found = propagate(cache, start=start)
    assert found.layers == tuple(range(start, tiny.N_LAYERS)) and found.start == start
    assert close(found.norms, vectors.norm(dim=-1), tolerance_of(made))
    longest = vectors.norm(dim=-1).max()
    assert close(found.remainder_norms, nothing.norm(dim=-1), tolerance_of(made), longest)  # Llama may have no bias
    for row, layer in enumerate(found.layers):
        assert close(found.vectors(layer), vectors[row], tolerance_of(made))
    assert float(found.error.max()) < (1e-6 if made.family.rms else 1e-12)


def test_every_measure_is_its_formula(case):
    made, cache, reference = case
    vectors, nothing = one_by_one(reference)
    y = torch.stack(reference.streams[1:])
    if made.family.post_norm is False and "gpt2" not in made.family.name and made.kind == "hooked":
        y = y.double()
    directions = tiny.waves((3, tiny.D_MODEL), 0.4)
    total = y[:, :, :, None]
    expected = {
        "l1": vectors.abs().sum(-1),
        "alti": (total.abs().sum(-1) - (total - vectors).abs().sum(-1)).clamp_min(0),
        "share": (vectors * total).sum(-1) / total.square().sum(-1),
    }
    for name, formula in expected.items():
        found = propagate(cache, measure=name)
        assert found.measure == name and close(found.norms, formula, 2 * tolerance_of(made))
    share = propagate(cache, measure="share")
    torch.testing.assert_close(
        share.norms.sum(-1) + share.remainder_norms, torch.ones_like(share.remainder_norms), rtol=1e-6, atol=1e-6
    )
    onto = propagate(cache, measure=Onto(directions))
    assert onto.norms.shape == (2, 2, N, N, 3) and onto.remainder_norms.shape == (2, 2, N, 3)
    assert close(onto.norms, vectors @ directions.T, tolerance_of(made))
    size = (vectors @ directions.T).abs().max()
    assert close(onto.remainder_norms, nothing @ directions.T, tolerance_of(made), size)


def test_forward_equals_backward(case):
    _, cache, _ = case
    for start in (0, 1):
        found = propagate(cache, start=start)
        for token, at in ((7, -1), (11, 3)):
            expected = attribute(cache, logit(token, at=at)).stream[start]
            assert close(found.logits(token, at=at), expected, 1e-10)


def budget_of(cache, **options):
    """The smallest budget, from the message that names it."""
    with pytest.raises(tl_norms.MemoryBudgetError) as refused:
        propagate(cache, max_memory=1, **options)
    return int(str(refused.value).partition("max_memory=")[2].split()[0])


def test_results_do_not_depend_on_the_budget(case):
    _, cache, _ = case
    whole, least = propagate(cache), budget_of(cache)
    with pytest.raises(tl_norms.MemoryBudgetError):
        propagate(cache, max_memory=least - 1)
    for budget in (least, int(2.5 * least), 1 << 40):
        found = propagate(cache, max_memory=budget)
        torch.testing.assert_close(found.norms, whole.norms, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.vectors(-1), whole.vectors(-1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.logits(5), whole.logits(5), rtol=1e-10, atol=1e-12)


def test_causal_models_never_compute_positions_before_the_source(case):
    made, cache, _ = case
    found = propagate(cache)
    walk = Walk(found._model_map, 0, tiny.N_LAYERS - 1)
    assert walk.causal == (not made.family.post_norm)
    chunks = list(walk.chunks(range(N), budget_of(cache)))
    assert [source for chunk in chunks for source in chunk.sources] == list(range(N)) and len(chunks) >= N - 1
    for chunk in chunks:
        assert chunk.first == (chunk.sources[0] if walk.causal else 0)
        assert all(x.shape[2] == N - chunk.first for _, x in walk.carried(chunk))
    if walk.causal:
        assert not found.norms.triu(1).any()


def test_the_budget_is_kept(case):
    """Bytes of tensors that one source's walk makes and has alive at once."""
    _, cache, _ = case
    found = propagate(cache)
    walk = Walk(found._model_map, 0, tiny.N_LAYERS - 1)
    chunk = next(walk.chunks(range(N), budget_of(cache)))
    assert len(chunk.sources) == 1
    for _ in walk.carried(chunk):
        pass
    with tiny.Alive() as alive:
        for _ in walk.carried(chunk):
            pass
    assert alive.peak <= walk.bytes_of(0, N)


def test_padding_gives_nothing_and_gets_nothing():
    for name in ("bert", "gpt2"):
        made = tiny.make(name, tiny.KINDS[0])
        mask = torch.ones(2, N, dtype=torch.long)
        mask[1, 4:] = 0
        found = propagate(made.cache(mask=mask), mask=mask)
        alone = propagate(made.cache(made.tokens()[1:, :4]))
        assert not found.norms[:, 1, 4:].any() and not found.norms[:, 1, :, 4:].any()
        assert not found.remainder_norms[:, 1, 4:].any() and not found.vectors(1)[1, 4:].any()
        torch.testing.assert_close(found.norms[:, 1, :4, :4], alone.norms[:, 0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.logits(5)[1, :4], alone.logits(5)[0], rtol=1e-6, atol=1e-8)
        share = propagate(made.cache(mask=mask), mask=mask, measure="share")
        rows = share.norms.sum(-1) + share.remainder_norms
        torch.testing.assert_close(rows, mask.double().expand_as(rows), rtol=1e-6, atol=1e-6)


def test_without_batch_axis(case):
    made, _, _ = case
    with torch.no_grad():
        cache = made.model.run_with_cache(made.tokens()[:1], remove_batch_dim=True)[1]
    whole, found = propagate(made.cache(made.tokens()[:1])), propagate(cache)
    torch.testing.assert_close(found.norms, whole.norms[:, 0])
    assert found.remainder_norms.shape == (2, N) and found.vectors(0, 2, [1, 0]).shape == (1, 2, tiny.D_MODEL)
    assert found.logits(3).shape == (N,)


def test_chosen_layers_queries_and_keys(case):
    _, cache, _ = case
    whole, found = propagate(cache), propagate(cache, layers=[-1])
    assert found.layers == (1,) and found.error.shape == (1,)
    torch.testing.assert_close(found.norms[0], whole.norms[1])
    first = propagate(cache, layers=0)
    torch.testing.assert_close(first.norms[0], whole.norms[0])
    torch.testing.assert_close(first.logits(4), whole.logits(4))  # walks on to the end
    vectors = whole.vectors(1)
    torch.testing.assert_close(whole.vectors(1, query=-1, key=[3, 0, 3]), vectors[:, -1:, [3, 0, 3]])
    torch.testing.assert_close(whole.vectors(1, query=slice(2, 5)), vectors[:, 2:5])
    with pytest.raises(tl_norms.UnknownLayerError, match="not measured"):
        found.vectors(0)
    with pytest.raises(tl_norms.UnknownPositionError, match="key 7"):
        whole.vectors(1, key=7)


def test_float32():
    for name in ("bert", "gpt2", "llama_gqa"):
        single, double = (tiny.make(name, tiny.KINDS[0], dtype) for dtype in (torch.float32, torch.float64))
        found, expected = propagate(single.cache()), propagate(double.cache())
        assert found.norms.dtype == torch.float32
        assert close(found.norms.double(), expected.norms, 2e-5)
        assert float(found.error.max()) < 2e-5


def test_required_hooks_are_enough_and_a_run_gives_the_same(case):
    made, cache, _ = case
    whole = propagate(cache)
    names = tl_norms.required_hooks(made.model, target=logit(0))
    torch.testing.assert_close(propagate(made.cache(names_filter=names)).norms, whole.norms, rtol=1e-9, atol=1e-10)
    _, during = run_with_propagation(made.model, made.tokens(), layers=1, measure="share", progress=False)
    torch.testing.assert_close(during.norms, propagate(cache, layers=1, measure="share").norms, rtol=1e-9, atol=1e-10)


def test_tables_and_text():
    pytest.importorskip("pandas")
    made = tiny.make("gpt2", tiny.KINDS[0])
    cache = made.cache()
    found = propagate(cache)
    table = found.to_dataframe()
    assert len(table) == 2 * 2 * N * (N + 1)
    row = table[(table.layer == 1) & (table.row == 1) & (table["query"] == 4) & (table.key == 2)].norm
    assert float(row.iloc[0]) == float(found.norms[1, 1, 4, 2])
    rest = table[(table.layer == 0) & (table.row == 0) & (table["query"] == 3) & (table.key_token == "remainder")].norm
    assert float(rest.iloc[0]) == float(found.remainder_norms[0, 0, 3])
    onto = propagate(cache, measure=Onto(torch.ones(2, tiny.D_MODEL))).to_dataframe()
    assert len(onto) == 2 * len(table) and list(onto.direction[:2]) == [0, 1]
    assert "norms [2, 2, 7, 7]" in repr(found) and "l2" in found._repr_html_()
    with pytest.raises(tl_norms.UnknownOptionError, match="without their run"):
        found.without_vectors().vectors(0)


# ---- what is refused


def test_bad_options_are_refused(case):
    _, cache, _ = case
    for options, error, match in [
        (dict(measure="l3"), tl_norms.UnknownOptionError, "l3"),
        (dict(start=2), tl_norms.UnknownLayerError, "layers 0 to 1"),
        (dict(start=1, layers=[0]), tl_norms.UnknownLayerError, "before start"),
        (dict(layers=[5]), tl_norms.UnknownLayerError, "layers 0 to 1"),
        (dict(layers=[1, -1]), tl_norms.UnknownLayerError, "more than once"),
        (dict(max_memory=0), tl_norms.UnknownOptionError, "max_memory"),
        (dict(measure=Onto(torch.ones(tiny.D_MODEL + 1))), tl_norms.UnknownOptionError, "width"),
    ]:
        with pytest.raises(error, match=match):
            propagate(cache, **options)
    with pytest.raises(tl_norms.NotACacheError):
        propagate({})


def test_a_map_that_loses_something_is_refused(case, monkeypatch):
    """Vectors or remainder that are wrong do not add up, whatever is measured."""
    _, cache, _ = case
    carried, remainders = Walk.carried, Walk.remainders

    def shorter(self, chunk):
        for number, x in carried(self, chunk):
            yield number, x * 0.999

    def more(self):
        for number, r in remainders(self):
            yield number, r + 0.01

    def nan(self, chunk):
        for number, x in carried(self, chunk):
            yield number, torch.full_like(x, float("nan")) if chunk.sources[-1] == N - 1 else x

    for name, broken in (("carried", shorter), ("remainders", more), ("carried", nan)):
        with monkeypatch.context() as patch:
            patch.setattr(Walk, name, broken)
            for measure in ("l2", "share"):
                with pytest.raises(tl_norms.DecompositionError, match="after layer 0"):
                    propagate(cache, measure=measure)
            assert not float(propagate(cache, check=False).error.max()) < 1e-4


def test_weights_or_activations_changed_since_are_refused():
    made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
    cache = made.cache()
    found = propagate(cache)
    cache["pattern", 1][:, :, 2] *= 0.5
    with pytest.raises(tl_norms.DecompositionError):
        found.vectors(1)
    with pytest.raises(tl_norms.DecompositionError):
        found.logits(3, at=2)
    with pytest.raises(tl_norms.DecompositionError):
        propagate(cache)


def test_a_progress_bar_is_shown_when_asked_for(capsys):
    cache = tiny.make("gpt2", tiny.KINDS[0]).cache()
    propagate(cache, progress=True)
    assert "propagate" in capsys.readouterr().err
    propagate(cache)
    assert not capsys.readouterr().err

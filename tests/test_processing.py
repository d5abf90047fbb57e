"""Weight processing: seen on the tensors, said once, and which numbers it moves."""

import gc
import warnings

import pytest
import torch
from tiny import CASES, FAMILIES, KINDS, N_LAYERS, hooked, make

import tl_norms

ALL = ("fold_ln", "center_writing_weights", "fold_value_biases")
needs = {kind: pytest.mark.skipif(kind not in KINDS, reason=f"this TransformerLens has no {kind} models") for kind in (
    "bridge", "hooked")}  # fmt: skip


@pytest.fixture(params=[pytest.param(kind, marks=needs[kind]) for kind in ("hooked", "bridge")])
def processed(request):
    """GPT-2 as it is, and the same after TransformerLens' defaults: two caches."""
    plain = make("gpt2", request.param, fresh=True)
    other = make("gpt2", request.param, fresh=True)
    if request.param == "hooked":
        other.model = hooked(FAMILIES["gpt2"], processing=ALL)
    else:
        other.model.enable_compatibility_mode(disable_warnings=True)
    return plain, other, plain.cache(), other.cache()


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tl_norms.WeightProcessingWarning)
        return function(*args, **options)


def test_processing_is_found_on_the_tensors(processed):
    _, _, before, after = processed
    assert tl_norms.block_norms(before).processing == ()
    assert quiet(tl_norms.block_norms, after).processing == ALL
    assert ", ".join(ALL) in repr(quiet(tl_norms.block_norms, after))


def test_what_moves_and_what_does_not(processed):
    """Predictions and patterns stay; lengths of vectors, maps and mixing ratios do not."""
    plain, other, before, after = processed
    with torch.no_grad():
        left, right = (tiny.model(tiny.tokens()).log_softmax(-1) for tiny in (plain, other))
    assert torch.allclose(left, right, atol=1e-5), "the processed model predicts something else"
    one, two = tl_norms.block_norms(before), quiet(tl_norms.block_norms, after)
    assert torch.allclose(one.attention, two.attention, atol=1e-6)
    assert torch.allclose(one.attention_residual, two.attention_residual, atol=1e-6)
    assert torch.allclose(one.attention_mixing_ratio(), two.attention_mixing_ratio(), atol=1e-6)

    def moved(left, right):
        return float((left - right).abs().max() / left.abs().max())

    assert moved(one.value_norms, two.value_norms) > 0.05
    assert moved(one.head_norms, two.head_norms) > 0.05
    assert moved(tl_norms.value_vectors(before, 0), quiet(tl_norms.value_vectors, after, 0)) > 0.05
    for scope in ("attn", "attn_res"):
        assert moved(one[scope], two[scope]) > 0.02
        assert moved(one.mixing_ratio(scope), two.mixing_ratio(scope)) > 0.01
        assert float(two.error[scope].max()) < 1e-6, "still complete, for the processed weights"


def test_the_warning_comes_once_per_model_and_names_the_cure(processed):
    plain, _, before, after = processed
    with pytest.warns(tl_norms.WeightProcessingWarning) as caught:
        tl_norms.block_norms(after)
    (warning,) = caught
    assert all(step in str(warning.message) for step in ALL)
    cure = (
        "enable_compatibility_mode(no_processing=True)" if plain.kind == "bridge" else "from_pretrained_no_processing"
    )
    assert cure in str(warning.message)
    assert warning.filename == __file__, "the warning should point at the caller's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tl_norms.block_norms(after)
        tl_norms.value_norms(after)
        tl_norms.decompose(after, 0, "attn")
        tl_norms.block_norms(before)


@needs["bridge"]
def test_compatibility_mode_without_processing_is_not_processing():
    tiny = make("gpt2", "bridge", fresh=True)
    before = tl_norms.block_norms(tiny.cache())
    tiny.model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    after = tl_norms.block_norms(tiny.cache())
    assert after.processing == ()
    assert torch.allclose(after["attn_res"], before["attn_res"], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "steps", [("fold_ln",), ("center_writing_weights",), ("fold_value_biases",), ("fold_ln", "fold_value_biases"), ()]
)
@needs["hooked"]
def test_each_step_is_found_alone(steps):
    model = hooked(FAMILIES["gpt2"], processing=steps)
    with torch.no_grad():
        cache = model.run_with_cache(torch.arange(3, 10)[None])[1]
    assert quiet(tl_norms.block_norms, cache).processing == steps


@pytest.mark.parametrize("name, kind", CASES)
def test_trained_weights_are_not_taken_for_processed_ones(name, kind):
    norms = tl_norms.block_norms(make(name, kind).cache(), layers=range(N_LAYERS))
    assert norms.processing == ()


@needs["bridge"]
@pytest.mark.parametrize(
    ("rows", "dtype", "found"),
    [
        (slice(0, 16), torch.float64, False),
        (slice(1, None), torch.float64, False),
        (slice(None), torch.float64, True),
        (slice(0, 16), torch.bfloat16, False),
        (slice(None), torch.bfloat16, True),
    ],
)
def test_weights_are_centred_if_all_rows_are(rows, dtype, found):
    tiny = make("gpt2", "bridge", fresh=True)
    with torch.no_grad():
        for block in tiny.model.blocks:
            weight = block.attn.o.original_component.weight  # [d_in d_model]
            weight[rows] -= weight[rows].mean(-1, keepdim=True)
            weight[:5] *= 1e-4  # rows of any length
    tiny.model.to(dtype)
    processing = quiet(tl_norms.block_norms, tiny.cache(), check=False).processing
    assert ("center_writing_weights" in processing) == found


def test_results_do_not_keep_the_model_alive():
    """A result is plain tensors: the model may go."""
    import weakref

    tiny = make("gpt2", KINDS[0], fresh=True)
    norms, gone = tl_norms.block_norms(tiny.cache()), weakref.ref(tiny.model)
    del tiny
    gc.collect()
    assert gone() is None and norms["attn"].isfinite().all()

"""On a graphics card: the numbers of the processor, and few answers that the program waits for."""

import dataclasses
import warnings
from collections.abc import Mapping

import pytest
import tiny
import torch
from torch import Tensor

import tl_norms
from tl_norms import faithfulness, methods, metrics, studies

CARD = next((name for name in ("cuda", "xpu") if hasattr(torch, name) and getattr(torch, name).is_available()), None)
if CARD is None or "bridge" not in tiny.KINDS:
    pytest.skip("needs a graphics card", allow_module_level=True)

NAMES = ["bert", "gpt2", "llama_gqa"]
ROUNDING = {"llama_gqa": 1e-3}  # transformers computes its softmax, angles and norms in float32
MASK = torch.tensor([[1] * 7, [0, 0] + [1] * 5])
TARGET = tl_norms.logit(7) - tl_norms.logit(9)
MANY = [tl_norms.logit(7), tl_norms.logit(9, at=2), TARGET]


def edges(cache, **options):
    found = tl_norms.attribute(cache, MANY, **options)
    return found, found.edges(1)


def projected(cache):
    made = tl_norms.decompose(cache, 1, tl_norms.scopes(cache.model)[-1])
    rows = torch.eye(tiny.D_MODEL, dtype=made.total().dtype)[:3].to(made.total().device)
    return made.project(rows), made.vectors(), made.total(), tl_norms.project_heads(cache, 1, rows)


def walked(cache, **options):
    found = tl_norms.propagate(cache, **options)
    return found, found.vectors(1), found.logits(7)


def measured(cache):
    onto = tl_norms.Onto(torch.linspace(-1, 1, tiny.D_MODEL, dtype=torch.float64))
    return [tl_norms.block_norms(cache, "all", measure=one) for one in ("l1", "alti", "share", onto)]


ANALYSES = {
    "block norms": lambda cache: tl_norms.block_norms(cache, "all"),
    "attention block": tl_norms.block_norms,
    "heads": lambda cache: (tl_norms.weighted_value_norms(cache), tl_norms.block_norms(cache).head_norms),
    "sketch": lambda cache: tl_norms.ffn_maps(cache, sketch=16),
    "measures": measured,
    "padding": lambda cache: tl_norms.block_norms(cache, "all", mask=MASK),
    "one vector": projected,
    "attribution": edges,
    "integrated": lambda cache: edges(cache, attention="integrated"),
    "baseline": lambda cache: edges(cache, baseline=5, ff="half"),
    "direct": lambda cache: tl_norms.direct_attribution(cache, MANY),
    "propagation": walked,
    "propagation, integrated": lambda cache: walked(cache, attention="integrated"),
    "propagation, shares": lambda cache: tl_norms.propagate(cache, measure="share", max_memory=1 << 20),
    "rollouts": lambda cache: [
        f(cache)
        for f in (
            methods.attention_rollout,
            methods.norm_rollout,
            methods.globenc,
            methods.alti,
            methods.attention_flow,
        )
    ],
    "zeroing": methods.value_zeroing,
    "routes": methods.information_flow,
    "decompx": lambda cache: methods.decompx(cache, TARGET),
    "alti logit": lambda cache: methods.alti_logit(cache, TARGET),
    "cancellation": lambda cache: metrics.cancellation(cache),
    "changes": lambda cache: metrics.component_changes(tl_norms.block_norms(cache, "all")),
    "amplified": lambda cache: metrics.ff_amplification(tl_norms.block_norms(cache, "all")),
}


def numbers(found) -> list[Tensor]:
    """All tensors of a result, on the processor."""
    if isinstance(found, Tensor):
        return [found.detach().cpu()]
    if isinstance(found, Mapping):
        return [one for value in found.values() for one in numbers(value)]
    if isinstance(found, (tuple, list)):
        return [one for value in found for one in numbers(value)]
    if dataclasses.is_dataclass(found):
        return [one for field in dataclasses.fields(found) for one in numbers(getattr(found, field.name))]
    return []


def compare(found, expected, rounding: float = 1e-8) -> None:
    here, there = numbers(found), numbers(expected)
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding / 10, equal_nan=True)


@pytest.fixture(scope="module")
def both():
    """Caches by name: of the processor, of the card."""
    made: dict[str, tuple] = {}

    def of(name: str):
        if name not in made:
            first, second = tiny.make(name, "bridge", fresh=True), tiny.make(name, "bridge", fresh=True)
            second.model.to(CARD)
            made[name] = first.cache(), second.cache(second.tokens().to(CARD))
        return made[name]

    return of


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_the_processor(both, name, analysis):
    here, there = both(name)
    try:
        expected = ANALYSES[analysis](here)
    except tl_norms.TLNormsError as error:
        with pytest.raises(type(error)):
            ANALYSES[analysis](there)
        return
    compare(ANALYSES[analysis](there), expected, ROUNDING.get(name, 1e-8))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_gqa"])
def test_during_the_forward_pass(name):
    first, second = tiny.make(name, "bridge"), tiny.make(name, "bridge", fresh=True)
    second.model.to(CARD)
    tokens = second.tokens()
    for run in (
        lambda model, ids: tl_norms.run_with_norms(model, ids, scopes="all"),
        lambda model, ids: tl_norms.run_with_attribution(model, ids, target=TARGET),
        lambda model, ids: tl_norms.run_with_propagation(model, ids),
    ):
        with torch.no_grad():
            compare(run(second.model, tokens.to(CARD))[1], run(first.model, tokens)[1], ROUNDING.get(name, 1e-8))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_attribution_is_stored_and_shown(both, tmp_path, name):
    here, there = both(name)
    for make in (tl_norms.block_norms, lambda cache: tl_norms.attribute(cache, TARGET), tl_norms.propagate):
        found = make(there)
        found.save(tmp_path / "found.safetensors")
        compare(tl_norms.load(tmp_path / "found.safetensors").for_storage(), make(here).for_storage())
        assert len(found.to_dataframe()) == len(make(here).to_dataframe())
        assert found._repr_html_() and repr(found)


def test_encoder_and_decoder():
    from test_cross import SIZES, SOURCE, SOURCE_MASK, TARGET, TARGET_MASK, cached, made, transformers

    model, _ = made(transformers.MarianMTModel, transformers.MarianConfig(**SIZES), "MarianMTModel")
    masks = {"mask": TARGET_MASK, "source_mask": SOURCE_MASK}

    def results(device):
        model.to(device)
        cache = cached(model, SOURCE.to(device), TARGET.to(device), attention_mask=SOURCE_MASK.to(device))
        target = tl_norms.logit(7, at=1)
        return [
            numbers(one)
            for one in (
                tl_norms.cross_norms(cache, **masks),
                tl_norms.block_norms(cache, "all", **masks),
                tl_norms.block_norms(cache, "all", stack="encoder", mask=SOURCE_MASK),
                tl_norms.attribute(cache, target, **masks),
                tl_norms.attribute(cache, target, attention="integrated", **masks),
                tl_norms.propagate(cache, **masks),
            )
        ]

    compare(results(CARD), results("cpu"))


def test_the_judge():
    import judge_models

    report = []
    for device in ("cpu", CARD):
        model = judge_models.gpt2().to(device)
        task = faithfulness.tasks.agreement(model, 2, attractors=(1, 2))
        report.append(faithfulness.evaluate(model, task, progress=False, draws=2, removals=("cut", "replace", "swap")))
    assert report[0].methods == report[1].methods
    torch.testing.assert_close(
        torch.as_tensor(report[1].values), torch.as_tensor(report[0].values), rtol=1e-6, atol=1e-6, equal_nan=True
    )


def test_studies():
    from study_models import WORDS, bert

    texts = [" ".join(WORDS[first : first + 6]) for first in range(0, 18, 6)]
    for study in (studies.mixing_ratio, studies.contextualization_change, studies.weight_against_norm):
        here, there = (study(bert().to(device), texts, progress=False) for device in ("cpu", CARD))
        table, expected = there.to_dataframe(), here.to_dataframe()
        assert len(table) and list(table.columns) == list(expected.columns)
        for name in table.select_dtypes("number"):
            assert table[name].to_numpy() == pytest.approx(expected[name].to_numpy(), rel=1e-6, abs=1e-9, nan_ok=True)


def waits(run, layers) -> int:
    """How often the program waits for the card, by the card's own count."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run(layers)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in seen)


@pytest.mark.skipif(CARD != "cuda", reason="the count is CUDA's")
@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_gqa"])
def test_a_card_is_waited_for_a_few_times_per_layer(name, n):
    made = tiny.make(name, "bridge", torch.float32, fresh=True)
    made.model.to(CARD)
    cache = made.cache((torch.arange(n) % 50)[None].to(CARD))

    def run(layers):
        return tl_norms.block_norms(cache, layers=layers)

    run([0]), run([0, 1])  # what is decided once
    one, two = waits(run, [0]), waits(run, [0, 1])
    print(name, n, "waits", one, two)
    assert one <= 8 and two - one <= 8

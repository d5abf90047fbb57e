"""What a graphics card would wait for, counted on the processor with settings as on a card."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, KINDS, boot, hugging_face, make
from torch.utils._python_dispatch import TorchDispatchMode

import tl_norms
import tl_norms.norms  # loaded before a test counts what it reads
from tl_norms.linear import pieces, required

MOST = 8  # numbers read back per layer
READ = {"linear/pieces.py", "freeze_queries.py"}  # where the switch for TF32 is read, or named in a message
_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """Counts operations whose result the program needs before it can go on, and all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.all += 1
        name = func._schema.name
        chosen = args[1] if name in ("aten::index", "aten::index_put_") else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in chosen)
        self.waits += name in _WAITS or by_mask
        return func(*args, **(kwargs or {}))


def counted(cache, layers) -> Waits:
    with Waits() as count:
        tl_norms.block_norms(cache, layers=layers)
    return count


class Reads:
    """What is judged together, read in one go: `tolist` is no operation that a dispatch mode sees."""

    def __init__(self, read):
        self.read, self.count = read, 0

    def __call__(self, numbers):
        self.count += 1
        return self.read(numbers)


def per_layer(monkeypatch, name: str, n: int, *, formed: bool) -> tuple[int, int]:
    """Waits and operations that one more layer adds."""
    monkeypatch.setattr(pieces, "is_card", lambda device: True)
    monkeypatch.setattr(required, "is_card", lambda device: True)
    reads = Reads(required.read)
    monkeypatch.setattr(required, "read", reads)
    made = make(name, KINDS[0], torch.float32)
    _, cache = made.model.run_with_cache((torch.arange(n) % 50)[None])
    if not formed:
        monkeypatch.setattr("tl_norms.linear.carry.terms.Sent.few", False)
        monkeypatch.setattr("tl_norms.joined_layers.few", lambda mixing: False)
    counted(cache, [0]), counted(cache, [0, 1])  # what is decided once
    reads.count = 0
    one = counted(cache, [0])
    assert reads.count == 1
    two = counted(cache, [0, 1])
    return two.waits - one.waits + 1, two.all - one.all


@pytest.mark.parametrize("formed", [True, False], ids=["formed", "factored"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_card_waits_a_few_times_per_layer_whatever_the_length(monkeypatch, name, formed):
    (waits, operations), (later_waits, later_operations) = (
        per_layer(monkeypatch, name, n, formed=formed) for n in (8, 30)
    )
    assert 0 < waits <= MOST and later_waits == waits
    assert later_operations == operations < 450  # no loop over keys, heads or planes


ANALYSES = {
    "feed-forward": lambda cache: tl_norms.ffn_maps(cache),
    "attribution": lambda cache: tl_norms.attribute(cache, tl_norms.logit(7)),
    "integrated": lambda cache: tl_norms.attribute(cache, tl_norms.logit(7), attention="integrated"),
    "propagation": lambda cache: tl_norms.propagate(cache),
}


def of_one_more_layer(analysis: str, name: str, n: int, reads: Reads) -> int:
    counts = []
    for layers in (2, 3):
        family = FAMILIES[name]
        depth = {key: layers for key in ("n_layer", "num_hidden_layers") if key in family.options}
        family = replace(family, options=family.options | depth)
        made = boot(hugging_face(family, torch.float32), family.hf_class)
        with torch.no_grad():
            _, cache = made.run_with_cache((torch.arange(n) % 50)[None])
        ANALYSES[analysis](cache)  # what is decided once
        reads.count = 0
        with Waits() as count:
            ANALYSES[analysis](cache)
        counts.append(count.waits + reads.count)
    return counts[1] - counts[0]


@pytest.mark.skipif("bridge" not in KINDS, reason="these models are bridges")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_gqa"])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_card_waits_a_few_times_per_layer_of_a_whole_model(monkeypatch, analysis, name):
    monkeypatch.setattr("tl_norms.linear.pieces.is_card", lambda device: True)
    for module in ("linear.required", "linear.carry.pairs", "linear.hold", "freeze_queries"):
        monkeypatch.setattr(f"tl_norms.{module}.is_card", lambda device: True)
    reads = Reads(required.read)
    monkeypatch.setattr(required, "read", reads)
    short, long = (of_one_more_layer(analysis, name, n, reads) for n in (8, 24))
    assert 0 < long <= MOST and long == short


def test_numbers_with_settings_of_a_card_are_those_of_the_processor(monkeypatch):
    cache = make("bert", KINDS[0]).cache()
    wanted = tl_norms.block_norms(cache, "all")
    monkeypatch.setattr(pieces, "is_card", lambda device: True)
    monkeypatch.setattr(required, "is_card", lambda device: True)
    for few in (True, False):
        monkeypatch.setattr("tl_norms.linear.carry.terms.Sent.few", few)
        found = tl_norms.block_norms(cache, "all")
        for scope in wanted.scopes:
            torch.testing.assert_close(found[scope], wanted[scope], rtol=1e-5, atol=1e-6)


def test_what_is_judged_together_is_refused_by_its_first(monkeypatch):
    """As on the processor, where each number is judged where it is made."""
    monkeypatch.setattr(pieces, "is_card", lambda device: True)
    monkeypatch.setattr(required, "is_card", lambda device: True)
    cache, hooked = make("bert", KINDS[0]).cache(), KINDS[0] == "hooked"
    attention = "blocks.0.hook_attn_out" if hooked else "blocks.0.attn.o.hook_out"
    values = "blocks.0.attn.hook_v" if hooked else "blocks.0.attn.v.hook_out"
    cache.cache_dict[attention] = cache[attention] * 1.01
    with pytest.raises(tl_norms.DecompositionError, match="scope 'attn'"):
        tl_norms.block_norms(cache)
    cache.cache_dict[values] = cache[values] * torch.nan
    with pytest.raises(tl_norms.NonFiniteError, match=values.removeprefix("blocks.0.attn.")):
        tl_norms.block_norms(cache)


def test_matrix_products_of_a_card_keep_the_precision_they_were_given():
    """TF32 is the user's choice: nothing in the package switches it."""
    root, words = Path(tl_norms.__file__).parent, ("allow_tf32", "set_float32_matmul_precision", "fp32_precision")
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert {path for path, text in texts.items() if any(word in text for word in words)} == READ
    for path in READ:  # read, or named in a message
        nodes = list(ast.walk(ast.parse(texts[path])))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        assert not [node for node in attributes if isinstance(node.ctx, ast.Store) and node.attr in words]
        assert "set_float32_matmul_precision" not in {node.attr for node in attributes}
        assert "setattr" not in {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older switch")
def test_the_users_switch_is_seen():
    card, switch = torch.device("cuda"), torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "ieee"
        assert not pieces.short_products(card)
        switch.fp32_precision = "tf32"
        assert pieces.short_products(card) and not pieces.short_products(torch.device("cpu"))
    finally:
        switch.fp32_precision = before


def test_rounding_to_tf32_is_held_to_its_own_tolerance(monkeypatch):
    made = make("bert", KINDS[0], torch.float32)
    attention = "blocks.0.hook_attn_out" if KINDS[0] == "hooked" else "blocks.0.attn.o.hook_out"

    def off_by(part: float):
        cache = made.cache()
        cache.cache_dict[attention] = cache[attention] * (1 + part)
        return tl_norms.block_norms(cache, ["attn"])

    with pytest.raises(tl_norms.DecompositionError):
        off_by(1e-3)
    for module in ("blocks.activations", "linear.measure.spots"):
        monkeypatch.setattr(f"tl_norms.{module}.short_products", lambda device: True)
    assert off_by(1e-3).error["attn"][0] > 5e-4
    with pytest.raises(tl_norms.DecompositionError):
        off_by(0.05)

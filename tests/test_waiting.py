"""What a graphics card would wait for, counted on the processor with settings as on a card."""

from pathlib import Path

import pytest
import torch
from tiny import KINDS, make
from torch.utils._python_dispatch import TorchDispatchMode

import tl_norms
import tl_norms.norms  # loaded before a test counts what it reads
from tl_norms.linear import pieces, required

MOST = 8  # numbers read back per layer
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
    root = Path(tl_norms.__file__).parent
    words = ("allow_tf32", "set_float32_matmul_precision", "fp32_precision")
    assert not [path for path in root.rglob("*.py") if any(word in path.read_text(encoding="utf-8") for word in words)]

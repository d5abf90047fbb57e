"""Products and maximum flows of maps against slow formulas."""

import itertools

import pytest
import torch

import tl_norms
from tl_norms.composition import attention_flow, normalized, rollout
from tl_norms.errors import MapError, MissingExtraError, NonFiniteError


def random_maps(*shape, seed=0, causal=False):
    maps = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return maps.tril() if causal else maps


def slow_product(steps):
    """Sums over all paths of one batch entry, [layer query key]."""
    n = steps.shape[-1]
    found = torch.zeros_like(steps)
    for top in range(len(steps)):
        for path in itertools.product(range(n), repeat=top + 2):
            weight = 1.0
            for layer, (below, above) in enumerate(zip(path, path[1:], strict=False)):
                weight *= float(steps[layer, above, below])
            found[top, path[-1], path[0]] += weight
    return found


@pytest.mark.parametrize("add_identity", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_rollout_sums_over_paths(add_identity, normalize):
    maps = random_maps(4, 2, 3, 3)
    found = rollout(maps, add_identity=add_identity, normalize=normalize)
    assert found.shape == maps.shape
    steps = maps + torch.eye(3) if add_identity else maps
    steps = steps / steps.sum(-1, keepdim=True) if normalize else steps
    for b in range(2):
        torch.testing.assert_close(found[:, b], slow_product(steps[:, b]), rtol=1e-12, atol=0)


def test_rollout_without_batch_and_with_two_batch_axes():
    maps = random_maps(3, 2, 2, 4, 4)
    whole = rollout(maps)
    torch.testing.assert_close(rollout(maps[:, 1, 0]), whole[:, 1, 0])


def test_public_names():
    assert tl_norms.rollout is rollout and tl_norms.attention_flow is attention_flow and tl_norms.MapError is MapError


def test_abnar_and_zuidema():
    """Rows of (A + I) / 2 sum to one by themselves, and those of their product."""
    patterns = torch.softmax(random_maps(12, 5, 5), -1)
    found = rollout(patterns, add_identity=True, normalize=True)
    wanted = torch.eye(5, dtype=torch.float64)
    for pattern in patterns:
        wanted = (pattern + torch.eye(5)) / 2 @ wanted
    torch.testing.assert_close(found[-1], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(12, 5, dtype=torch.float64))


@pytest.mark.parametrize("n_layers", [30, 80])
def test_many_layers(n_layers):
    """Row sums of GlobEnc reach 1e7 in 6 layers: float64 holds 80 of them, float32 says that it does not."""
    maps = 10 ** (7 / 6) * torch.softmax(random_maps(n_layers, 6, 6), -1)
    found = rollout(maps)
    exact = [1.0]
    for _ in range(n_layers):
        exact.append(exact[-1] * 10 ** (7 / 6))
    torch.testing.assert_close(found.sum(-1), torch.tensor(exact[1:], dtype=torch.float64)[:, None].expand(-1, 6))
    if n_layers == 80:
        with pytest.raises(MapError, match=r"layer 3\d is of the order of 1?e?\+?.*float32 cannot hold.*double"):
            rollout(maps.float())
        with pytest.raises(MapError, match="cannot hold"):
            rollout(1e-3 * maps.float() / maps.float().sum(-1, keepdim=True))
    rows = rollout(maps.float(), normalize=True)
    torch.testing.assert_close(rows.sum(-1), torch.ones(n_layers, 6), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.double(), rollout(maps, normalize=True), rtol=0, atol=1e-6)


def smallest_cut(capacities, query, key):
    """The flow between two nodes by the theorem of Ford and Fulkerson: every set of the nodes is tried."""
    n_layers, n = capacities.shape[:2]
    nodes = [(level, position) for level in range(n_layers + 1) for position in range(n)]
    source, sink = (n_layers, query), (0, key)
    free = [node for node in nodes if node not in (source, sink)]
    best = float("inf")
    for chosen in itertools.product([False, True], repeat=len(free)):
        inside = dict(zip(free, chosen, strict=True)) | {source: True, sink: False}
        cut = sum(
            float(capacities[layer, i, j])
            for layer in range(n_layers)
            for i in range(n)
            for j in range(n)
            if inside[layer + 1, i] and not inside[layer, j]
        )
        best = min(best, cut)
    return best


@pytest.mark.parametrize("causal", [True, False])
def test_flow_is_the_smallest_cut(causal):
    maps = random_maps(3, 2, 2, 2, seed=1, causal=causal)
    found = attention_flow(maps)
    assert found.shape == maps.shape
    for top in range(3):
        for b in range(2):
            rows = [[smallest_cut(maps[: top + 1, b], q, k) for k in range(2)] for q in range(2)]
            wanted = torch.tensor(rows, dtype=torch.float64)
            torch.testing.assert_close(found[top, b], wanted / wanted.sum(-1, keepdim=True), rtol=0, atol=1e-6)


def test_flow_of_three_positions_and_its_last_layer():
    patterns = torch.softmax(3 * random_maps(2, 3, 3, seed=2), -1)
    maps = (patterns + torch.eye(3)) / 2
    found = attention_flow(maps)
    rows = [[smallest_cut(maps, q, k) for k in range(3)] for q in range(3)]
    wanted = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(found[1], wanted / wanted.sum(-1, keepdim=True), rtol=0, atol=3e-7)
    torch.testing.assert_close(found[0], maps[0], rtol=0, atol=3e-7)
    assert torch.equal(attention_flow(maps, last_only=True)[0], found[1])


@pytest.mark.parametrize("size", [1e-12, 1e9])
def test_flow_does_not_depend_on_the_unit(size):
    maps = random_maps(3, 4, 4, seed=3)
    torch.testing.assert_close(attention_flow(maps * size), attention_flow(maps), rtol=0, atol=1e-6)
    assert attention_flow(maps.float()).dtype == torch.float32


def test_rows_of_zeros():
    maps = random_maps(2, 3, 4, 4)
    maps[1, 2, 3] = 0
    with pytest.raises(MapError, match=r"1 rows .* index \[1, 2, 3\].*padding"):
        rollout(maps, normalize=True)
    with pytest.raises(MapError, match="rows of these maps sum to zero"):
        attention_flow(maps)
    assert rollout(maps)[1, 2, 3].sum() == 0  # without normalising there is nothing wrong with it
    assert rollout(maps, add_identity=True, normalize=True).isfinite().all()
    with pytest.raises(MapError):
        normalized(torch.zeros(2, 2))


def test_bad_maps():
    with pytest.raises(MapError, match=r"found \[2, 3, 4\]"):
        rollout(torch.ones(2, 3, 4))
    with pytest.raises(MapError, match=r"found \[3, 3\]"):
        attention_flow(torch.ones(3, 3))
    with pytest.raises(NonFiniteError, match="layer 1"):
        rollout(torch.stack([torch.ones(3, 3), torch.full((3, 3), float("nan"))]))
    with pytest.raises(MapError, match="smallest number of these maps is -1"):
        attention_flow(-torch.ones(2, 3, 3))


def test_flow_without_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(MissingExtraError, match=r"tl_norms\[metrics\]"):
        attention_flow(torch.ones(2, 3, 3))

"""How much is worked on at a time, by device: the one place where sizes of chunks are decided.

A processor is fast while what it works on stays in its caches, and starts small operations at little cost. A graphics
card is fast with few large operations, and each answer that the program waits for stops it: there, pieces grow with
the free memory, and loops over heads, planes or keys become batched products.
"""

from dataclasses import dataclass

import torch

_MiB = 1 << 20


@dataclass(frozen=True)
class Pieces:
    """Sizes of what is made at a time, in bytes where nothing else is said.

    Attributes:
        head_vectors: head vectors, before their triangles are made
        kept: head vectors of all keys, up to which they are made once for a layer
        copied: attention weights copied, with their diagonals emptied or beside those of other layers
        held: activations of blocks that a recorder holds until they are taken at once
        tile: attention weights transposed for a batched product
        pair_vectors: pair vectors, unless `max_memory` says less
        pairs: the fewest and the most pairs in such a chunk: fewer make products slower, more do not help
        formed: numbers in the vectors of all pairs of a head mixture, up to which all are formed at once
        neurons: neurons of pair vectors that are multiplied with directions
        rows: token vectors carried together (a number of them): fewer make products slower, more do not help
        nodes: numbers at all nodes of a quadrature
        looked_up: numbers looked up in a table
        planes: numbers of [text, query, key] planes, of which H^2 / 2 beat a batched product of H x H matrices where
            keys are many; 0 where they never do
    """

    head_vectors: int
    kept: int
    copied: int
    held: int
    tile: int
    pair_vectors: int
    pairs: tuple[int, int]
    formed: int
    neurons: int
    rows: int
    nodes: int
    looked_up: int
    planes: int


def pieces(device: torch.device) -> Pieces:
    """The sizes for tensors on a device: constants of a processor, parts of the free memory of a card."""
    if not is_card(device):
        # head vectors and pair vectors stay in a processor's third cache
        return Pieces(
            head_vectors=8 * _MiB,
            kept=48 * _MiB,
            copied=2 * _MiB,
            held=8 * _MiB,
            tile=8 * _MiB,
            pair_vectors=24 * _MiB,
            pairs=(512, 4096),
            formed=3 << 18,
            neurons=256 * _MiB,
            rows=1024,
            nodes=1 << 20,
            looked_up=1 << 15,
            planes=1 << 16,
        )
    part = max(64 * _MiB, min(free_memory(device) // 8, 4096 * _MiB))
    return Pieces(
        head_vectors=part,
        kept=part,
        copied=part,
        held=min(part, 256 * _MiB),
        tile=part,
        pair_vectors=part,
        pairs=(4096, 1 << 20),
        formed=1 << 24,
        neurons=part,
        rows=16384,
        nodes=part // 16,
        looked_up=1 << 62,
        planes=0,
    )


def is_card(device: torch.device) -> bool:
    """Whether large operations, and few of them, are what is fast here."""
    return device.type not in ("cpu", "meta")


def short_products(device: torch.device) -> bool:
    """Whether float32 products are rounded to TF32, 11 bits as of float16: the user's switch, never ours."""
    if device.type != "cuda":
        return False
    switch = torch.backends.cuda.matmul
    return switch.fp32_precision == "tf32" if hasattr(switch, "fp32_precision") else bool(switch.allow_tf32)


def free_memory(device: torch.device) -> int:
    """Half of the memory that is free now, in bytes."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # the allocator's, free to us
        return (torch.cuda.mem_get_info(device)[0] + unused) // 2
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024 // 2
    except (OSError, StopIteration):
        return 1 << 30

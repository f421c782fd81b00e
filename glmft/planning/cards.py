"""Accelerators as their makers describe them, and what of that a run gets."""

import re
from dataclasses import dataclass

from glmft.errors import ConfigError, nearest

GIB, MIB = 2**30, 2**20
TAKEN = GIB  # by the driver, the libraries' own memory, and what the allocator cannot put together
SHARE = 0.4  # of a maker's FLOP rate that large products and attention reach together


@dataclass(frozen=True)
class Card:
    """
    Args:
        memory: GiB.
        rate: TFLOP/s of dense products in bf16 or fp16, added up in fp32; None: not known.
        plain_rate: the same in fp32.
        bandwidth: GB/s of its memory.
        link: GB/s that it sends to other cards of its host; across PCI Express where it has nothing better.
        host_link: GB/s to the memory of its host.
        has_bf16: whether it computes in bf16.
    """

    name: str
    memory: float
    rate: float | None = None
    plain_rate: float | None = None
    bandwidth: float = 1000
    link: float = 12
    host_link: float = 12
    has_bf16: bool = True

    @property
    def room(self) -> int:
        """Bytes for a run's tensors."""
        return int(self.memory * GIB) - TAKEN


CARDS = {
    card.name: card
    for card in (
        Card("t4", 15, 65, 8.1, 320, has_bf16=False),
        Card("v100", 32, 125, 15.7, 900, 130, has_bf16=False),
        Card("v100-16g", 16, 125, 15.7, 900, 130, has_bf16=False),
        Card("rtx2080ti", 11, 54, 13.4, 616, has_bf16=False),
        Card("rtx3060", 12, 25, 12.7, 360),
        Card("rtx3090", 24, 71, 35.6, 936, 24, 24),
        Card("rtx4090", 24, 165, 82.6, 1008, 24, 24),
        Card("rtx5090", 32, 210, 105, 1792, 48, 48),
        Card("a10", 22.5, 125, 31.2, 600, 24, 24),
        Card("l4", 22.5, 121, 30.3, 300, 24, 24),
        Card("a40", 45, 150, 37.4, 696, 24, 24),
        Card("a6000", 48, 155, 38.7, 768, 24, 24),
        Card("l40s", 45, 362, 91.6, 864, 24, 24),
        Card("a100-40g", 39.5, 312, 19.5, 1555, 250, 24),
        Card("a100-80g", 79.2, 312, 19.5, 2039, 250, 24),
        Card("h100", 79.6, 989, 67, 3350, 400, 48),
        Card("h200", 139.8, 989, 67, 4800, 400, 48),
    )
}
ANY = Card("any GPU", 0, 250, 50)  # where none is named
CPU = Card("a CPU", 0, 0.1, 0.1, 20, 1)  # a core or two of one
ALSO = {"a100": "a100-80g", "v100-32g": "v100", "3090": "rtx3090", "4090": "rtx4090", "h100-80g": "h100"}
MOST = 4096  # GiB


def find_card(given: str) -> Card:
    """A card by its name, or by its memory in GiB. Raises ConfigError."""
    name = given.strip().lower().replace("_", "-").replace(" ", "-")
    number = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,6})?)(?:-?(?:gib|gb|g))?", name)
    if name in CARDS or name in ALSO:
        return CARDS[ALSO.get(name, name)]
    if not number:
        near = nearest(name, (*CARDS, *ALSO))
        raise ConfigError(f"--gpu {given}: is neither a number of GiB nor one of {', '.join(CARDS)}{near}")
    if not 1 < float(number[1]) <= MOST:
        raise ConfigError(f"--gpu {given}: must be more than 1 and at most {MOST} GiB")
    return Card(f"{float(number[1]):g} GiB", float(number[1]))

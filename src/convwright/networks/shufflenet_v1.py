"""ShuffleNet v1 (Zhang et al., arXiv 1707.01083, table 1)."""

from __future__ import annotations

from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.light_blocks import shuffle_unit

_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Of stage 2, by the number of groups; each stage has twice the channels of the one before."""

_BLOCKS = (4, 8, 4)


def shufflenet_v1(
    groups: int = 3, *, width: float = 1.0, classes: int = 1000, size: int = 224, seed: int | None = 0
) -> Graph:
    """ShuffleNet v1 of 1, 2, 3, 4 or 8 groups.

    - `width`: the paper's s, what the numbers of channels are multiplied with; they are rounded to multiples of
      `groups`, which changes nothing at 1.
    - `size`: height and width of the input.
    """
    name = f"shufflenet_v1_g{groups}"
    if groups not in _CHANNELS:
        raise ConvwrightError(f"shufflenet_v1: groups must be one of {', '.join(map(str, _CHANNELS))}, got {groups}")
    if not width > 0:
        raise ConvwrightError(f"network {name!r}: width must be above 0, got {width}")
    net = Assembly(name, (3, size, size), seed=seed)
    x = net.conv("conv1", net.input, _multiple(24 * width, groups), 3, stride=2, padding=1)
    x = net.max_pool(net.relu(net.batch_norm("bn1", x)), 3, 2, padding=1)
    for stage, blocks in enumerate(_BLOCKS):
        channels = _multiple((_CHANNELS[groups] << stage) * width, groups)
        for block in range(blocks):
            with net.scope(f"stage{stage + 2}.{block}"):
                x = shuffle_unit(
                    net,
                    x,
                    channels,
                    groups=groups,
                    narrow=_multiple(channels / 4, groups),
                    stride=1 if block else 2,
                    # The stem's channels are few: section 3.2 keeps the first layer that reads them whole.
                    first_groups=None if stage or block else 1,
                )
    x = net.flatten(net.global_average_pool(x))
    return net.finish(net.linear("fc", x, classes))


def _multiple(channels: float, groups: int) -> int:
    return max(1, round(channels / groups)) * groups

"""The least time that a machine's measured ceilings allow each layer, and what part of it is reached.

A layer takes at least as long as its FLOPs at the ceiling of its data type, and as its bytes at the bandwidth of where
they lie; the larger of the two binds (S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009). Weights lie
in the smallest cache that holds those of the whole network, or in memory; a layer's activations in the smallest that
holds them. FLOPs are those of direct summation, so that Winograd's algorithm can exceed the bound that arithmetic sets;
elementwise operations are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from convwright.runtime.ceilings import measured as measured_ceilings
from convwright.runtime.machine import Caches, caches, cores

if TYPE_CHECKING:
    from rich.table import Table

    from convwright.cost.report import Cost, Layer
    from convwright.model.report import Report
    from convwright.runtime.ceilings import Ceilings

_INTEGER = ("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul")


@dataclass(frozen=True, slots=True)
class Bound:
    """What bounds one layer. Times are in seconds.

    - `flops`, `bytes_weights`, `bytes_activations`: activations are those read and written.
    - `arithmetic`: least time of the FLOPs; `memory_weights`, `memory_activations`: of the bytes, from `weights_in` and
      `activations_in`, each "l2", "l3" or "memory"; `memory`: their sum.
    - `seconds`: the larger of the two, and `binds` which one it is: "arithmetic", or the level that most of the bytes'
      time goes to; "" where nothing is done.
    - `measured`: what it took, what is fused into it included; None where it was not measured or is part of another.
    """

    name: str
    op: str
    flops: int
    bytes_weights: int
    bytes_activations: int
    arithmetic: float
    memory_weights: float
    memory_activations: float
    weights_in: str
    activations_in: str
    measured: float | None = None

    @property
    def memory(self) -> float:
        return self.memory_weights + self.memory_activations

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.memory)

    @property
    def binds(self) -> str:
        if not self.seconds:
            return ""
        if self.arithmetic >= self.memory:
            return "arithmetic"
        return self.weights_in if self.memory_weights > self.memory_activations else self.activations_in

    @property
    def share(self) -> float | None:
        """The least time over the measured one."""
        return self.seconds / self.measured if self.measured else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": self.memory, "seconds": self.seconds, "binds": self.binds, "share": self.share}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The bounds of a network's layers, in order; printing it shows a table.

    - `measured`: seconds of a whole inference, None where none was measured.
    """

    title: str
    ceilings: Ceilings
    layers: tuple[Bound, ...]
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """The sum of the layers' least times; where they were measured, of those that have a time of their own."""
        alone = self.measured is None
        return sum(layer.seconds for layer in self.layers if alone or layer.measured is not None)

    @property
    def share(self) -> float | None:
        """That sum over the measured time of an inference."""
        return self.seconds / self.measured if self.measured else None

    def __iter__(self) -> Iterator[Bound]:
        return iter(self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "ceilings": self.ceilings.to_dict(),
            "seconds": self.seconds,
            "measured": self.measured,
            "share": self.share,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __rich__(self) -> Table:
        return _table(self)

    def __str__(self) -> str:
        from convwright.model.report import render

        return render(_table(self)).rstrip("\n")


def roofline(
    cost: Cost, profile: Report | None = None, *, ceilings: Ceilings | None = None, sizes: Caches | None = None
) -> Roofline:
    """The bound of every layer of a network on this machine.

    - `cost`: what `convwright.cost` returned.
    - `profile`: what `Model.profile` returned, for the share of the bound that each layer achieves. A layer that was
      folded or fused into another has no time of its own: it is part of the other's.
    - `ceilings`, `sizes`: of the machine and of its caches. Unless given, those of this one: stored ceilings, or newly
      measured ones, which takes a second or two; of as many threads as the profile has, or as this machine has cores.

    >>> import convwright as cw
    >>> from convwright.runtime.ceilings import Ceilings
    >>> ceilings = Ceilings(1, {"f32": 1e11, "f64": 5e10}, {"l2": 1e11, "memory": 2e10}, 2e10, 3e10)
    >>> cost = cw.cost(cw.ConvSpec(64, 64, (3, 3), padding=1, bias=False), input_size=(56, 56))
    >>> (layer,) = roofline(cost, ceilings=ceilings)
    >>> layer.binds, f"{1e6 * layer.seconds:.0f} microseconds"
    ('arithmetic', '2312 microseconds')
    """
    if ceilings is None:
        ceilings = measured_ceilings(cores() if profile is None else profile.threads)
    sizes = caches() if sizes is None else sizes
    taken: dict[str, float] = {}
    for step in () if profile is None else profile.steps:
        taken[step.layer] = taken.get(step.layer, 0.0) + step.seconds
    weights_in = _level(cost.total.bytes_weights, ceilings, sizes)
    layers = tuple(_bound(layer, ceilings, sizes, weights_in, taken.get(layer.name)) for layer in cost.layers)
    return Roofline(cost.title, ceilings, layers, None if profile is None else profile.whole_seconds)


def _bound(layer: Layer, ceilings: Ceilings, sizes: Caches, weights_in: str, measured: float | None) -> Bound:
    activations = layer.bytes_read + layer.bytes_activations
    rates = ceilings.operations
    rate = rates.get("int8", rates["f32"]) if layer.op in _INTEGER else rates["f32"]
    level = _level(activations, ceilings, sizes)
    return Bound(
        layer.name, layer.op, layer.flops, layer.bytes_weights, activations, layer.flops / rate,
        layer.bytes_weights / ceilings.read[weights_in], activations / ceilings.read[level],
        weights_in, level, measured,
    )  # fmt: skip


def _level(nbytes: int, ceilings: Ceilings, sizes: Caches) -> str:
    """The smallest level that holds so much. The first is left out: nothing stays there from one layer to the next."""
    for name, size in (("l2", ceilings.threads * sizes.l2), ("l3", sizes.l3)):
        if nbytes <= size and name in ceilings.read:
            return name
    return "memory"


def _table(result: Roofline) -> Table:
    from rich.table import Table

    ceilings, measured = result.ceilings, result.measured is not None
    rates = ", ".join(
        f"{name.upper() if name != 'memory' else name} {rate / 1e9:.0f}" for name, rate in _told(ceilings)
    )
    caption = (
        f"at best {ceilings.operations['f32'] / 1e9:.0f} GFLOP/s of float32; read, in GB/s: {rates} "
        f"({ceilings.threads} thread{'s' * (ceilings.threads > 1)}); µs: the larger of arithmetic and memory"
    )
    if measured:
        caption += "; layers without a time are part of another's, and not of the totals of times"
    whole = "" if result.measured is None else f"{result.measured * 1e6:.0f}"
    share = "" if result.share is None else f"{result.share:.0%}"
    table = Table(title=result.title, caption=caption, show_footer=True)
    table.add_column("layer", footer="total", overflow="ellipsis", no_wrap=True)
    table.add_column("op", no_wrap=True)
    alone = [layer for layer in result if not measured or layer.measured is not None]
    sums = [sum(getattr(layer, name) for layer in alone) for name in ("arithmetic", "memory", "seconds")]
    headings = {
        "MFLOPs": f"{sum(layer.flops for layer in result) / 1e6:.1f}",
        "weights, KB": f"{sum(layer.bytes_weights for layer in result) / 1e3:.0f}",
        "activations, KB": f"{sum(layer.bytes_activations for layer in result) / 1e3:.0f}",
        **{
            name: f"{1e6 * total:.0f}" for name, total in zip(("arithmetic, µs", "memory, µs", "µs"), sums, strict=True)
        },
        "binds": "",
    } | ({"measured, µs": whole, "of bound": share} if measured else {})
    for heading, footer in headings.items():
        table.add_column(heading, footer=footer, justify="left" if heading == "binds" else "right", no_wrap=True)
    for layer in result:
        cells = [
            f"{layer.flops / 1e6:.2f}" if layer.flops else "",
            f"{layer.bytes_weights / 1e3:.1f}" if layer.bytes_weights else "",
            f"{layer.bytes_activations / 1e3:.1f}",
            f"{layer.arithmetic * 1e6:.1f}" if layer.flops else "",
            f"{layer.memory * 1e6:.1f}",
            f"{layer.seconds * 1e6:.1f}",
            {"l2": "L2", "l3": "L3"}.get(layer.binds, layer.binds),
        ]
        if measured:
            cells += ["" if layer.measured is None else f"{layer.measured * 1e6:.1f}",
                      "" if layer.share is None else f"{layer.share:.0%}"]  # fmt: skip
        table.add_row(layer.name, layer.op, *cells)
    return table


def _told(ceilings: Ceilings) -> list[tuple[str, float]]:
    return [(name, rate) for name, rate in ceilings.read.items() if name != "l1"]

"""A convolution as linear algebra: its sparse matrix, and its input rearranged into columns.

One table serves all three: for every tap and output position the element of the input that they meet, or -1 for a zero
of padding. `conv_matrix` writes weights where it points, `im2col` reads there, `col2im` adds there.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.errors import ConvwrightError
from convwright.spec import AxesLike, ConvSpec
from convwright.spec.checks import checked_axes, checked_size, show

Table = NDArray[np.int64]


def conv_matrix(spec: ConvSpec, weight: ArrayLike, input_size: AxesLike) -> Any:
    """The sparse matrix M of a convolution: `M @ x.ravel()` is the output of x, raveled, without bias.

    `M.T` is the matrix of the transposed convolution (arXiv 1603.07285, 4.1), and of a transposed spec this is the
    transpose of the convolution's matrix.

    - `spec`: any `ConvSpec`. Of its bias the matrix knows nothing.
    - `weight`: `spec.weight_shape`.
    - `input_size`: the spatial size of the input, one int an axis, or an int for every axis.

    Returns a `scipy.sparse.csr_array` of `K * prod(out)` rows and `C * prod(in)` columns: float32 for a weight of
    float32, else float64. A weight of zero is an entry as any other; zeros of padding have none.

    Raises `ConvwrightError` for a weight of another shape, a size that does not fit the spec, and without SciPy.

    >>> from convwright.spec import ConvSpec
    >>> conv_matrix(ConvSpec(1, 1, (2,)), [[[1, 10]]], 3).toarray()
    array([[ 1., 10.,  0.],
           [ 0.,  1., 10.]])
    """
    try:
        from scipy import sparse
    except ImportError:
        raise ConvwrightError("conv_matrix needs SciPy: pip install 'convwright[matrix]'") from None

    size = checked_axes("input size", input_size, spec.rank, 1)
    outputs = spec.output_size(size)
    values = _numbers("weight", weight)
    if values.shape != spec.weight_shape:
        raise ConvwrightError(f"the weight must have shape {spec.weight_shape}, got {values.shape}")
    # The matrix of the convolution, whose transpose is wanted where the spec is transposed. Its rows are then the
    # positions of the transposed convolution's input.
    near, far = (size, outputs) if spec.transposed else (outputs, size)
    rows, columns = (np.prod(s, dtype=np.int64) for s in (near, far))
    checked_size("the number of matrix entries", values.size * int(rows))
    table = _table(spec, near, far, spec.pads(size))

    filters, channels = values.shape[:2]
    every = (filters, channels, *table.shape)
    filter_ = np.arange(filters)[:, None, None, None]
    channel = filter_ // (filters // spec.groups) * channels + np.arange(channels)[None, :, None, None]
    met = np.broadcast_to(table >= 0, every)
    row = np.broadcast_to(filter_ * rows + np.arange(rows), every)[met]
    column = (channel * columns + table)[met]
    entries = np.broadcast_to(values.reshape(filters, channels, -1, 1), every)[met]
    shape = (filters * rows, channels * spec.groups * columns)
    if spec.transposed:
        row, column, shape = column, row, shape[::-1]
    # Where padding repeats an element, several taps meet it: the conversion adds them up.
    kept = entries if entries.dtype == np.float32 else entries.astype(np.float64)
    return sparse.coo_array((kept, (row, column)), shape=shape).tocsr()


def im2col(x: ArrayLike, spec: ConvSpec) -> NDArray[Any]:
    """The input's windows as columns: what a convolution multiplies by `weight.reshape(K, -1)`, group by group.

    - `x`: N x C x spatial, or C x spatial.
    - `spec`: any `ConvSpec` that is not transposed; K has no part in it.

    Returns N x `C * prod(kernel)` x `prod(out)`, without N where `x` has none, of x's type: rows by channel, then tap,
    columns by position, all row-major (the order of `torch.nn.functional.unfold`). With `flip` the taps of a channel
    come in reverse, so that the product is the convolution still.

    Raises `ConvwrightError` for a shape that does not fit the spec.

    >>> from convwright.spec import ConvSpec
    >>> im2col([[1, 2, 3]], ConvSpec(1, 1, (2,)))
    array([[1, 2],
           [2, 3]])
    """
    _check_not_transposed("im2col", spec)
    x = _numbers("input", x)
    outputs = spec.output_shape(x.shape)[-spec.rank :]
    size = x.shape[-spec.rank :]
    table = _table(spec, outputs, size, spec.pads(size))
    lead = x.shape[: -spec.rank]
    columns = np.take(x.reshape(*lead, int(np.prod(size))), np.maximum(table, 0), axis=-1)
    columns[..., table < 0] = 0
    return columns.reshape(*lead[:-1], lead[-1] * table.shape[0], table.shape[1])


def col2im(columns: ArrayLike, spec: ConvSpec, input_size: AxesLike) -> NDArray[Any]:
    """The adjoint of `im2col`: every column is added back where it was read.

    - `columns`: N x `C * prod(kernel)` x `prod(out)`, or without N.
    - `spec`: as of `im2col`.
    - `input_size`: the spatial size of the result, one int an axis, or an int for every axis.

    Returns N x C x input size, or C x input size, of the columns' type (with padding of zeros,
    `torch.nn.functional.fold`).

    Raises `ConvwrightError` for a shape that does not fit the spec.

    >>> from convwright.spec import ConvSpec
    >>> col2im([[1, 2], [2, 3]], ConvSpec(1, 1, (2,)), 3)
    array([[1, 4, 3]])
    """
    _check_not_transposed("col2im", spec)
    columns = _numbers("columns", columns)
    size = checked_axes("input size", input_size, spec.rank, 1)
    table = _table(spec, spec.output_size(size), size, spec.pads(size))
    shape = (spec.in_channels * table.shape[0], table.shape[1])
    if columns.ndim not in (2, 3) or columns.shape[-2:] != shape:
        rows, positions = shape
        raise ConvwrightError(
            f"the columns must be (N, {rows}, {positions}) or ({rows}, {positions}) for input size {show(size)},"
            f" got {columns.shape}"
        )
    lead = (*columns.shape[:-2], spec.in_channels)
    split = columns.reshape(*lead, *table.shape)
    total = np.zeros((*lead, int(np.prod(size))), columns.dtype)
    for tap, places in enumerate(table):
        met = places >= 0
        np.add.at(total, (..., places[met]), split[..., tap, met])  # type: ignore[arg-type]
    return total.reshape(*lead, *size)


def _table(spec: ConvSpec, near: tuple[int, ...], far: tuple[int, ...], pads: tuple[tuple[int, int], ...]) -> Table:
    """Taps x near positions: the far element that they meet, row-major, or -1.

    Near are the positions where windows begin, the output of a convolution and the input of a transposed one; far is
    what the taps reach from there. Taps are in the order of the weight.
    """
    rank = spec.rank
    table, inside = np.zeros((1,) * (2 * rank), np.int64), np.ones((1,) * (2 * rank), bool)
    for axis, (count, length, (low, _)) in enumerate(zip(near, far, pads, strict=True)):
        taps = np.arange(spec.kernel[axis])[:: -1 if spec.flip else 1]
        place = taps[:, None] * spec.dilation[axis] + np.arange(count) * spec.stride[axis] - low
        place = _brought_inside(place, length, spec.padding_mode)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = place.shape
        place = place.reshape(shape)
        table = table * length + place
        inside = inside & (place >= 0) & (place < length)
    return np.where(inside, table, -1).reshape(int(np.prod(spec.kernel)), -1)


def _brought_inside(place: Table, length: int, padding_mode: str) -> Table:
    """Where the value of a place lies that may be outside 0..length - 1; with zeros, it stays outside."""
    if padding_mode == "replicate":
        return np.clip(place, 0, length - 1)
    if padding_mode == "circular":
        return place % length
    if padding_mode == "reflect":
        return length - 1 - np.abs(length - 1 - np.abs(place))
    return place


def _numbers(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ConvwrightError(f"the {name} must hold real numbers, got {array.dtype}")
    return array


def _check_not_transposed(what: str, spec: ConvSpec) -> None:
    if spec.transposed:
        raise ConvwrightError(f"{what} is of a convolution, got a transposed one: give the spec of its adjoint")

"""A convolution's matrix, im2col and col2im agree with PyTorch and with each other."""

import math
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import convwright as cw
from convwright import reference
from convwright.errors import ConvwrightError
from convwright.spec import PADDING_MODES, ConvSpec
from tests.sweeps import on_host
from tests.torch_convolutions import arrays, random_case, torch_conv

Array = NDArray[Any]
SIZES = (7, 6, 5)


def applied(matrix: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """The matrix times every image of a batch."""
    return np.stack([matrix @ image.ravel() for image in x]).reshape(shape)


def check_matrix(seeds: range) -> None:
    """The matrix of what fits does what PyTorch does; where PyTorch refuses, so do we."""
    refused = 0
    for seed in seeds:
        spec, size, _ = random_case(seed)
        x, weight, _ = arrays(spec, size, 2, seed)
        try:
            expected = torch_conv(x, weight, None, spec)
        except (RuntimeError, ValueError):
            with pytest.raises(ConvwrightError):
                cw.conv_matrix(spec, weight, size)
            refused += 1
            continue
        matrix = cw.conv_matrix(spec, weight, size)
        assert matrix.shape == (expected[0].size, x[0].size)
        got = applied(matrix, x, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, err_msg=f"seed {seed}: {spec} on {size}")
    assert 10 < refused < 60


@on_host(400)
def test_the_matrix_of_random_specs_does_what_torch_does(seeds: range) -> None:
    check_matrix(seeds)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("padding", ["same", "same_lower", "valid"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_paddings_by_name(rank: int, padding: str, mode: str) -> None:
    spec = ConvSpec(2, 3, (4, 3, 2)[:rank], stride=(2, 1, 3)[:rank], padding=padding, padding_mode=mode, bias=False)
    x, weight, _ = arrays(spec, SIZES[:rank])
    expected = torch_conv(x, weight, None, spec)
    matrix = cw.conv_matrix(spec, weight, SIZES[:rank])
    np.testing.assert_allclose(applied(matrix, x, expected.shape), expected, rtol=0, atol=1e-12)
    product = weight.reshape(3, -1) @ cw.im2col(x, spec)
    np.testing.assert_allclose(product.reshape(expected.shape), expected, rtol=0, atol=1e-12)


def test_the_matrix_written_out() -> None:
    """A 3 x 3 kernel on 4 x 4 (arXiv 1603.07285, 4.1): each row holds the nine weights, three and three."""
    weight = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    spec = ConvSpec(1, 1, (3, 3), bias=False)
    matrix = cw.conv_matrix(spec, weight, 4)
    row = [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9]
    expected = [np.pad(row, (start, 5 - start)) for start in (0, 1, 4, 5)]
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert (matrix.format, matrix.nnz, matrix.dtype) == ("csr", 36, np.float64)


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 5)])
def test_the_transposed_matrix_brings_2_by_2_up(stride: int, size: int) -> None:
    """Multiplying by C^T is the transposed convolution: 2 x 2 by 3 x 3 gives 4 x 4, with a zero inserted 5 x 5."""
    x, weight = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.arange(9.0).reshape(1, 1, 3, 3)
    down = cw.conv_matrix(ConvSpec(1, 1, (3, 3), stride=stride), weight, size)
    up = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=stride).numpy()
    assert up.shape == (1, 1, size, size)
    np.testing.assert_array_equal((down.T @ x.ravel()).reshape(up.shape), up)
    of_transposed = cw.conv_matrix(ConvSpec(1, 1, (3, 3), stride=stride, transposed=True), weight, 2)
    np.testing.assert_array_equal(of_transposed.toarray(), down.T.toarray())
    assert of_transposed.format == "csr"


def test_padding_that_repeats_an_element_adds_its_weights_up() -> None:
    weight = np.array([[[1.0, 10.0, 100.0]]])
    expected = {
        "zeros": [[10, 100], [1, 10]],
        "reflect": [[10, 101], [101, 10]],
        "replicate": [[11, 100], [1, 110]],
        "circular": [[10, 101], [101, 10]],
    }
    for mode, rows in expected.items():
        matrix = cw.conv_matrix(ConvSpec(1, 1, (3,), padding=1, padding_mode=mode), weight, 2)
        np.testing.assert_array_equal(matrix.toarray(), rows, err_msg=mode)


def test_weights_of_zero_are_entries_and_zeros_of_padding_are_not() -> None:
    spec = ConvSpec(1, 1, (3,), padding=1)
    assert cw.conv_matrix(spec, np.zeros((1, 1, 3)), 5).nnz == 13
    assert np.isnan((cw.conv_matrix(spec, np.zeros((1, 1, 3)), 5) @ [1, 1, math.nan, 1, 1])[1:4]).all()


def test_groups_are_blocks_of_the_diagonal() -> None:
    spec = ConvSpec(4, 6, (1,), groups=2)
    weight = np.arange(1.0, 13.0).reshape(6, 2, 1)
    zero = np.zeros((3, 2))
    np.testing.assert_array_equal(
        cw.conv_matrix(spec, weight, 1).toarray(), np.block([[weight[:3, :, 0], zero], [zero, weight[3:, :, 0]]])
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8"])
def test_types(dtype: str) -> None:
    spec = ConvSpec(1, 1, (3,), padding=1)
    weight, x = np.array([[[1, 2, 3]]], dtype), np.array([[[4, 5, 6, 7]]], dtype)
    assert cw.conv_matrix(spec, weight, 4).dtype == ("float32" if dtype == "float32" else "float64")
    columns = cw.im2col(x, spec)
    assert columns.dtype == cw.col2im(columns, spec, 4).dtype == dtype
    assert columns.tolist() == [[[0, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 0]]]
    assert cw.col2im(columns, spec, 4).tolist() == [[[8, 15, 18, 14]]]


def unfold_case(seed: int) -> tuple[ConvSpec, tuple[int, ...], dict[str, Any]]:
    pick = random.Random(seed)
    options = {
        name: [pick.choice(choices) for _ in range(2)]
        for name, choices in {"stride": [1, 2, 4], "padding": [0, 1, 2], "dilation": [1, 1, 2]}.items()
    }
    kernel = [pick.choice([1, 2, 3, 4]) for _ in range(2)]
    spec = ConvSpec(pick.choice([1, 2, 5]), 1, kernel, **options, bias=False)  # type: ignore[arg-type]
    return spec, (pick.randint(2, 8), pick.randint(2, 8)), {"kernel_size": kernel, **options}


@pytest.mark.parametrize("seed", range(60))
def test_torch_unfolds_and_folds_alike(seed: int) -> None:
    spec, size, options = unfold_case(seed)
    x = np.random.default_rng(seed).standard_normal((2, spec.in_channels, *size))
    try:
        expected = F.unfold(torch.from_numpy(x), **options)
    except RuntimeError:
        with pytest.raises(ConvwrightError):
            cw.im2col(x, spec)
        with pytest.raises(ConvwrightError):
            cw.col2im(np.zeros((1, spec.in_channels, 1)), spec, size)
        return
    columns = cw.im2col(x, spec)
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(cw.im2col(x[0], spec), columns[0])
    back = cw.col2im(columns, spec, size)
    np.testing.assert_allclose(back, F.fold(expected, size, **options), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(cw.col2im(columns[0], spec, size), back[0])


def check_columns(seeds: range) -> None:
    """Of any rank, with every padding mode, group by group; and <im2col(x), y> = <x, col2im(y)>."""
    compared = 0
    for seed in seeds:
        spec, size, batch = random_case(seed)
        if spec.transposed:
            continue
        x, weight, _ = arrays(spec, size, batch, seed)
        try:
            expected = torch_conv(x, weight, None, spec)
        except (RuntimeError, ValueError):
            with pytest.raises(ConvwrightError):
                cw.im2col(x, spec)
            continue
        columns = cw.im2col(x, spec)
        split = columns.reshape(*x.shape[: -spec.rank - 1], spec.groups, -1, columns.shape[-1])
        product = weight.reshape(spec.groups, spec.out_channels // spec.groups, -1) @ split
        np.testing.assert_allclose(
            product.reshape(expected.shape), expected, rtol=0, atol=1e-12, err_msg=f"seed {seed}: {spec}"
        )
        y = np.random.default_rng(seed).standard_normal(columns.shape)
        back = cw.col2im(y, spec, size)
        assert back.shape == x.shape
        assert np.vdot(columns, y) == pytest.approx(np.vdot(x, back), rel=1e-11, abs=1e-11)
        compared += 1
    assert compared > 20


@on_host(300, full=8000)
def test_weights_times_columns_are_the_convolution_and_col2im_its_adjoint(seeds: range) -> None:
    check_columns(seeds)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    spec = ConvSpec(2, 3, (3, 2), padding=1)
    columns = cw.im2col(np.zeros((0, 2, 4, 5), np.float32), spec)
    assert columns.shape == (0, 12, 24)
    assert cw.col2im(columns, spec, (4, 5)).shape == (0, 2, 4, 5)


def test_nan_stays_in_the_windows_that_hold_it() -> None:
    x = np.array([[1.0, math.nan, 3.0, 4.0]])
    np.testing.assert_array_equal(
        cw.im2col(x, ConvSpec(1, 1, (2,), padding=1)), [[0, 1, math.nan, 3, 4], [1, math.nan, 3, 4, 0]]
    )


SPEC = ConvSpec(2, 3, (3, 3))


@pytest.mark.parametrize(
    ("size", "weight", "message"),
    [
        ((5,), np.ones((3, 2, 3, 3)), "input size (5,) must have 2 entries, one a spatial axis"),
        ((5, 0), np.ones((3, 2, 3, 3)), "input size must be at least 1, got 0"),
        ((2, 5), np.ones((3, 2, 3, 3)), "spans (3, 3), more than the padded input (2, 5)"),
        ((5, 5), np.ones((2, 3, 3, 3)), "the weight must have shape (3, 2, 3, 3), got (2, 3, 3, 3)"),
        ((5, 5), np.ones((3, 2, 3, 3), complex), "the weight must hold real numbers, got complex128"),
        ((2**31, 2**31), np.ones((3, 2, 3, 3)), "the number of output elements does not fit in 64 bits"),
        ((2**30, 2**30), np.ones((3, 2, 3, 3)), "the number of matrix entries does not fit in 64 bits"),
    ],
)
def test_matrices_that_do_not_exist_are_refused(size: tuple[int, ...], weight: Array, message: str) -> None:
    with pytest.raises(ConvwrightError) as refused:
        cw.conv_matrix(SPEC, weight, size)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (np.ones((18, 8)), "the columns must be (N, 18, 9) or (18, 9) for input size (5, 5), got (18, 8)"),
        (np.ones((1, 9, 9)), "the columns must be (N, 18, 9) or (18, 9) for input size (5, 5), got (1, 9, 9)"),
        (np.ones((1, 1, 18, 9)), "the columns must be (N, 18, 9) or (18, 9) for input size (5, 5), got (1, 1, 18, 9)"),
        (np.ones((18, 9), bool), "the columns must hold real numbers, got bool"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: Array, message: str) -> None:
    with pytest.raises(ConvwrightError) as refused:
        cw.col2im(columns, SPEC, 5)
    assert str(refused.value) == message


def test_inputs_that_do_not_fit_are_refused() -> None:
    for shape in [(3, 5, 5), (2, 2, 5), (1, 1, 2, 5, 5)]:
        with pytest.raises(ConvwrightError, match=r"\(N, 2, H, W\) or \(2, H, W\)|padded input"):
            cw.im2col(np.ones(shape), SPEC)
    transposed = ConvSpec(2, 3, (3, 3), transposed=True)
    with pytest.raises(ConvwrightError, match="im2col is of a convolution, got a transposed one"):
        cw.im2col(np.ones((2, 5, 5)), transposed)
    with pytest.raises(ConvwrightError, match="col2im is of a convolution, got a transposed one"):
        cw.col2im(np.ones((18, 9)), transposed, 5)


def test_without_scipy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConvwrightError, match=r"pip install 'convwright\[matrix\]'"):
        cw.conv_matrix(SPEC, np.ones((3, 2, 3, 3)), 5)
    assert cw.im2col(np.ones((2, 5, 5)), SPEC).shape == (18, 9)


@st.composite
def adjoint_cases(draw: st.DrawFn) -> tuple[ConvSpec, tuple[int, ...]]:
    """A convolution padded with zeros, of any rank, and an input that it fits."""
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    spec = ConvSpec(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        each(1, 4),
        stride=each(1, 5),
        dilation=each(1, 3),
        padding=list(zip(each(0, 3), each(0, 3), strict=True)),
        groups=groups,
        bias=False,
        flip=draw(st.booleans()),
    )
    least = (max(1, span - low - high) for span, (low, high) in zip(spec.effective_kernel, spec.pads(), strict=True))
    return spec, tuple(size + draw(st.integers(0, 4)) for size in least)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(adjoint_cases(), st.integers(0, 2**32 - 1))
def test_convolution_and_transposed_convolution_are_adjoint(case: tuple[ConvSpec, tuple[int, ...]], seed: int) -> None:
    """<C x, y> = <x, C^T y>: in the reference, in the matrix, and the transposed spec's matrix is the transpose.

    Output padding brings back what the stride cut off at the high end, where no tap reached.
    """
    down, size = case
    x, weight, _ = arrays(down, size, None, seed)
    outputs = down.output_size(size)
    sizes = zip(size, down.pads(), down.effective_kernel, down.stride, strict=True)
    cut = [(length + low + high - span) % stride for length, (low, high), span, stride in sizes]
    up = ConvSpec(
        down.out_channels,
        down.in_channels,
        down.kernel,
        stride=down.stride,
        dilation=down.dilation,
        padding=down.padding,
        groups=down.groups,
        transposed=True,
        output_padding=cut,
        bias=False,
        flip=down.flip,
    )
    y = np.random.default_rng(seed).standard_normal((down.out_channels, *outputs))
    forth, back = reference.conv(x, weight, None, down), reference.conv(y, weight, None, up)
    assert back.shape == x.shape
    assert np.vdot(forth, y) == pytest.approx(np.vdot(x, back), rel=1e-9, abs=1e-9)
    matrix, adjoint = cw.conv_matrix(down, weight, size), cw.conv_matrix(up, weight, outputs)
    np.testing.assert_array_equal(adjoint.toarray(), matrix.toarray().T)
    np.testing.assert_allclose(matrix @ x.ravel(), forth.ravel(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(matrix.T @ y.ravel(), back.ravel(), rtol=0, atol=1e-10)

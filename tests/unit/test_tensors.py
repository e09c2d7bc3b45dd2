from __future__ import annotations

import numpy as np
import pytest

from modelless.errors import InvalidArgumentError
from modelless.tensors import ITEM_BYTES, NUMPY_DTYPES, Tensor, TensorSpec, rows


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_numpy_there_and_back(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(NUMPY_DTYPES[datatype])
    tensor = Tensor.from_numpy("x", array).check()
    assert (tensor.datatype, tensor.shape, len(tensor.data)) == (datatype, (2, 3), 6 * ITEM_BYTES[datatype])
    np.testing.assert_array_equal(tensor.to_numpy(), array)


def test_big_endian_and_strided_arrays_are_normalized() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    tensor = Tensor.from_numpy("x", array).check()
    assert tensor.datatype == "FP32"
    np.testing.assert_array_equal(tensor.to_numpy(), array)


def test_the_array_is_a_read_only_view() -> None:
    data = bytearray(8)
    tensor = Tensor("x", "FP32", (2,), memoryview(data).toreadonly())
    array = tensor.to_numpy()
    data[0:4] = np.float32(3).tobytes()
    assert array[0] == 3
    assert not array.flags.writeable


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.array([1j]), np.array([1], "M8[s]")])
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidArgumentError, match=r"tensor 'x': dtype .* is not one of bool, uint8"):
        Tensor.from_numpy("x", array)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "reason"),
    [
        ("OBJECT", (1,), b"", "'OBJECT' is not one of BOOL"),
        ("FP32", (), b"\0\0\0\0", "1 to 16 dimensions"),
        ("FP32", (1,) * 17, b"\0\0\0\0", "1 to 16 dimensions"),
        ("FP32", (1, 0), b"", "at least 1"),
        ("FP32", (-1, -1), b"\0\0\0\0", "at least 1"),
        ("FP32", (2**62, 4), b"", "takes 73786976294838206464 bytes, but data has 0"),
        ("FP32", (2,), b"\0\0\0\0", "FP32 of shape \\[2\\] takes 8 bytes, but data has 4"),
    ],
)
def test_check_says_what_disagrees(datatype: str, shape: tuple[int, ...], data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        Tensor("x", datatype, shape, data).check()


def test_rows() -> None:
    one, two = Tensor("a", "INT8", (1, 2), b"\0\0"), Tensor("b", "INT8", (2,), b"\0\0")
    assert rows([one, one]) == 1
    with pytest.raises(InvalidArgumentError, match="'a' has 1 rows, 'b' has 2"):
        rows([one, two])


def test_bytes_of_a_row() -> None:
    assert TensorSpec("x", "FP32", (-1, 3, 4)).row_bytes == 48
    assert TensorSpec("x", "INT64", (-1,)).row_bytes == 8
    assert TensorSpec("x", "FP32", (-1, -1)).row_bytes is None

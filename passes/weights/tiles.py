"""Products and Cholesky factors whose bits do not depend on the number of threads.

OpenBLAS splits large products and factorisations among its threads; with another number of threads, the last bits of a
Cholesky factor differ. Here both are put together from tiles of 64 x 64, which OpenBLAS computes on the calling thread.
Several threads may therefore call these functions at once without getting in each other's way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TILE = 64


def product(left: Array, right: Array) -> Array:
    """Multiply two matrices [m,k] and [k,n] of the same floating type."""
    (rows, inner), columns = left.shape, right.shape[1]
    if not rows * inner * columns:
        return np.zeros((rows, columns), left.dtype)
    left, right = _padded(left), _padded(right)
    lefts = left.reshape(len(left) // TILE, TILE, -1, TILE).transpose(2, 0, 1, 3)[:, :, None]
    rights = right.reshape(len(right) // TILE, TILE, -1, TILE).transpose(0, 2, 1, 3)[:, None]
    total = np.zeros((lefts.shape[1], rights.shape[2], TILE, TILE), left.dtype)
    for left_tiles, right_tiles in zip(lefts, rights, strict=True):
        total += np.matmul(left_tiles, right_tiles)
    return total.swapaxes(1, 2).reshape(len(left), right.shape[1])[:rows, :columns]


def lower_factor(matrix: Array) -> Array:
    """Return the lower triangular L [n,n] with L L^T = ``matrix``, by Cholesky's algorithm in blocks of columns. Raises
    numpy.linalg.LinAlgError for a matrix that is not positive definite."""
    factor = np.zeros_like(matrix)
    for start in range(0, len(matrix), TILE):
        end = start + TILE
        panel = matrix[start:, start:end] - product(factor[start:, :start], factor[start:end, :start].T)
        diagonal = np.linalg.cholesky(panel[:TILE])
        factor[start:end, start:end] = diagonal
        factor[end:, start:end] = product(panel[TILE:], np.linalg.inv(diagonal).T)
    return factor


def _padded(matrix: Array) -> Array:
    """Fill the matrix up to whole tiles with zeros."""
    missing = [(0, -size % TILE) for size in matrix.shape]
    return np.pad(matrix, missing) if any(after for _, after in missing) else matrix

"""Products and factors of matrices whose bits do not depend on the number of threads.

A BLAS splits large products and factorisations among its threads, and with another number of these the last bits of a
Cholesky factor are others. Here both are put together of tiles of 64 x 64, which OpenBLAS computes on the thread that
asks; so several of these may ask at once, and none waits for the other's workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TILE = 64


def product(left: Array, right: Array) -> Array:
    """The product of two matrices [m,k] and [k,n] of one floating type."""
    (rows, inner), columns = left.shape, right.shape[1]
    if not rows * inner * columns:
        return np.zeros((rows, columns), left.dtype)
    left, right = _padded(left), _padded(right)
    lefts = left.reshape(len(left) // TILE, TILE, -1, TILE).transpose(2, 0, 1, 3)[:, :, None]
    rights = right.reshape(len(right) // TILE, TILE, -1, TILE).transpose(0, 2, 1, 3)[:, None]
    total = np.zeros((lefts.shape[1], rights.shape[2], TILE, TILE), left.dtype)
    for one, other in zip(lefts, rights, strict=True):
        total += np.matmul(one, other)
    return total.swapaxes(1, 2).reshape(len(left), right.shape[1])[:rows, :columns]


def lower_factor(matrix: Array) -> Array:
    """The lower triangular L [n,n] with L L^T = ``matrix``: Cholesky's, block by block. Raises numpy.linalg.LinAlgError
    for a matrix that is not positive definite."""
    factor = np.zeros_like(matrix)
    for start in range(0, len(matrix), TILE):
        end = start + TILE
        panel = matrix[start:, start:end] - product(factor[start:, :start], factor[start:end, :start].T)
        diagonal = np.linalg.cholesky(panel[:TILE])
        factor[start:end, start:end] = diagonal
        factor[end:, start:end] = product(panel[TILE:], np.linalg.inv(diagonal).T)
    return factor


def _padded(matrix: Array) -> Array:
    """The matrix with zeros up to whole tiles."""
    missing = [-size % TILE for size in matrix.shape]
    return np.pad(matrix, [(0, one) for one in missing]) if any(missing) else matrix

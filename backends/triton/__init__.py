"""Kernels for a GPU, in Triton: what runs in place of torch's operations where `ops.kernels` says.

Functions of tensors without derivatives of their own; each module says what it computes on top.
Nothing else of nlc needs Triton. With TRITON_INTERPRET=1 they run on the CPU, slowly, as a test.
"""

from .chain import chained, chained_back, fits
from .reads import end, read, read_back
from .tables import products, products_back
from .writes import affine, affine_back

__all__ = [
    "affine", "affine_back", "chained", "chained_back", "end", "fits", "products",
    "products_back", "read", "read_back",
]  # fmt: skip

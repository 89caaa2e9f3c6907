"""The optional kernels of `pipezoo-kernels`, and steps recorded as a list of them."""

from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.recording import RecordedModule

__all__ = ["NativeKernels", "RecordedModule", "bits"]

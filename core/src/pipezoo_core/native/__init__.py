"""The optional kernels of `pipezoo-kernels`, and steps recorded as a list of them."""

from pipezoo_core.native.kernels import GATE, GROUP, Form, NativeKernels, bits, packed_size
from pipezoo_core.native.recording import RecordedModule

__all__ = ["GATE", "GROUP", "Form", "NativeKernels", "RecordedModule", "bits", "packed_size"]

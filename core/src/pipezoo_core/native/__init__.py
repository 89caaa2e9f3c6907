"""The optional kernels of `pipezoo-kernels`, steps recorded as a list of them, and the memory they write to."""

from pipezoo_core.native.kernels import GATE, GROUP, PANEL, Form, NativeKernels, bits, packed_size
from pipezoo_core.native.memory_pool import HUGE_PAGE, MemoryPool
from pipezoo_core.native.recording import RecordedModule

__all__ = [
    "GATE",
    "GROUP",
    "HUGE_PAGE",
    "PANEL",
    "Form",
    "MemoryPool",
    "NativeKernels",
    "RecordedModule",
    "bits",
    "packed_size",
]

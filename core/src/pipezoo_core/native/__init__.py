"""The optional kernels of `pipezoo-kernels`, steps recorded as a list of them, and the memory they write to."""

from pipezoo_core.native.activation import Activation
from pipezoo_core.native.attention_kernels import AttentionSizes
from pipezoo_core.native.calls import address_of, bits, check_tensor, mismatch
from pipezoo_core.native.foreign_calls import UnforeseenShapeError
from pipezoo_core.native.kernels import NativeKernels
from pipezoo_core.native.memory_pool import HUGE_PAGE, MemoryPool, aligned, aligned_bytes
from pipezoo_core.native.packing import GROUP, SPAN, Form, Packing, bits_per_number, packed_bytes, packed_size
from pipezoo_core.native.packing_kernels import PackedStore
from pipezoo_core.native.program import Notes, Program
from pipezoo_core.native.recording import Recording
from pipezoo_core.native.variants import GATE, MODULE, PANEL

__all__ = [
    "GATE",
    "GROUP",
    "HUGE_PAGE",
    "MODULE",
    "PANEL",
    "SPAN",
    "Activation",
    "AttentionSizes",
    "Form",
    "MemoryPool",
    "NativeKernels",
    "Notes",
    "PackedStore",
    "Packing",
    "Program",
    "Recording",
    "UnforeseenShapeError",
    "address_of",
    "aligned",
    "aligned_bytes",
    "bits",
    "bits_per_number",
    "check_tensor",
    "mismatch",
    "packed_bytes",
    "packed_size",
]

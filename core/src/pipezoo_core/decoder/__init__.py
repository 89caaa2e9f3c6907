"""Everything but the layers of a decoder-only model: a plugin brings a typed config and an `nn.Module`."""

from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.decoder.estimates import kernel_use
from pipezoo_core.decoder.inputs import DecoderInputs
from pipezoo_core.decoder.layer_types import known_layer_types
from pipezoo_core.decoder.model import DecoderPipelineModel
from pipezoo_core.decoder.module import DecoderModule
from pipezoo_core.decoder.outlook import StepOutlook
from pipezoo_core.decoder.rounding import rounded_decoder

__all__ = [
    "DecoderConfig",
    "DecoderInputs",
    "DecoderModule",
    "DecoderPipelineModel",
    "StepOutlook",
    "kernel_use",
    "known_layer_types",
    "rounded_decoder",
]

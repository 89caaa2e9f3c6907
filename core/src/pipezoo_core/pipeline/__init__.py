"""From requests to text: scheduling, the model's steps, sampling."""

from pipezoo_core.pipeline.sampler import sample
from pipezoo_core.pipeline.scheduler import Scheduler
from pipezoo_core.pipeline.text_generation import TextGenerationPipeline

__all__ = ["Scheduler", "TextGenerationPipeline", "sample"]

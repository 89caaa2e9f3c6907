"""From requests to text: scheduling, the model's steps, sampling."""

from pipezoo_core.pipeline.sampler import sample
from pipezoo_core.pipeline.text_generation import TextGenerationPipeline
from pipezoo_core.scheduling import Scheduler

__all__ = ["Scheduler", "TextGenerationPipeline", "sample"]

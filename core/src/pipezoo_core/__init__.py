"""pipezoo-core: the interfaces, the paged KV cache and the text-generation pipeline.

Importing this package imports nothing else; take names from its modules, e.g.
`from pipezoo_core.interfaces import PipelineModel`.
"""

__all__: list[str] = []

"""The chat page at the server's root: plain files without a build step, which ask no other server for anything."""

from pipezoo.serve.page.routes import PAGE_PATHS, page_router

__all__ = ["PAGE_PATHS", "page_router"]

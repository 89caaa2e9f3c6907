"""Which page holds which tokens. Knows no torch, and not who uses a page."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

__all__ = ["PrefixCache", "page_hash", "root_hash"]


def root_hash(*parts: str) -> bytes:
    """Returns what the hash chains of one model and namespace start from, so that different ones never meet."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")  # a path may be of any bytes
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def page_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Returns the hash of a full page: of its tokens and, through `parent`, of everything before them."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()


class PrefixCache:
    """Owns the map from the hash of a full page to the page that holds it, one page per hash."""

    def __init__(self) -> None:
        self._page_by_hash: dict[bytes, int] = {}
        self._hash_by_page: dict[int, bytes] = {}

    def __contains__(self, page: int) -> bool:
        """Whether the page's contents can be found again."""
        return page in self._hash_by_page

    def find(self, hash_: bytes) -> int | None:
        """Returns the page with this hash."""
        return self._page_by_hash.get(hash_)

    def insert(self, hash_: bytes, page: int) -> bool:
        """Notes that a page holds these tokens.

        Returns:
            False where another page does so already, which stays the known one.
        """
        if hash_ in self._page_by_hash:
            return False
        self._page_by_hash[hash_] = page
        self._hash_by_page[page] = hash_
        return True

    def forget(self, pages: Iterable[int]) -> list[bytes]:
        """Notes that the pages' contents are gone, and returns the hashes of those that were known."""
        gone = [self._hash_by_page.pop(page) for page in pages if page in self._hash_by_page]
        for hash_ in gone:
            del self._page_by_hash[hash_]
        return gone

    def clear(self) -> None:
        """Forgets all pages."""
        self._page_by_hash.clear()
        self._hash_by_page.clear()

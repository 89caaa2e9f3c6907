"""BPE vocabularies without merges, as a list of merges. Knows no file and no library."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["merges_by_score"]


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges, best first, by which ranked BPE finds the tokens of SentencePiece or tiktoken.

    These keep no merges: of all neighbours that together are a piece, they join those whose piece has the best score,
    the leftmost first (Kudo and Richardson, 2018; `bpe_model.cc`). So every way to cut a piece in two is a
    merge, ranked by the piece's score. A rank cannot say "leftmost" for two different merges of the same score, but
    trained vocabularies have scores of their own for all pieces, and cuts of one piece seldom meet.

    Args:
        scores: the pieces that text can become, with their scores; no control, byte or unknown ones.
    """
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]

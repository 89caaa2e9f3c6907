"""BPE vocabularies without merges, as a list of merges. Knows no file and no library."""

from __future__ import annotations

from collections.abc import Mapping

from pipezoo_core.errors import UnsupportedTokenizerError

__all__ = ["merges_by_score"]

_MAX_COMPARED = 1 << 28  # characters; trained vocabularies of 128,000 pieces compare some millions


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges, best first, by which ranked BPE finds the tokens of SentencePiece or tiktoken.

    These keep no merges: of all neighbours that together are a piece, they join those whose piece has the best score,
    the leftmost first (Kudo and Richardson, 2018; `bpe_model.cc`). So every way to cut a piece in two is a
    merge, ranked by the piece's score. A rank cannot say "leftmost" for two different merges of the same score, but
    trained vocabularies have scores of their own for all pieces, and cuts of one piece seldom meet.

    Args:
        scores: the pieces that text can become, with their scores; no control, byte or unknown ones.

    Raises:
        UnsupportedTokenizerError: so many pieces are so long that it would take minutes.
    """
    merges = [
        (-scores[piece], piece[:cut], piece[cut:])
        for piece, cuts in _possible_cuts(scores)
        for cut in cuts
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


def _possible_cuts(scores: Mapping[str, float]) -> list[tuple[str, list[int]]]:
    """Returns, for each piece, where two pieces of such lengths would meet, so that a long piece costs little."""
    lengths = {len(piece) for piece in scores if piece}
    cuts_of = {length: sorted(cut for cut in lengths if length - cut in lengths) for length in lengths}
    num_compared = sum(len(piece) * len(cuts_of[len(piece)]) for piece in scores if piece)
    if num_compared > _MAX_COMPARED:
        raise UnsupportedTokenizerError(
            "the vocabulary has too many long pieces",
            found=f"{num_compared} characters to compare",
            allowed=f"at most {_MAX_COMPARED}",
            cure="Add a tokenizer.json to the folder, or convert the model again.",
        )
    return [(piece, cuts_of[len(piece)]) for piece in scores if piece]

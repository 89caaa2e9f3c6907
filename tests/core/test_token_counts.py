"""Counts of a growing list of tokens against counting all of it anew."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.token_counts import TokenCounts


class Watched(list):
    """A list that notes how many of its items were handed out."""

    num_read = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        self.num_read += len(found) if isinstance(key, slice) else 1
        return found

    def __iter__(self):
        self.num_read += len(self)
        return super().__iter__()


@given(
    prompt=st.lists(st.integers(0, 200), max_size=80),
    pieces=st.lists(st.lists(st.integers(0, 200), max_size=40), max_size=8),
    counts_prompt=st.booleans(),
)
def test_counts_are_those_of_the_whole_list(prompt, pieces, counts_prompt):
    tokens = Watched(prompt)
    start = 0 if counts_prompt else len(prompt)
    counts = TokenCounts(tokens, start)
    for piece in [[], *pieces]:
        tokens += piece
        expected = collections.Counter(list.__getitem__(tokens, slice(start, None)))
        found, numbers = counts.up_to_now()
        assert dict(zip(found.tolist(), numbers.tolist(), strict=True)) == expected
        assert found.tolist() == list(expected)  # in the order in which they came
    assert tokens.num_read == len(tokens) - start

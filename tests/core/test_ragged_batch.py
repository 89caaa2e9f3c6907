"""A step's lists: the worked example of the documentation, and the same numbers found one row at a time."""

from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.paging import NO_PAGE, first_visible

EXAMPLE = RaggedBatch([1, 1, 5], [6, 3, 0], [4, 2, 5], [[[0, 1], [2], [3, 4]]])


def test_the_example():
    assert EXAMPLE.row_offsets == [0, 1, 2, 7]
    assert EXAMPLE.positions == [6, 3, 0, 1, 2, 3, 4]
    assert EXAMPLE.context_lengths == [7, 4, 5, 5, 5, 5, 5]
    assert EXAMPLE.cells(4, 0) == ([1, 2, 3, 3, 3, 3, 4], [2, 3, 0, 1, 2, 3, 0])


def test_pages_that_have_expired_are_not_written():
    batch = RaggedBatch([2], [7], [5], [[[NO_PAGE, 5, 2]]])
    assert batch.cells(4, 0) == ([5, 2], [3, 0])


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_each_row_has_a_cell_of_its_own_in_each_group(spans, page_size, num_groups):
    numbers = iter(range(1000))
    pages = [
        [[next(numbers) for _ in range(-(-(cached + active) // page_size))] for active, cached in spans]
        for _ in range(num_groups)
    ]
    batch = RaggedBatch([a for a, _ in spans], [c for _, c in spans], [1] * len(spans), pages)
    for group in range(num_groups):
        rows = [
            (own[position // page_size], position % page_size)
            for (active, cached), own in zip(spans, pages[group], strict=True)
            for position in range(cached, cached + active)
        ]
        assert list(zip(*batch.cells(page_size, group), strict=True)) == rows
        assert len(set(rows)) == len(rows) == batch.row_offsets[-1]
    assert RaggedBatch.from_lists(batch.as_lists()) == batch


@given(st.integers(0, 50), st.none() | st.integers(1, 20), st.none() | st.integers(1, 20))
def test_the_first_position_that_a_token_sees(position, window, chunk):
    def sees(earlier):
        is_near = window is None or position - earlier < window
        return is_near and (chunk is None or position // chunk == earlier // chunk)

    assert first_visible(position, window, chunk) == next(filter(sees, range(position + 1)))

"""Which rows of a step are spoiled by what is not finite."""

import pytest
import torch

from pipezoo_core.decoder.spoiled import spoiled_rows

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_row_spoils_those_behind_it_of_its_own_request(bad):
    hidden_TH = torch.ones(5, 3)
    hidden_TH[0, 1] = hidden_TH[4, 2] = bad
    rows_T1 = spoiled_rows(hidden_TH, [2, 1, 2])
    assert rows_T1.shape == (5, 1)
    assert rows_T1.isnan().flatten().tolist() == [True, True, False, False, True]
    assert rows_T1[2:4].flatten().tolist() == [0.0, 0.0]

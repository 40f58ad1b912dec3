"""Tables align their columns."""

import pytest

from lenet.table import table


def test_columns_fit_their_widest_cell_and_numbers_align_right() -> None:
    assert table([["name", "n"], ["a", "100"], ["longer", ""]]) == "name      n\na       100\nlonger"


def test_rows_of_different_lengths_raise() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table([["name", "n"], ["a"]])

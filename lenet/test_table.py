"""Tables in a terminal."""

from lenet.table import table


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_to_the_right() -> None:
    assert table([["name", "n"], ["a", "100"], ["longer", ""]]) == "name      n\na       100\nlonger"

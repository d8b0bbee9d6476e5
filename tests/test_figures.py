"""Figures as files: both formats, the same bytes for the same numbers, whole or not at all."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fetal_utils.figures import FORMATS, render, save_figure


def draw(height=2.0):
    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.plot([0, 1], [0, height], label="a line")
    ax.fill_between([0, 1], [0, 0], [1, 1], alpha=0.2)
    ax.imshow([[0, 1], [1, 0]], extent=(0, 1, 0, 1))
    ax.legend()
    return figure


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_numbers_give_the_same_bytes_and_others_do_not(ending):
    assert render(draw(), ending) == render(draw(), ending)
    assert render(draw(), ending) != render(draw(height=1.0), ending)


def test_an_svg_holds_no_date_and_reads_nothing_from_elsewhere():
    text = render(draw(), "svg").decode()
    assert "<dc:date>" not in text
    assert "<image" in text  # a raster part lies inside
    assert 'href="http' not in text


def test_a_figure_is_saved_as_png_of_the_asked_size_and_as_svg_in_a_folder_that_is_made(tmp_path):
    save_figure(draw(), tmp_path / "figures", "04_differences.planes", dpi=50)
    folder = tmp_path / "figures"
    assert {path.name for path in folder.iterdir()} == {"04_differences.planes.png", "04_differences.planes.svg"}
    assert Image.open(folder / "04_differences.planes.png").size == (150, 100)
    assert (folder / "04_differences.planes.svg").read_text().startswith("<?xml")


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_files(tmp_path):
    save_figure(draw(), tmp_path, "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = draw()
    broken.axes[0].set_title("$\\frac{1$")  # not mathematics
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, tmp_path, "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_format_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'pdf'.*png.*svg"):
        render(draw(), "pdf")

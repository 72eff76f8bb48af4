"""The colours of the mails: whatever BRAND_COLOR is, the button is seen and its label can be read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.brand import Brand, contrast


def brand(color: str) -> Brand:
    return Brand("Academy", "https://lms.example", "help@lms.example", "", color)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("#000000", "#ffffff", 21),
        ("#ffffff", "#000000", 21),
        ("#777777", "#ffffff", 4.48),
        ("#ff0000", "#ffffff", 4.0),
    ],
)
def test_contrast_is_that_of_wcag(one: str, other: str, ratio: float) -> None:
    assert contrast(one, other) == pytest.approx(ratio, abs=0.005)


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(0, 0xFFFFFF))
def test_the_button_stands_out_and_its_label_can_be_read_in_every_colour(color: int) -> None:
    for palette in (brand(f"#{color:06x}").light, brand(f"#{color:06x}").dark):
        assert contrast(palette.accent, palette.card) >= 3
        assert contrast(palette.label, palette.accent) >= 4.5


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_can_be_read_wherever_it_stands(mode: str) -> None:
    palette = getattr(brand("#1f5eff"), mode)
    for background in (palette.page, palette.card, palette.tint):
        assert contrast(palette.ink, background) >= 4.5
        assert contrast(palette.quiet, background) >= 4.5


@pytest.mark.parametrize("color", ["#1f5eff", "#1F5EFF", "#00796b"])
def test_a_colour_that_can_be_seen_is_taken_as_it_is(color: str) -> None:
    assert brand(color).light.accent == brand(color).dark.accent == color.lower()
    assert brand(color).notice is None


def test_a_pale_colour_is_made_darker_and_the_operator_is_told() -> None:
    pale = brand("#ffd400")
    assert pale.light.accent == pale.dark.accent == "#8a7200"
    assert pale.notice == "BRAND_COLOR #ffd400 is too pale for a white label, so buttons are #8a7200"


def test_a_dark_colour_is_made_lighter_for_dark_mode() -> None:
    navy = brand("#0a0a3c")
    assert navy.light.accent == "#0a0a3c"
    there = navy.dark.accent
    assert there != "#0a0a3c"
    assert navy.notice == f"BRAND_COLOR #0a0a3c is too dark to be seen in dark mode, so buttons are {there} there"

"""The sender as the reader knows it, and the colours of its mails."""

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

TEXT_CONTRAST = 4.5  # WCAG 2.2, 1.4.3: text against its background
BUTTON_CONTRAST = 3.0  # WCAG 2.2, 1.4.11: a control against what is beside it


class Palette(NamedTuple):
    """The colours of a mail, each `#rrggbb`: the page, the card on it, a tinted box on the card, hairlines, text,
    less important text, the button, and the button's label."""

    page: str
    card: str
    tint: str
    line: str
    ink: str
    quiet: str
    accent: str
    label: str = "#ffffff"


@dataclass(frozen=True)
class Brand:
    """`address` (postal) and `logo_url` may be empty; `color` is `#rrggbb`.

    The label of a button is white. A black one is turned white by mail programs that force a dark mode, while the
    button keeps its colour; so a colour too pale for a white label is made darker until it has the contrast of
    text, and one too dark to be seen in dark mode is made lighter there. `notice` says so.
    """

    name: str
    url: str
    support_email: str
    address: str
    color: str
    logo_url: str = ""

    @cached_property
    def light(self) -> Palette:
        accent = _until(TEXT_CONTRAST, self.color.lower(), "#ffffff")
        return Palette("#f3f5f8", "#ffffff", "#f3f5f8", "#dde2e9", "#1b2430", "#525c69", accent)

    @cached_property
    def dark(self) -> Palette:
        accent = _until(BUTTON_CONTRAST, self.light.accent, "#1d2127")
        return Palette("#14171c", "#1d2127", "#282d35", "#363c45", "#e8eaed", "#b3bac4", accent)

    @property
    def notice(self) -> str | None:
        """What the operator should know about the colour, in one sentence."""
        changes = []
        if self.light.accent != self.color.lower():
            changes.append(f"too pale for a white label, so buttons are {self.light.accent}")
        if self.dark.accent != self.light.accent:
            changes.append(f"too dark to be seen in dark mode, so buttons are {self.dark.accent} there")
        return f"BRAND_COLOR {self.color} is {' and '.join(changes)}" if changes else None


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _until(ratio: float, color: str, background: str) -> str:
    """The colour itself, or the nearest of its hue and saturation that has this contrast to the background."""
    step = -0.01 if _luminance(background) > 0.5 else 0.01
    hue, lightness, saturation = colorsys.rgb_to_hls(*_channels(color))
    while contrast(color, background) < ratio:
        lightness += step
        channels = colorsys.hls_to_rgb(hue, max(0, min(1, lightness)), saturation)
        color = "#" + "".join(f"{round(channel * 255):02x}" for channel in channels)
    return color

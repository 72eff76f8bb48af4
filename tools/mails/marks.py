"""Judges a mail: from what was measured to L1 to L11, each a figure and what falls short."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import limits
from browser import Seen, Text
from node import Checked
from samples import Mail
from spam import SpamScore


@dataclass(frozen=True)
class Measured:
    """All that was measured of one mail."""

    mail: Mail
    seen: Seen
    checked: Checked
    spam: SpamScore


@dataclass(frozen=True)
class Mark:
    """One cell of the table: the figure, and a line for each shortcoming."""

    figure: str
    faults: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The figure, with a mark where it falls short."""
        return f"{self.figure} ✗" if self.faults else self.figure


def judge(measured: Measured) -> dict[str, Mark]:
    """The marks by their names, L1 to L11."""
    marks = {}
    for name, mark in MARKS.items():
        figure, faults = mark(measured)
        spared = name in measured.mail.spared
        marks[name] = Mark(figure, () if spared else tuple(dict.fromkeys(faults)))
    return marks


Judged = tuple[str, list[str]]


def _size(measured: Measured) -> Judged:
    html = len(measured.mail.html.encode())
    style = sum(len(css.encode()) for css in re.findall(r"<style\b[^>]*>(.*?)</style>", measured.mail.html, re.S))
    faults = []
    if html > limits.HTML_BYTES:
        faults.append(f"the HTML has {html} bytes, at most {limits.HTML_BYTES}")
    if style > limits.STYLE_BYTES:
        faults.append(f"<style> has {style} bytes, at most {limits.STYLE_BYTES}")
    return f"{html / 1000:.1f} / {style / 1000:.1f} kB", faults


def _support(measured: Measured) -> Judged:
    found = measured.checked.unsupported
    core = [one for one in found if one.clients - limits.WEAK_CLIENTS]
    apple = [one for one in found if any(client.startswith("apple-mail.") for client in one.clients)]
    faults = []
    for what, features, most in (
        ("all clients", found, limits.UNSUPPORTED),
        ("leaving out the two weakest", core, limits.UNSUPPORTED_CORE),
        ("Apple Mail", apple, limits.UNSUPPORTED_APPLE),
    ):
        if len(features) > most:
            listed = "; ".join(
                f"{one.feature} (line {one.lines[0] if one.lines else '?'}: {', '.join(sorted(one.clients))})"
                for one in features
            )
            faults.append(f"{len(features)} unsupported features in {what}, at most {most}: {listed}")
    return f"{len(found)} / {len(core)} / {len(apple)}", faults


def _markup(measured: Measured) -> Judged:
    return str(len(measured.checked.invalid)), list(measured.checked.invalid)


def _accessibility(measured: Measured) -> Judged:
    seen = measured.seen
    faults = [f"{view}: {fault}" for view, found in seen.violations.items() for fault in found]
    number = str(len(faults))
    if not seen.structure["darkCss"]:
        faults.append("no CSS for prefers-color-scheme: dark, so that nothing was seen in dark")
    else:
        faults += [
            f"{light} has the same colours in dark as in light, {light.ink} on {light.behind}"
            for light, dark in list(zip(seen.light, seen.dark, strict=False))[:1]
            if light.behind == dark.behind
        ]
    return number, faults


def _overflow(measured: Measured) -> Judged:
    found = measured.seen.overflow
    faults = [
        f"{view}: {one.at} reaches {one.pixels} px out of the window" for view, one in found.items() if one.pixels
    ]
    return " / ".join(str(one.pixels) for one in found.values()) + " px", faults


def _readable(text: Text) -> bool:
    return text.contrast >= (limits.CONTRAST_LARGE if text.large else limits.CONTRAST)


def _faint(view: str, texts: Iterable[Text]) -> list[str]:
    return [
        f"{view}: {text} has contrast {text.contrast:.2f}, {text.ink} on {text.behind}"
        for text in texts
        if not _readable(text)
    ]


def _dark(measured: Measured) -> Judged:
    seen = measured.seen
    own = max((_faint("dark", texts) for texts in (seen.dark, seen.dark_phone)), key=len)
    forced = _faint("forced dark", seen.forced)
    # Of smaller letters a picture has no pixel in their own colour; which one it has depends on the machine's fonts.
    drawn = [text for text in seen.forced_chromium if text.size >= limits.DRAWN]
    chromium = _faint("forced dark by Chromium", drawn)
    return f"{len(own)} / {len(forced)} / {len(chromium)}", own + forced + chromium


def _without_pictures(measured: Measured) -> Judged:
    seen = measured.seen
    texts = seen.light
    all_characters = sum(len(text.text) for text in texts)
    share = sum(len(text.text) for text in texts if _readable(text)) / all_characters if all_characters else 0.0
    faults = _faint("pictures off", texts)
    mute = [
        picture["at"]
        for picture in seen.structure["pictures"]
        if not picture["alt"] and picture["area"] > limits.PICTURE_AREA
    ]
    faults += [f"{at} is a picture without alternative text: what it says is lost" for at in mute]
    figure = f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"
    return figure + (f", {len(mute)} lost" if mute else ""), faults


def _button(measured: Measured) -> Judged:
    seen = measured.seen
    if measured.mail.kind in limits.WITHOUT_BUTTON and not seen.buttons:
        return "none", []
    if len(seen.buttons) != 1:
        return str(len(seen.buttons)), [f"{len(seen.buttons)} buttons, one action is wanted"]
    button = seen.buttons[0]
    faults = []
    height = min(one.height for one in (*seen.buttons, *seen.buttons_phone))
    if height < limits.BUTTON_HEIGHT:
        faults.append(f"{button.label} is {height:.1f} px high, at least {limits.BUTTON_HEIGHT}")
    views = {"light": seen.buttons, "dark": seen.buttons_dark, "without CSS backgrounds": seen.buttons_bare}
    labels = {view: found[0].label for view, found in views.items() if found}
    faults += [f"no button {view}" for view in views if view not in labels]
    faults += [
        f"{view}: {label} has contrast {label.contrast:.2f}, {label.ink} on {label.behind}"
        for view, label in labels.items()
        if label.contrast < limits.CONTRAST
    ]
    if not button.shape:
        faults.append(
            f"{button.label} loses its shape in Outlook: no VML, mso-padding-alt or padding on a cell with bgcolor, "
            "or thick border"
        )
    least = min(label.contrast for label in labels.values())
    return f"{height:.1f} px, {least:.1f}:1", faults


def _visible(texts: Iterable[Text]) -> str:
    return " ".join(text.text for text in texts)


def _vocabulary(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _links(measured: Measured) -> Judged:
    text = measured.mail.rendered.text
    seen = measured.seen
    faults = [
        f"the address of {button.label} does not stand in the text under it: {_short(button.href)}"
        for button in seen.buttons
        if re.sub(r"\s+", "", button.href) not in button.after
    ]
    faults += [
        f"the text part lacks {_short(link)}"
        for link in dict.fromkeys(seen.structure["links"])
        if not re.search(rf"(?<![^\s<(]){re.escape(link.removeprefix('mailto:'))}(?![^\s>).,;])", text)
    ]
    faults += [f"the text part holds the tag {tag}" for tag in re.findall(r"</?[a-z!][^>\s]*", text, re.IGNORECASE)]
    words = _vocabulary(_visible(seen.light))
    missing = words - _vocabulary(text)
    share = 1 - len(missing) / len(words) if words else 0.0
    if share < limits.TEXT_WORDS:
        faults.append(
            f"the text part has {100 * share:.0f} % of the words of the HTML, at least "
            f"{100 * limits.TEXT_WORDS:.0f}; it lacks {', '.join(sorted(missing))}"
        )
    return f"{100 * share:.0f} %", faults


def _short(link: str) -> str:
    return link if len(link) <= 80 else link[:77] + "..."


def _spam(measured: Measured) -> Judged:
    score, rules = measured.spam
    faults = []
    if score > limits.SPAM_SCORE:
        hit = ", ".join(f"{rule} {points:+g}" for rule, points in rules.items() if points > 0)
        faults.append(f"scores {score:g}, at most {limits.SPAM_SCORE:g}: {hit}")
    return f"{score:.1f}", faults


def _structure(measured: Measured) -> Judged:
    found = measured.seen.structure
    subject = " ".join(measured.mail.rendered.subject.split())
    preheader = found["preheader"]
    faults = []
    if len(preheader) < limits.PREHEADER:
        faults.append(f'the preview text "{preheader}" has {len(preheader)} characters, at least {limits.PREHEADER}')
    if preheader and (subject.casefold() in preheader.casefold() or preheader.casefold() in subject.casefold()):
        faults.append(f'the preview text "{preheader}" repeats the subject')
    faults += [f"<html> has no {name}" for name in ("lang", "dir") if not found[name]]
    if found["title"] != subject:
        faults.append(f'<title> is "{found["title"]}", the subject is "{subject}"')
    faults += [f'{at} has no role="presentation"' for at in found["noRole"]]
    faults += [f"{at} has no alt" for at in found["noAlt"]]
    if len(found["headings"]) != 1:
        faults.append(f"{len(found['headings'])} h1, one is wanted")
    if found["body"] < limits.BODY_SIZE:
        faults.append(f"the first paragraph is set in {found['body']:g} px, at least {limits.BODY_SIZE}")
    texts = [*measured.seen.light, *measured.seen.light_phone]
    faults += [
        f"{text} is set in {text.size:g} px, at least {limits.SMALLEST_SIZE}"
        for text in texts
        if text.size < limits.SMALLEST_SIZE
    ]
    smallest = min((text.size for text in texts), default=0)
    return f"{len(preheader)} ch, {found['body']:g} / {smallest:g} px", faults


MARKS: dict[str, Callable[[Measured], Judged]] = {
    "L1": _size,
    "L2": _support,
    "L3": _markup,
    "L4": _accessibility,
    "L5": _overflow,
    "L6": _dark,
    "L7": _without_pictures,
    "L8": _button,
    "L9": _links,
    "L10": _spam,
    "L11": _structure,
}

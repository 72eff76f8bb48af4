"""Writes docs/mails.md and its pictures: what is asked of the mails, what was measured, and how they look.

    .venv/bin/python tools/mails/document.py [--check]

`--check` measures, writes nothing, and exits with 1 when docs/mails.md says something else.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import unified_diff
from pathlib import Path

import node
import spam
from browser import VIEWS, inspector
from browser import version as chromium_version
from limits import MEANING
from marks import MARKS, Mark, judge
from samples import KIND_NAMES, LOGO, STRESS, sample, samples
from score import measure, missing

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "mails.md"
PICTURES = DOCS / "mails"
COMMAND = ".venv/bin/python tools/mails/document.py"
GALLERY = {"light": "light", "dark": "dark", "phone": "phone, 375 px", "pictures-off": "with a logo, pictures off"}
MEASURED_WITH = "Measured with "


def page(scored: Mapping[str, Mapping[str, Mark]]) -> str:
    """The whole page."""
    return f"""# The mails

How they look, what every kind is held to, and what was measured. A script makes this page and its pictures:
`{COMMAND}`.

## How they look

{_gallery()}

## What is asked

{_markdown(["", "limit"], ([f"**{limit}**", meaning] for limit, meaning in MEANING.items()))}

## What was measured

{_table(scored)}

The figures are, for L1: HTML, `<style>`; L2: all, without the two weakest, Apple Mail; L5: 375 px, 320 px, without
`<style>`; L6: own dark, inverted, forced by Chromium; L8: height, least contrast; L9: words of the HTML in the
text part; L11: characters of preview text, size of body text and of the smallest. A ✗ marks what falls short.

Each kind is also measured in these variants, as far as it has such a field:
{_variants()}.
The same limits hold, but for what the sender's own words decide: L1, L2 and L9 where fields are changed.

## How it was measured

`.venv/bin/python tools/mails/score.py --stress` renders each kind's sample with the service's own code and brings it
before all tools; it exits with 1 where a limit is not kept, and says what and where. Nothing is asked of the network.

{MEASURED_WITH}{_versions()}.

- **L3**: six rules are off, each with its reason in `tools/mails/checkers.mjs`: they forbid what mail programs need.
- **L6**: the second figure is a stand-in for programs that invert light backgrounds and dark text; the third is read
  from the pixels of a screenshot. Both begin with the mail in its light colours, 375 px wide.
- **L7**: text counts as read when its contrast is enough with no picture behind it; alternative text counts as text.
  A picture larger than an icon and without alternative text falls short, whatever else can be read.
- **L8**: Outlook's shape is not seen, but concluded from VML, `mso-padding-alt` or padding on a cell with `bgcolor`,
  or a thick border.
- **L10**: the very bytes that the service sends, as they come straight from the worker to the recipient's server.
  No network tests and no learned filter.

## What it does not say

No real mail program was used. Chromium stands for all of them, caniemail's data says what they lack, and forced dark
and Outlook's shape are conclusions. Before a launch, send each kind to the programs that your people use.
"""


def _table(scored: Mapping[str, Mapping[str, Mark]]) -> str:
    rows = ([f"`{name}`", *(mark.shown for mark in marks.values())] for name, marks in scored.items())
    return _markdown(["kind", *MARKS], rows)


def _variants() -> str:
    return ", ".join(variant.name.replace("-", " ") for variant in STRESS)


def _versions() -> str:
    packages = [f"{name} {version}" for name, version in node.versions().items()]
    return ", ".join([*packages, chromium_version(), f"SpamAssassin {spam.version()}"])


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _gallery() -> str:
    return "\n\n".join(
        f"### {kind}\n\n"
        + _markdown(
            list(GALLERY.values()),
            [[f"![{kind}, {words}](mails/{_file(kind, view)})" for view, words in GALLERY.items()]],
        )
        for kind in KIND_NAMES
    )


def _file(kind: str, view: str) -> str:
    return f"{kind.replace('_', '-')}-{view}.png"


def photograph() -> None:
    """Write the pictures of the gallery, and nothing else into their directory."""
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    with inspector() as chromium:
        for kind in KIND_NAMES:
            for view in GALLERY:
                mail = sample(kind, LOGO) if view == "pictures-off" else sample(kind)
                (PICTURES / _file(kind, view)).write_bytes(chromium.photograph(mail, VIEWS[view]))


def out_of_date(made: str) -> list[str]:
    """What differs between the page as it is and as it should be. The versions of the tools make no difference."""
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    old, new = ([line for line in text.splitlines() if not line.startswith(MEASURED_WITH)] for text in (found, made))
    pictures = [_file(kind, view) for kind in KIND_NAMES for view in GALLERY]
    return [
        *unified_diff(old, new, PAGE.name, "measured now", n=0, lineterm=""),
        *(f"no picture {name}" for name in pictures if not (PICTURES / name).exists()),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/mails.md and its pictures.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    chosen = parser.parse_args(arguments)
    if lacks := missing():
        parser.error("; ".join(lacks))

    scored = {measured.mail.name: judge(measured) for measured in measure(list(samples(KIND_NAMES)))}
    made = page(scored)
    if chosen.check:
        differences = out_of_date(made)
        if differences:
            print(f"docs/mails.md is out of date; run {COMMAND}", *differences, sep="\n")
        return 1 if differences else 0
    PAGE.write_text(made, encoding="utf-8")
    photograph()
    short = [name for name, marks in scored.items() if any(mark.faults for mark in marks.values())]
    if short:
        print(f"Written, but these fall short: {', '.join(short)}. What and where: tools/mails/score.py")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())

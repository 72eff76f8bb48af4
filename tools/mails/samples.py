"""Which mails are scored: one sample of each kind, and variants of it that have broken layouts elsewhere.

They are rendered and built by the service's own code, with a brand of their own: no settings, no Redis.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backend"))

from mail.brand import Brand
from mail.kinds import KINDS, parse
from mail.message import Sender, build
from mail.rendering import Rendered, Renderer

TEMPLATES = Path(__file__).resolve().parents[2] / "backend" / "templates" / "emails"
KIND_NAMES = tuple(KINDS)
LOGO_URL = "https://lms.example.com/logo.png"
BRAND = Brand(
    name="Example Academy",
    url="https://lms.example.com",
    support_email="support@lms.example.com",
    address="1 Example Street, 12345 Example City",
    color="#1f5eff",
)
EMAIL_ID = "9ee28851-0395-4044-aff1-7f51c8819c6d"
SENT = datetime(2030, 1, 31, 9, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Mail:
    """One mail as it would be sent. `variant` is "" for the sample itself; `spared` are limits it need not keep."""

    kind: str
    variant: str
    rendered: Rendered
    message: bytes
    spared: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.variant}" if self.variant else self.kind

    @property
    def html(self) -> str:
        return self.rendered.html or ""


RICH = """<h1>The summer term</h1>
<p>Hello <em>all</em>, please read <a href="https://lms.example.com/rules">the rules</a> first.</p>
<p><img src="https://lms.example.com/logo.png" alt="The library in summer" width="1200" height="300"></p>
<h2>Dates</h2>
<table><thead><tr><th scope="col">Week</th><th scope="col">Topic</th></tr></thead>
<tbody><tr><td>1</td><td>Introduction</td></tr><tr><td>2</td><td>The analytical engine</td></tr></tbody></table>
<ul><li>Bring a pencil</li><li>Bring paper</li></ul>
<blockquote>We may say most aptly that the engine weaves algebraical patterns.</blockquote>
<pre>for week in term: learn(week)  # a line that is much too long for the narrow screen of a telephone</pre>
<hr>
<p>See <code>lms.example.com</code>.</p>"""


@dataclass(frozen=True)
class Variant:
    """How a mail differs from the sample: in the brand, or in those of the fields that it has."""

    name: str
    brand: Brand = BRAND
    fields: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def spared(self) -> frozenset[str]:
        # A long link stands in the HTML three times (L1), the HTML of a custom mail is the sender's (L2), and so are
        # words that tip the share of the text part (L9). A brand is in all mails of a school: nothing is spared.
        return frozenset({"L1", "L2", "L9"}) if self.fields else frozenset()


def _names(person: str, course: str) -> dict[str, str]:
    return {"name": person, "course_name": course, "subject": course}


LOGO = Variant("logo", brand=replace(BRAND, logo_url=LOGO_URL))
STRESS = (
    Variant(
        "long-names", fields=_names("Maria del Carmen " * 5 + "Fernandez Lopez", "Introduction to Machines " * 4)
    ),
    Variant("unbroken-names", fields=_names("Llanfairpwllgwyngyll" * 5, "Donaudampfschifffahr" * 5)),
    Variant("arabic", fields=_names("عبد الرحمن بن محمد الأنصاري", "مقدمة في علوم الحاسوب")),
    Variant("hebrew", fields=_names("אברהם בן־דוד הכהן", "מבוא למדעי המחשב")),
    Variant(
        "long-url",
        fields=dict.fromkeys(
            ("reset_url", "verification_url", "course_url", "certificate_url"),
            "https://lms.example.com/a?token=" + "q3nTq0Vw8m2Zt7Ls" * 123,
        ),
    ),
    Variant(
        "plain-text",
        fields={"html": None, "text": "Hello Ada,\n\nthe library is open on Sundays too.\nSee you there."},
    ),
    Variant("rich-html", fields={"html": RICH}),
    LOGO,
    Variant(
        "long-brand",
        brand=replace(
            BRAND,
            name="The Royal and Ancient Academy of Applied Sciences and Fine Arts of Greater Example-upon-Thames",
            address="Building 12, Staircase C, Room 4.017, Professor-Doctor-Theodor-Mustermann-Strasse 1234-1238, "
            "12345 Example-upon-Thames, United Kingdom of Great Britain and Northern Ireland",
        ),
    ),
    Variant("pale-colour", brand=replace(BRAND, color="#ffe9a8")),
    Variant("dark-colour", brand=replace(BRAND, color="#101820")),
)


SAMPLE = Variant("")


def as_sent(kind: str, rendered: Rendered, variant: Variant = SAMPLE) -> Mail:
    """The mail that the service would make of what was rendered."""
    sender = Sender(address="no-reply@lms.example.com", name=variant.brand.name)
    message = build(rendered, email_id=EMAIL_ID, to="ada@example.com", sender=sender, date=SENT)
    return Mail(kind, variant.name, rendered, message.data, variant.spared)


def sample(kind: str, variant: Variant = SAMPLE) -> Mail:
    """The sample of a kind, changed as the variant says."""
    fields = {name: value for name, value in variant.fields.items() if name in KINDS[kind].model_fields}
    email = parse(KINDS[kind].sample().model_dump() | fields)
    return as_sent(kind, Renderer(TEMPLATES, variant.brand).render(email), variant)


def samples(kinds: Iterable[str]) -> Iterator[Mail]:
    """The sample of each kind."""
    return map(sample, kinds)


def stressed(kinds: Iterable[str]) -> Iterator[Mail]:
    """Every kind in every variant that changes something in it."""
    for kind in kinds:
        for variant in STRESS:
            if not variant.fields or variant.fields.keys() & KINDS[kind].model_fields.keys():
                yield sample(kind, variant)

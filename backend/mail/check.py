"""Whether every mail of a mailing may be sent: valid, renderable, and within the installation's rules. Pure.

What all recipients share is looked at once. Of what a placeholder is a part of, the address of a link or a word that
may become one, each recipient's own form is looked at. The mail of a recipient who passes would pass `Policy.check`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from mail.content import Content, by_name
from mail.errors import FieldError, InvalidEmail
from mail.fields import header_text, host_of, is_url
from mail.kinds import KINDS
from mail.mailing import Mailing, Recipient, path_of
from mail.placeholders import Marks, Template
from mail.policy import SHOWS_NOTHING, Page, Policy, links_in
from mail.rendering import Rendered

# A link in a text never goes on beyond one of these; see `links_in`.
_BETWEEN_WORDS = re.compile(r"""[\s<>"']+""")
_SCHEMES = {"href": ("https://", "http://", "mailto:"), "src": ("https://", "http://")}


class Renders(Protocol):
    """Renders the mails of a mailing; `mail.rendering.Prepared` is the one implementation."""

    def render(self, recipient: Recipient) -> Rendered:
        """Raises jinja2.TemplateError."""
        ...


class Check:
    """Checks a mailing once and its recipients one by one. Safe to share between threads."""

    def __init__(self, mailing: Mailing, policy: Policy, prepared: Renders) -> None:
        self._mailing = mailing
        self._policy = policy
        self._prepared = prepared
        self._rules = _ContentRules(mailing.content, policy) if mailing.content is not None else None

    def mailing(self) -> None:
        """Check what all recipients share.

        Raises:
            InvalidEmail: names each field at fault.
        """
        if self._rules is not None:
            errors = list(self._rules.shared_faults(self._mailing.subject))
        else:
            errors = list(self._policy.field_faults(KINDS[self._mailing.kind], self._mailing.fields))
        if errors:
            raise InvalidEmail(errors)

    def recipient(self, raw: object) -> Recipient:
        """Validate one recipient, an address or a mapping with `to`, `name` and `data`, and render the mail.

        Raises:
            InvalidEmail: names each field at fault: `to`, `name`, `data.<key>`, `subject`, `html`, `text`; `body`
                for the recipient as a whole.
            jinja2.TemplateError: a template is wrong.
        """
        recipient = self._mailing.recipient(raw)
        errors = list(self._policy.recipient_faults(recipient.to))
        if self._rules is None:
            own = self._policy.field_faults(KINDS[self._mailing.kind], recipient.data)
            errors += [FieldError(path_of(fault.field), fault.message) for fault in own]
        else:
            values = self._mailing.values(recipient)
            errors += self._rules.faults(values)
            if not errors and self._rules.has_gaps(values):
                self._policy.check(self._mailing.email(recipient))
        if errors:
            raise InvalidEmail(errors)
        self._prepared.render(recipient)
        return recipient


class _Address(NamedTuple):
    """Where a link (`href`) or picture (`src`) points, with placeholders in it."""

    attribute: str
    template: Template

    def fault(self, url: str) -> FieldError | None:
        """What would make a reader lose the link: the sanitiser drops it, or programs disagree about it."""
        schemes = _SCHEMES[self.attribute]
        names = set(self.template.names)
        field = path_of(*names) if len(names) == 1 else "html"
        place = "a link" if self.attribute == "href" else "a picture"
        if not url.lower().startswith(schemes):
            return FieldError(field, f"must make the address of {place} in html begin with {' or '.join(schemes)}")
        if url != url.strip() or "\n" in url or "\t" in url:
            return FieldError(field, f"must not contain line breaks, nor spaces at an end: {place} in html uses it")
        if not (is_url(url) if url.lower().startswith("mailto:") else host_of(url)):
            return FieldError(
                field, f"must make a whole address of {place} in html, without backslashes and user names"
            )
        return None


class _ContentRules:
    """The policy's rules for free content, taken apart into what is the same for all recipients and what is not."""

    def __init__(self, content: Content, policy: Policy) -> None:
        self._content = content
        self._policy = policy
        self._addresses: list[_Address] = []
        self._words: dict[str, list[Template]] = {"text": [], "html": []}
        self._shared_links: dict[str, list[str]] = {"text": [], "html": []}
        self._always_shows = content.html is None
        self._alternatives: list[Template] = []
        made = "html" if content.text_is_made else "text"
        marks = Marks(content.text)
        self._look_at_words(made, content.text.fill(marks.of), marks)
        if content.html is not None:
            self._look_at_page(content.html)

    def shared_faults(self, subject: str) -> Iterator[FieldError]:
        """What speaks against the mails of all recipients."""
        if not self._content.subject.names:
            yield from self._policy.content_faults("subject", links_in(subject))
        for field, links in self._shared_links.items():
            yield from self._policy.content_faults(field, links)
        if not self._always_shows and self._content.html is not None and not self._content.html.names:
            yield SHOWS_NOTHING

    def faults(self, values: Mapping[str, str]) -> Iterator[FieldError]:
        """What speaks against the mail to one recipient, beyond what is shared."""
        links: list[str] = []
        for address in self._addresses:
            url = address.template.fill(values)
            if fault := address.fault(url):
                yield fault
            else:
                links.append(url)
        if self._policy.link_hosts:
            if self._content.subject.names:
                subject = header_text(self._content.subject.fill(values))
                yield from self._policy.content_faults("subject", links_in(subject))
            for field, templates in self._words.items():
                found = [link for template in templates for link in links_in(template.fill(values))]
                yield from self._policy.content_faults(field, found + links if field == "html" else found)
        if not self._always_shows and not Page(self._content.fill(values).html or "").shows_something:
            yield SHOWS_NOTHING

    def has_gaps(self, values: Mapping[str, str]) -> bool:
        """Whether a picture has no text for this recipient: then the words before and after it become one."""
        return any(not template.fill(values) for template in self._alternatives)

    def _look_at_words(self, field: str, marked: str, marks: Marks) -> None:
        """Words that will be the same for all are looked at now; a word with a placeholder in it is kept."""
        own: list[str] = []
        shared: list[str] = []
        for word in _BETWEEN_WORDS.split(marked):
            (own if marks.template(word).names else shared).append(word)
        self._shared_links[field] += links_in("\n".join(shared))
        if own:
            self._words[field].append(marks.template("\n".join(own)))

    def _look_at_page(self, html: Template) -> None:
        plain = by_name(html)
        marks = Marks(plain)
        page = Page(plain.fill(marks.of))
        self._look_at_words("html", page.words, marks)
        for attribute, url in page.targets:
            template = marks.template(url)
            if template.names:
                self._addresses.append(_Address(attribute, template))
            else:
                self._shared_links["html"].append(url)
        self._alternatives = [one for text in page.alternatives if (one := marks.template(text)).names]
        self._always_shows = Page(plain.fill(dict.fromkeys(plain.names, ""))).shows_something

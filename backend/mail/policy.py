"""What this installation allows in an email, beyond what every kind demands of its fields."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urlsplit

from mail.errors import FieldError, InvalidEmail
from mail.fields import WebAddress
from mail.kinds import AnyEmail, CustomEmail
from mail.rendering import sanitise

# What mail programs turn into a link in plain text.
_LINK_IN_TEXT = re.compile(r"(?:[a-z][a-z0-9+.-]*://|\bwww\.)[^\s<>\"']+", re.IGNORECASE)


@dataclass(frozen=True)
class Policy:
    """Checks an email against the installation's rules.

    Args:
        link_hosts: hosts that links may point to; `*.example.com` stands for every host below it. Empty: all.
        test_domains: whether recipients under `.test` (RFC 2606) are allowed.
    """

    link_hosts: tuple[str, ...] = ()
    test_domains: bool = False

    def check(self, email: AnyEmail) -> None:
        """Raises:
        InvalidEmail: names each field and the rule it breaks.
        """
        errors = [*self._recipient(email), *self._links(email)]
        if errors:
            raise InvalidEmail(errors)

    def _recipient(self, email: AnyEmail) -> Iterator[FieldError]:
        if email.to.endswith((".test", "@test")) and not self.test_domains:
            yield FieldError("to", "addresses under .test are accepted in development only")

    def _links(self, email: AnyEmail) -> Iterator[FieldError]:
        if not self.link_hosts:
            return
        for name, field in type(email).model_fields.items():
            value = getattr(email, name)
            if any(isinstance(mark, WebAddress) for mark in field.metadata) and not self._allowed(value):
                yield FieldError(name, f"must point to one of: {', '.join(self.link_hosts)}")
        if isinstance(email, CustomEmail):
            bodies = {"html": _links_in_html(email.html or ""), "text": _LINK_IN_TEXT.findall(email.text or "")}
            for name, links in {"subject": _LINK_IN_TEXT.findall(email.subject), **bodies}.items():
                if not all(self._allowed(link) for link in links):
                    yield FieldError(name, f"every link must point to one of: {', '.join(self.link_hosts)}")

    def _allowed(self, link: str) -> bool:
        if link.lower().startswith("mailto:"):
            return True
        try:
            host = urlsplit(link if "://" in link else f"https://{link}").hostname or ""
        except ValueError:
            return False
        return any(
            host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in self.link_hosts
        )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.found += _LINK_IN_TEXT.findall(data)


def _links_in_html(html: str) -> list[str]:
    parser = _Links()
    parser.feed(sanitise(html))
    parser.close()
    return parser.found

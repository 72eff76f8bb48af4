"""What this installation allows in an email, beyond what every kind demands of its fields."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any

from mail.bodies import refuse_if_busy, sanitise, text_of
from mail.errors import FieldError, InvalidEmail
from mail.fields import TLDS, WebAddress, host_of, is_visible
from mail.kinds import AnyEmail, CustomEmail, Email

# What mail programs turn into a link in plain text: not the full stop at the end of a sentence. A run of scheme
# characters, or of a host name, is tried from its start only: tried from each of them, half a megabyte takes minutes.
_LINK_IN_TEXT = re.compile(
    r"(?:(?<![a-z0-9+.-])[a-z0-9+.-]*://|www\.)[^\s<>\"']*[\w/]",
    re.IGNORECASE,
)
# Some of them know the ends of host names too. Not looked for: .zip and .mov, since course mails name files; an end
# with a capital, since a sentence may lack the space before it ("on Friday.In class"); ASP.NET; parts of addresses.
_ENDS = "|".join(f"{end}|{end.upper()}" for end in TLDS.split("|") if end not in ("zip", "mov"))
_BARE_HOST = re.compile(
    rf"(?<![\w.-])(?<!\w@)(?![A-Z]{{2,3}}\.NET\b)(?>(?:[\w-]+\.)+(?:{_ENDS})\b)"
    r"(?!(?:[\w-]|\.(?=[\w-]))*@\w)(?:[^\s<>\"']*[\w/])?"
)
# Where one of these begins or ends, words run on, in HTML and in the text made of it.
_INLINE = frozenset(
    ("a", "abbr", "b", "code", "del", "em", "i", "img", "ins", "q", "s", "small", "span", "strong", "sub", "sup", "u")
)


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
        errors = [*self.recipient_faults(email.to), *self.field_faults(type(email), dict(email))]
        if isinstance(email, CustomEmail):
            errors += self._content(email)
        if errors:
            raise InvalidEmail(errors)

    def recipient_faults(self, to: str) -> Iterator[FieldError]:
        """What speaks against mail to this address."""
        if to.endswith((".test", "@test")) and not self.test_domains:
            yield FieldError("to", "addresses under .test are accepted in development only")

    def field_faults(self, kind: type[Email], values: Mapping[str, Any]) -> Iterator[FieldError]:
        """What speaks against these of the fields of a kind."""
        for name, field in kind.model_fields.items():
            is_link = name in values and any(isinstance(mark, WebAddress) for mark in field.metadata)
            if is_link and not self._allows(values[name]):
                yield FieldError(name, f"must point to one of: {', '.join(self.link_hosts)}")

    def content_faults(self, field: str, links: Iterable[str]) -> Iterator[FieldError]:
        """What speaks against the links in a field of free content."""
        if not all(self._allows(link) for link in links):
            yield FieldError(field, f"every link must point to one of: {', '.join(self.link_hosts)}")

    def _content(self, email: CustomEmail) -> Iterator[FieldError]:
        links = {"subject": links_in(email.subject), "text": links_in(email.text or "")}
        if email.html is not None:
            try:
                refuse_if_busy(email.html)
                clean = sanitise(email.html)
            except InvalidEmail as error:
                yield from error.errors
            else:
                page = Page(clean)
                links["html"] = page.links
                if self.link_hosts and email.text is None:
                    # In the text made of it, words end where links do.
                    links["html"] += links_in(text_of(clean))
                if not page.shows_something:
                    yield SHOWS_NOTHING
        for name, found in links.items():
            yield from self.content_faults(name, found)

    def _allows(self, link: str) -> bool:
        if not self.link_hosts or link.lower().startswith("mailto:"):
            return True
        host = host_of(link) or ""
        return host in self._hosts or any(host.endswith(parent) and host != parent for parent in self._parents)

    @cached_property
    def _hosts(self) -> frozenset[str]:
        return frozenset(host_of(f"https://{host}") or host for host in self.link_hosts if not host.startswith("*."))

    @cached_property
    def _parents(self) -> tuple[str, ...]:
        hosts = (host[2:] for host in self.link_hosts if host.startswith("*."))
        return tuple(f".{host_of(f'https://{host}') or host}" for host in hosts)


SHOWS_NOTHING = FieldError("html", "must show a text or a picture; scripts and the like are taken out")


def links_in(text: str) -> list[str]:
    """What mail programs make a link of in a plain text."""
    found = [link if "://" in link else f"https://{link}" for link in _LINK_IN_TEXT.findall(text)]
    return found + [f"https://{link}" for link in _BARE_HOST.findall(text)]


class Page(HTMLParser):
    """What a reader of sanitised HTML can click and see.

    `targets`: where links and pictures point, each with its attribute (`href`, `src`); `alternatives`: what stands
    for a picture; `words`: the text, with the alternatives in brackets.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.targets: list[tuple[str, str]] = []
        self.alternatives: list[str] = []
        self._words: list[str] = []
        self._has_picture = False
        self.feed(html)
        self.close()
        self.words = "".join(self._words)

    @property
    def links(self) -> list[str]:
        return [target for _, target in self.targets] + links_in(self.words)

    @property
    def shows_something(self) -> bool:
        return self._has_picture or is_visible(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._part(tag)
        given = {name: value or "" for name, value in attrs}
        self.targets += [(name, given[name]) for name in ("href", "src") if name in given]
        self._has_picture |= tag == "img" and "src" in given
        if given.get("alt"):
            self.alternatives.append(given["alt"])
            self._words.append(f"[{given['alt']}]")

    def handle_endtag(self, tag: str) -> None:
        self._part(tag)

    def handle_data(self, data: str) -> None:
        self._words.append(data)

    def _part(self, tag: str) -> None:
        if tag not in _INLINE:
            self._words.append("\n")

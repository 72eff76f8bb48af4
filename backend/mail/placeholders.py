"""Placeholders in free content, such as `{{ name }}`: found once, filled in one pass, never run as a template. Pure.

The syntax is Jinja's, because people know it; no more of Jinja than this is understood.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mail.errors import FieldError

NAME = re.compile(r"\w{1,64}")
MAX_PLACEHOLDERS = 1_000
PLACEHOLDER = re.compile(r"\{\{[ \t]*(\w{1,64})[ \t]*\}\}")
MARK_LENGTH = 8  # in a table that becomes plain text, a column is as wide as if this were the value


@dataclass(frozen=True, slots=True)
class Template:
    """A text taken apart at its placeholders: text, name, text, name, ... text."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str, pattern: re.Pattern[str] = PLACEHOLDER) -> "Template":
        """`pattern` has one group, the name."""
        return cls(tuple(pattern.split(text)))

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with its values. What looks like a placeholder in a value stays as it is."""
        filled = list(self.parts)
        filled[1::2] = [values[name] for name in self.parts[1::2]]
        return "".join(filled)


def faults(field: str, text: str) -> Iterator[FieldError]:
    """What is wrong with the placeholders of a text: braces that enclose no name, or too many of them."""
    if len(PLACEHOLDER.findall(text)) > MAX_PLACEHOLDERS:
        yield FieldError(field, f"must not have more than {MAX_PLACEHOLDERS:,} placeholders")
    begin = text.find("{{")
    while begin >= 0 and (end := text.find("}}", begin)) >= 0:
        if not PLACEHOLDER.fullmatch(text, begin, end + 2):
            yield FieldError(
                field, "between {{ and }} there must be one name of letters, digits and _, such as {{ name }}"
            )
            return
        begin = text.find("{{", end + 2)


class Marks:
    """Stand-ins for placeholders, for a text that goes through something that does not know them.

    A mark is one word of private-use characters that are nowhere else in the text. `of` is the mark of each name.
    """

    def __init__(self, template: Template) -> None:
        taken = set("".join(template.parts[::2]))
        free = (mark for code in range(0xF0000, 0xFFFFE) if (mark := chr(code)) not in taken)
        self.of = {name: next(free) * MARK_LENGTH for name in dict.fromkeys(template.names)}
        self._names = {mark: name for name, mark in self.of.items()}
        self._pattern = re.compile(f"({'|'.join(self._names) or '(?!)'})")

    def template(self, text: str) -> Template:
        """The text taken apart at the marks in it."""
        parts = self._pattern.split(text)
        parts[1::2] = [self._names[mark] for mark in parts[1::2]]
        return Template(tuple(parts))

"""Days and times as people write them, in their own zone."""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mail.errors import FieldError, InvalidEmail


def zone_of(name: str) -> tzinfo:
    """An IANA zone, such as `Europe/Berlin`; UTC in the place of one that is not known here."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def day_of(text: str, zone: tzinfo) -> tuple[datetime, datetime]:
    """Where a day such as `2026-11-24` begins and ends. Raises InvalidEmail, which names `day`."""
    try:
        day = date.fromisoformat(text)
        return datetime.combine(day, time(), zone), datetime.combine(day + timedelta(days=1), time(), zone)
    except (ValueError, OverflowError):
        raise InvalidEmail([FieldError("day", "must be a day such as 2026-11-24")]) from None


def moment_of(field: str, text: str, zone: tzinfo) -> datetime:
    """A time such as `2026-11-24T18:30` in this zone. Raises InvalidEmail, which names `field`."""
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=zone)
    except ValueError:
        raise InvalidEmail([FieldError(field, "must be a time such as 2026-11-24T18:30")]) from None

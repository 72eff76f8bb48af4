"""smtplib's client, able to send several commands at once (RFC 2920)."""

import re
import smtplib


class SMTP(smtplib.SMTP):
    """`smtplib.SMTP` as it is, and `putcmds`."""

    def putcmds(self, *lines: str) -> None:
        """Send several commands in one go; their replies come in the same order, each by `getreply`.

        Raises:
            ValueError: a line has line breaks in it, as `putcmd` does.
            smtplib.SMTPServerDisconnected: not connected, or not any more.
        """
        self.send(self.commands(*lines))

    def commands(self, *lines: str) -> bytes:
        """These commands as they go over the wire. Raises ValueError as `putcmd` does."""
        if broken := next((line for line in lines if re.search(r"[\r\n]", line)), None):
            raise ValueError(f"command and arguments contain prohibited newline characters: {broken!r}")
        return "".join(f"{line}\r\n" for line in lines).encode(self.command_encoding)

"""SpamAssassin over complete mails: local rules only, no network, no learning, nothing kept."""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Straight from the worker to the recipient's server, which is how it also looks behind a relay that strips the hops
# before it: SpamAssassin has rules for that way alone.
RECEIVED = (
    b"Received: from mail.lms.example.com (mail.lms.example.com [93.184.215.14])\r\n"
    b"\tby mx.example.net (Postfix) with ESMTPS id 4xTq1B2yZzz9rxJ\r\n"
    b"\tfor <ada@example.com>; Thu, 31 Jan 2030 09:00:02 +0000 (UTC)\r\n"
)


class SpamScore(NamedTuple):
    """The score, and the rules that gave it with what each of them added."""

    score: float
    rules: dict[str, float]


def score(messages: Sequence[bytes]) -> list[SpamScore]:
    """The scores of the messages, in their order. One process for all: its start is nearly all it costs."""
    with tempfile.TemporaryDirectory(prefix="mail-spam-") as directory:
        files = [Path(directory, f"{number}.eml") for number in range(len(messages))]
        for file, message in zip(files, messages, strict=True):
            file.write_bytes(RECEIVED + message)
        ran = subprocess.run(
            [
                "spamassassin",
                "--local",
                "--nocreate-prefs",
                "--prefspath=/dev/null",
                "--cf=use_bayes 0",
                "--cf=add_header all Rules _SCORE_ _TESTSSCORES(,)_",
                *map(str, files),
            ],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            errors="replace",
            env={"PATH": os.environ["PATH"], "HOME": directory},
        )
    found = re.findall(r"^X-Spam-Rules: (\S+)\s*(.*(?:\n[ \t].*)*)", ran.stdout, re.MULTILINE)
    if len(found) != len(messages):
        raise RuntimeError(f"spamassassin answered for {len(found)} of {len(messages)} mails")
    return [
        SpamScore(
            float(total) + 0.0, {name: float(points) for name, points in re.findall(r"(\w+)=(-?[\d.]+)", rules)}
        )
        for total, rules in found
    ]


def version() -> str:
    """`4.0.1`."""
    said = subprocess.run(["spamassassin", "--version"], capture_output=True, check=True, text=True).stdout
    return said.split("version ")[1].split()[0]

"""The faults of the SMTP server (R5, R6): what every service is put to, and at the end what only ours is."""

import time
from collections.abc import Callable

from chaos.faults import WAIT, recovered
from chaos.tally import Lab, Tally
from support.processes import wait_until
from support.smtp_server import Authority, SmtpServer, Stage

# R5


def away(lab: Lab, *, seconds: float = 20, runs: int = 2) -> Tally:
    """The SMTP server refuses connections for so long."""
    tally = Tally()
    for _ in lab.runs(runs):
        with lab.stand() as stand:
            stand.load(200, rate=100)
            stand.wait_for_arrivals(20)
            stand.smtp.stop()
            last(lab, seconds)
            stand.smtp.start()
            recovered(tally, stand)
            tally.add(stand.account(timeout=90))
    return tally


def away_for_long(lab: Lab) -> Tally:
    """Ten minutes of it."""
    return away(lab, seconds=600, runs=1)


def last(lab: Lab, seconds: float) -> None:
    """The outage itself, a fifth of it in the short form."""
    time.sleep(seconds / 5 if lab.short else seconds)


# R6


class Once:
    """A rule's condition that holds for each recipient the first time."""

    def __init__(self, matches: Callable[[str], bool] = lambda to: True) -> None:
        self._matches = matches
        self._seen: set[str] = set()

    def __call__(self, to: str) -> bool:
        if to in self._seen or not self._matches(to):
            return False
        self._seen.add(to)
        return True


def tenth(to: str) -> bool:
    return to.endswith("5@example.com")


def cut(lab: Lab) -> Tally:
    """The server takes every tenth mail, and the connection breaks before it has said so."""
    tally = Tally()
    with lab.stand() as stand:
        stand.smtp.cut("dot-after-store", when=Once(tenth))
        stand.load(100 if lab.short else 300, rate=100)
        tally.add(stand.account(timeout=90))
    return tally


def asks_to_come_back(stage: Stage, reply: str) -> Callable[[Lab], Tally]:
    """A 4xx the first time for each recipient."""

    def fault(lab: Lab) -> Tally:
        tally = Tally()
        with lab.stand() as stand:
            stand.smtp.reply(stage, reply, when=Once())
            stand.load(60 if lab.short else 200)
            tally.add(stand.account(timeout=120))
        return tally

    return fault


def busy(lab: Lab) -> Tally:
    """421 to every connection for 20 seconds."""
    tally = Tally()
    for _ in lab.runs(2):
        with lab.stand() as stand:
            stand.load(60 if lab.short else 200, rate=100)
            stand.wait_for_arrivals(20)
            stand.smtp.reply("connect", "421 4.7.0 too many connections, try again later")
            stand.smtp.close_sessions()
            last(lab, 20)
            stand.smtp.clear()
            recovered(tally, stand)
            tally.add(stand.account(timeout=180))
    return tally


def refuses(stage: Stage, reply: str) -> Callable[[Lab], Tally]:
    """A 5xx for every tenth recipient; the remark says how often each was tried."""

    def fault(lab: Lab) -> Tally:
        tally = Tally()
        with lab.stand() as stand:
            tries: list[str] = []

            def refused_now(to: str) -> bool:
                if tenth(to):
                    tries.append(to)
                return tenth(to)

            stand.smtp.reply(stage, reply, when=refused_now)
            stand.load(60 if lab.short else 200)
            account = stand.account(timeout=60)
            refused = sum(tenth(one.to) for one in stand.asked())
            tally.add(account)
            if stand.service.records:
                reasons = {fate.reason for fate in stand.service.fates(account.failed).values()}
                tally.demand(all(reply in reason for reason in reasons), f"other reasons: {reasons}")
            named = len(account.failed) if stand.service.records else 0
            tally.remark = f"{len(tries)} attempts for {refused} refused; {named} named with the reason"
        return tally

    return fault


SMTP_FAULTS: dict[str, tuple[str, Callable[[Lab], Tally]]] = {
    "R5": ("SMTP server away for 20 s", away),
    "R6 cut": ("connection cut after the server took the mail (every tenth)", cut),
    "R6 421": ("421 to every connection for 20 s", busy),
    "R6 450": (
        "450 to the first final dot of each mail",
        asks_to_come_back("dot", "450 4.2.1 mailbox busy, come back later"),
    ),
    "R6 451": (
        "greylisting: 451 to the first RCPT",
        asks_to_come_back("rcpt", "451 4.7.1 greylisted, come back later"),
    ),
    "R6 550": ("550 to every tenth recipient", refuses("rcpt", "550 5.1.1 no such user")),
    "R6 552": ("552 to every tenth mail", refuses("dot", "552 5.2.2 mailbox full")),
}


# Only ours


def password_refused(lab: Lab) -> Tally:
    """535 to the password for half a minute: the operator changes it back."""
    tally = Tally()
    smtp = SmtpServer(auth=("lms", "right"))
    with lab.stand(smtp=smtp, SMTP_USERNAME="lms", SMTP_PASSWORD="right") as stand:
        load = stand.load(10_000, rate=20)
        stand.wait_for_arrivals(20)
        smtp.reply("auth", "535 5.7.8 authentication failed")
        smtp.close_sessions()
        last(lab, 30)
        tries = smtp.verbs().count("AUTH")
        smtp.clear()
        recovered(tally, stand)
        load.stop()
        tally.add(stand.account(timeout=WAIT))
        tally.remark = f"{tries} logins in all until it was mended"
    return tally


def certificate_expired(lab: Lab) -> Tally:
    """The certificate of the server is out of date for half a minute."""
    tally = Tally()
    lab.directory.mkdir(parents=True, exist_ok=True)
    authority = Authority(lab.directory)
    smtp = SmtpServer("starttls", certificate=authority.certificate())
    with lab.stand(smtp=smtp, SMTP_SECURITY="starttls", SMTP_CA_FILE=authority.ca_file) as stand:
        load = stand.load(10_000, rate=20)
        stand.wait_for_arrivals(20)
        smtp.show(authority.certificate(expired=True))
        wait_until(lambda: smtp.open_connections == 0, what="the sessions to end")
        before = len(stand.arrived())
        last(lab, 30)
        tally.demand(len(stand.arrived()) == before, "mails went to a server with an expired certificate")
        smtp.show(authority.certificate())
        recovered(tally, stand)
        load.stop()
        tally.add(stand.account(timeout=WAIT))
    return tally


def silent(lab: Lab) -> Tally:
    """The server takes every tenth mail, and says nothing for longer than SMTP_DATA_TIMEOUT."""
    tally = Tally()
    with lab.stand(SMTP_DATA_TIMEOUT="3") as stand:
        stand.smtp.delay("dot-after-store", 10, when=Once(tenth))
        stand.load(60 if lab.short else 200, rate=100)
        tally.add(stand.account(timeout=120))
    return tally


OURS_SMTP: dict[str, tuple[str, Callable[[Lab], Tally]]] = {
    "R5 10 min": ("SMTP server away for 10 min", away_for_long),
    "R6 535": ("535 to the password for 30 s", password_refused),
    "R6 TLS": ("an expired certificate for 30 s", certificate_expired),
    "R6 silent": ("no reply after the server took the mail (every tenth)", silent),
}

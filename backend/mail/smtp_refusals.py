"""What it most likely means that the SMTP server says no, says nothing, or does not offer what is needed.

No network: facts in, words out. `smtp_causes` has the words for what goes wrong on the way to it.
"""

from collections.abc import Mapping

from mail.errors import DeliveryError, OutcomeUnknown
from mail.smtp_causes import Advice, Diagnosis, Facts, lowered, not_smtp, other_port, without_tls
from mail.smtp_replies import Reply, Stage, fault, reason
from mail.smtp_session import may_auth_in_clear


def refused(facts: Facts, error: DeliveryError) -> Diagnosis:
    """A reply that says no, a line that broke in place of one, or a rule of ours that forbids to go on."""
    if error.code is None and error.reply:
        return not_smtp(facts, error.reply)
    if error.__cause__ is not None:
        return _broke(facts, error)
    stage = Stage(error.stage)
    if error.code is None:
        return _NOT_OFFERED[stage](facts)
    reply = Reply(error.code, error.reply)
    return Diagnosis(f'"{reply}"', *_REFUSED[stage](facts, reply))


def unsent(facts: Facts, error: DeliveryError) -> Diagnosis:
    """The real mail was not taken, though all steps before went well, on a connection before this one."""
    if isinstance(error, OutcomeUnknown):
        return Diagnosis(
            f"nothing: {error}",
            "Nobody knows whether the server took the mail: there was no answer to it.",
            f"Look into the inbox of {facts.recipient} and into the server's log.",
        )
    if error.code is None:
        return Diagnosis(
            f"nothing: {error}",
            "The steps before used another connection; the server may allow one only, or dropped this one.",
            "Try again, and look into the server's log.",
        )
    return refused(facts, error)


def silence(facts: Facts, error: DeliveryError) -> str:
    """What happened in place of an answer."""
    return f"nothing: {reason(fault(error.__cause__) or error, facts.config.timeout)}"


def _broke(facts: Facts, error: DeliveryError) -> Diagnosis:
    if isinstance(fault(error.__cause__), TimeoutError):
        return Diagnosis(
            silence(facts, error),
            "The server is overloaded, or lets this client wait on purpose.",
            "Wait longer: --timeout 60 (the workers wait SMTP_TIMEOUT seconds). Look into the server's log.",
        )
    return Diagnosis(
        silence(facts, error),
        "The server, or a device on the way (a firewall or virus scanner that reads SMTP), dropped the line.",
        "Try again, and look into the server's log. If it knows nothing of this, look at the devices on the way.",
    )


# What is not offered.


def _no_starttls(facts: Facts) -> Diagnosis:
    config = facts.config
    return Diagnosis(
        f"EHLO was answered without STARTTLS ({' '.join(facts.features).upper() or 'it offers nothing'})",
        f"SMTP_SECURITY=starttls demands TLS, and the server has none at {facts.port}; or a device on the way takes "
        "the offer out.",
        f"{other_port(config)}. {without_tls(config)}.",
    )


def _no_login(facts: Facts) -> Diagnosis:
    config = facts.config
    offered = facts.features.get("auth", "").strip().upper()
    said = f"EHLO was answered with {f'AUTH {offered}' if offered else 'no AUTH'}"
    if facts.starttls_unused:
        return Diagnosis(said, *_tls_first(facts))
    if not facts.encrypted and not may_auth_in_clear(config.host, config.security):
        return Diagnosis(
            "EHLO was answered without STARTTLS",
            f"The server has no TLS at {facts.port}, and a password is never sent in clear over a network. Yours was "
            "not sent.",
            f"{other_port(config)}. Only on a network that you trust: SMTP_SECURITY=none.",
        )
    if offered:
        return Diagnosis(
            said,
            "The server takes neither of the two kinds of login that this service knows, PLAIN and LOGIN.",
            "Switch one of them on at the server, or ask your provider for SMTP credentials (or an app password) "
            "that work with them.",
        )
    between = ", which is for mail between servers" if config.port == 25 else ""
    return Diagnosis(
        said,
        f"SMTP_USERNAME is set, and the server takes no login at {facts.port}{between}.",
        f"{other_port(config)}. If the server wants no login: empty SMTP_USERNAME and SMTP_PASSWORD.",
    )


def _no_room(facts: Facts) -> Diagnosis:
    if facts.sender.address.isascii() and facts.recipient.isascii():
        return Diagnosis(f"EHLO was answered with SIZE {facts.features.get('size')}", *_too_large())
    return Diagnosis(
        "EHLO was answered without SMTPUTF8",
        f"{facts.sender.address} or {facts.recipient} has letters beyond ASCII before the @, which this server "
        "cannot carry.",
        "Use addresses in ASCII for SMTP_MAIL_FROM and --to, or another server.",
    )


_NOT_OFFERED = {Stage.STARTTLS: _no_starttls, Stage.AUTH: _no_login, Stage.MAIL: _no_room}


# What is refused.


def _greeting(facts: Facts, reply: Reply) -> Advice:
    if reply.code // 100 == 4:
        return _busy()
    submission = "" if facts.config.port != 25 else f" Or: {lowered(other_port(facts.config))}."
    return (
        "The server takes no mail from this machine: its address is on a blocklist, or not among those allowed.",
        f"Let the server's postmaster allow the address of this machine, and quote the reply to them.{submission}",
    )


def _ehlo(facts: Facts, reply: Reply) -> Advice:
    if reply.code // 100 == 4:
        return _busy()
    if reply.code in {500, 502, 503, 530}:
        return (
            "Not an SMTP server: it does not know EHLO. FTP servers greet with 220 too.",
            f"{other_port(facts.config)}.",
        )
    return (
        "The server refuses the name that this machine gives in EHLO, or its address.",
        "Give this machine a full host name that DNS knows (hostname -f shows it), or let the server allow it.",
    )


def _starttls(facts: Facts, _: Reply) -> Advice:
    return (
        "The server offers STARTTLS and cannot do it: its certificate or key is missing or broken.",
        f"Look into the server's log. Or: {lowered(other_port(facts.config))}.",
    )


_PROVIDERS: Mapping[tuple[str, ...], str] = {
    ("gmail", "google"): "Google takes an app password only (Google Account, Security, 2-Step Verification, App "
    "passwords): SMTP_PASSWORD=<its 16 letters>, SMTP_USERNAME=<the full address>",
    (
        "office365",
        "outlook",
        "5.7.139",
    ): "Microsoft 365: switch on Authenticated SMTP for this mailbox (admin centre: the "
    "user, Mail, Manage email apps), and see that security defaults allow it; SMTP_USERNAME=<the full address>; with "
    "two-step sign-in SMTP_PASSWORD=<an app password>",
    (
        "amazonaws",
    ): "Amazon SES: make SMTP credentials in the SES console, for the region in SMTP_HOST; the secret of an "
    "access key is not the SMTP password",
    ("sendgrid",): "SendGrid: SMTP_USERNAME=apikey (that word), SMTP_PASSWORD=<an API key that may send mail>",
    ("mailgun",): "Mailgun: the SMTP credentials of the domain, and the SMTP_HOST of its region",
    ("postmark",): "Postmark: the server's API token, both as SMTP_USERNAME and as SMTP_PASSWORD",
}


def _auth(facts: Facts, reply: Reply) -> Advice:
    said = reply.text.lower()
    places = f"{facts.config.host.lower()} {said}"
    hint = next((hint for marks, hint in _PROVIDERS.items() if any(mark in places for mark in marks)), "")
    if reply.code // 100 == 4:
        return (
            "The server cannot check logins now, or has seen too many from this machine.",
            "Try again in some minutes; the workers do so by themselves. If it stays so, ask your provider.",
        )
    if reply.code in {530, 538}:
        return _tls_first(facts)
    if reply.code == 534 or "app password" in said or "application-specific" in said:
        return (
            "The server does not take the password of the account: it wants an app password.",
            f"{hint or 'Make an app password (or SMTP credentials) with your provider: SMTP_PASSWORD=<it>'}.",
        )
    if reply.code == 535:
        return (
            f"The user name or the password is wrong. Sent were SMTP_USERNAME={facts.user} and the SMTP_PASSWORD.",
            f"Correct SMTP_USERNAME (often the full address) or SMTP_PASSWORD. {hint or _PASSWORDS}.",
        )
    return (
        "The server refuses the login for the reason in its reply.",
        f"{hint or f'Follow the reply; see with your provider that {facts.user} may send by SMTP'}.",
    )


_PASSWORDS = (
    "In backend/.env, single quotes belong around a password with spaces or #, and a variable of the environment "
    "wins over the file. Many providers want an app password or SMTP credentials, not what you sign in with"
)


def _mail(facts: Facts, reply: Reply) -> Advice:
    if (advice := _whoever_sends(facts, reply)) is not None:
        return advice
    address, domain = facts.sender.address, facts.sender.domain
    nobodys = ""
    if domain.endswith((".test", ".example", ".invalid", ".local", "example.com", "example.org")):
        nobodys = f" {domain} is a name for examples and tests, which no server lets through."
    login = f", or does not belong to the login {facts.user}" if facts.user else ""
    such = f", such as {facts.user}" if "@" in facts.user else ""
    return (
        f"The server does not let you send as {address}: it (or {domain}) is not verified there{login}.{nobodys}",
        f"SMTP_MAIL_FROM=<an address that you may send as{such}>. Or verify {domain} with your provider.",
    )


def _rcpt(facts: Facts, reply: Reply) -> Advice:
    recipient, domain = facts.recipient, facts.recipient.rpartition("@")[2]
    said = reply.text.lower()
    if reply.code // 100 == 4:
        return (
            f"Not now: the server puts off the first mail of a stranger (greylisting), the mailbox of {recipient} is "
            "full, or the server is busy.",
            "Nothing to set. Try again in some minutes; the workers do so by themselves.",
        )
    if (advice := _login_wanted(facts, reply)) is not None:
        return advice
    if "relay" in said or said.startswith("5.7."):
        if not facts.config.username:
            return (
                f"Relaying denied: without a login this server takes mail for its own domains only, and {domain} is "
                "not one of them.",
                "Set SMTP_USERNAME and SMTP_PASSWORD; or let the server allow the address of this machine.",
            )
        return (
            f"Relaying denied: {facts.user} may not send to {domain} through this server.",
            "Ask your provider: a new account often may write to verified addresses only. On port 25, try the port "
            "for logins, SMTP_PORT=587.",
        )
    if not facts.recipient_chosen:
        return (
            f"The server knows no mailbox {recipient}. It is the sender's own address, asked for as there is no "
            "--to; a sender needs no mailbox to send.",
            "Run this again with --to and an address that exists.",
        )
    return (
        f"The server does not take mail for {recipient}: no such mailbox, or it is blocked there.",
        "Run this again with --to and another address. If all are refused, quote the reply to your provider.",
    )


def _message(facts: Facts, reply: Reply) -> Advice:
    if (advice := _whoever_sends(facts, reply)) is not None:
        return advice
    return (
        "Sender and recipient were taken, and the mail itself is refused: by a content filter, or because sender or "
        "recipient is not verified with the provider.",
        f"Verify {facts.sender.domain} with your provider (SPF, DKIM) and see whether your account may write to "
        "everybody yet. See that BRAND_URL is an address of yours.",
    )


def _whoever_sends(facts: Facts, reply: Reply) -> Advice | None:
    if reply.code == 552 or reply.text.startswith("5.3.4"):
        return _too_large()
    return _busy() if reply.code // 100 == 4 else _login_wanted(facts, reply)


def _login_wanted(facts: Facts, reply: Reply) -> Advice | None:
    said = reply.text.lower()
    if "starttls" in said and not facts.encrypted:
        return _tls_first(facts)
    if reply.code != 530 and (facts.user or "authenticat" not in said):
        return None
    if facts.user:
        return (
            f"The server wants a login that may send; {facts.user} has logged in and may not.",
            f"See with your provider that {facts.user} may send by SMTP, or set another SMTP_USERNAME.",
        )
    return "The server wants a login, and none is set.", "Set SMTP_USERNAME and SMTP_PASSWORD."


def _tls_first(facts: Facts) -> Advice:
    return (
        "The server wants TLS first, and this connection has none.",
        f"SMTP_SECURITY=starttls (now {facts.config.security})"
        if facts.starttls_unused
        else f"{other_port(facts.config)}.",
    )


def _busy() -> Advice:
    return (
        "The server is busy, or limits how often this machine may come.",
        "Try again in some minutes; the workers do so by themselves. If it stays so, ask your provider for your "
        "limits, and lower WORKER_CONCURRENCY.",
    )


def _too_large() -> Advice:
    return "The mail is larger than the server takes.", "Raise the limit of the server, or use another."


_REFUSED = {
    Stage.CONNECT: _greeting,
    Stage.EHLO: _ehlo,
    Stage.STARTTLS: _starttls,
    Stage.AUTH: _auth,
    Stage.MAIL: _mail,
    Stage.RCPT: _rcpt,
    Stage.DATA: _message,
    Stage.DOT: _message,
}

"""What a fault of the SMTP server most likely means, and which setting mends it. Pure: facts in, words out."""

import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from mail.errors import DeliveryError, OutcomeUnknown
from mail.message import Sender
from mail.smtp_replies import Reply, Stage, fault, reason
from mail.smtp_session import Security, SmtpConfig, is_local, may_auth_in_clear


class Diagnosis(NamedTuple):
    """One fault: what the server said or what came in place of it ("" if it was not asked), why, and what to do."""

    said: str
    cause: str
    fix: str


Advice = tuple[str, str]
"""Cause and fix."""


@dataclass(frozen=True)
class Facts:
    """What is known when a step fails. `user` is the login as a human may see it; `features` are the last EHLO's."""

    config: SmtpConfig
    sender: Sender
    recipient: str
    recipient_chosen: bool
    user: str
    features: Mapping[str, str]
    encrypted: bool

    @property
    def port(self) -> str:
        return f"port {self.config.port}"

    @property
    def starttls_unused(self) -> bool:
        return "starttls" in self.features and not self.encrypted


@dataclass(frozen=True)
class Certificate:
    """What a human wants to know of a server's certificate."""

    names: tuple[str, ...]
    issuer: str
    begins: datetime
    ends: datetime
    self_signed: bool

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Raises ValueError for what is not an X.509 certificate."""
        found = x509.load_der_x509_certificate(der)
        names: list[str] = []
        with suppress(x509.ExtensionNotFound):
            alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = [str(name.value) for name in alternatives]
        issuer = [
            str(attribute.value)
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
            for attribute in found.issuer.get_attributes_for_oid(oid)
        ]
        return cls(
            names=tuple(names),
            issuer=", ".join(issuer) or "an issuer without a name",
            begins=found.not_valid_before_utc,
            ends=found.not_valid_after_utc,
            self_signed=found.issuer == found.subject,
        )

    @property
    def days_left(self) -> int:
        return (self.ends - datetime.now(UTC)).days

    @property
    def shown_names(self) -> str:
        more = f" and {len(self.names) - 6} more" if len(self.names) > 6 else ""
        return ", ".join(self.names[:6]) + more if self.names else "no name"


# Settings.


def host_that_is_none(host: str) -> Diagnosis | None:
    """SMTP_HOST with a scheme, a port, a user or a space in it, as it comes from a URL or a manual."""
    if not re.search(r"[\s/@,]|^[^:]*:\d+$", host):
        return None
    parts = urlsplit(host if "//" in host else f"//{host}")
    try:
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    usable = name if name and re.fullmatch(r"[\w.-]+", name) else "smtp.example.com"
    return Diagnosis(
        "",
        "SMTP_HOST must be a host name or an address and nothing else: no scheme, port, user or space.",
        f"SMTP_HOST={usable}" + (f" and SMTP_PORT={port}" if port else ""),
    )


def ca_file_unusable(error: DeliveryError) -> Diagnosis:
    """SMTP_CA_FILE cannot be read, or holds no certificate."""
    return Diagnosis(
        "",
        f"SMTP_CA_FILE: {error}.",
        "Name a PEM file (it has a line -----BEGIN CERTIFICATE-----) that this user may read, or empty SMTP_CA_FILE.",
    )


def mismatches(config: SmtpConfig, sender: Sender) -> list[str]:
    """Settings that are allowed together, and rarely meant so."""
    port, security = config.port, config.security
    found = []
    if port == 465 and security in {Security.STARTTLS, Security.NONE}:
        found.append(f"port 465 speaks TLS from the start, SMTP_SECURITY={security} does not; usual is tls")
    if port in {25, 587, 2525} and security is Security.TLS:
        found.append(f"port {port} begins without TLS nearly everywhere; usual is SMTP_SECURITY=starttls")
    if port in {110, 143, 993, 995}:
        found.append(f"port {port} is for reading mail (IMAP, POP3), not for sending; usual are 587 and 465")
    if config.username and not config.password:
        found.append("SMTP_USERNAME is set and SMTP_PASSWORD is empty")
    if config.password and not config.username:
        found.append("SMTP_PASSWORD is set and SMTP_USERNAME is empty: there will be no login")
    if config.username and security is Security.NONE and not is_local(config.host):
        found.append("SMTP_SECURITY=none: the password goes over the network in clear")
    if sender.redirect_to:
        found.append(f"MAIL_REDIRECT_TO is set: all mail goes to {sender.redirect_to}, whomever it is for")
    return found


def other_port(config: SmtpConfig) -> str:
    """The advice to use the right port, without the one that is set."""
    usual = {587: "SMTP_PORT=587 with SMTP_SECURITY=starttls", 465: "SMTP_PORT=465 with SMTP_SECURITY=tls"}
    return "Set the port that your provider names, usually " + " or ".join(
        words for port, words in usual.items() if port != config.port
    )


# The way to the server.


def not_found(facts: Facts, error: Exception) -> Diagnosis:
    """The name leads to no address."""
    host = facts.config.host
    said = f"the name server: {getattr(error, 'strerror', None) or 'nothing'}"
    if isinstance(error, UnicodeError):
        said, cause = "", "This cannot be a host name: a part of it is empty or longer than 63 letters."
    elif isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
        cause = "No such name: it is misspelt, or known in another network only (a VPN, Docker)."
    else:
        cause = "The name server of this machine does not answer; or the name exists and has no address."
    return Diagnosis(
        said,
        cause,
        f"Correct SMTP_HOST (now {host}); your provider's manual has the right name. If it is right, mend the "
        f"network or the DNS of this machine, until this finds it: getent hosts {host}",
    )


def not_reached(facts: Facts, fates: Mapping[str, BaseException]) -> Diagnosis:
    """No address took a TCP connection. `fates`: what came of each, in words, with its error."""
    config, said, errors = facts.config, "; ".join(fates), fates.values()
    if any(isinstance(error, TimeoutError) for error in errors):
        blocked = " Most clouds and home networks block port 25 to the outside." if config.port == 25 else ""
        return Diagnosis(
            f"nothing ({said})",
            "Filtered: a firewall drops the packets, or no machine has this address. A port that is only closed "
            f"would have answered at once.{blocked}",
            f"Open TCP to {config.host} {facts.port} in the firewalls of this machine, its network and its cloud. "
            f"Or: {_lower(other_port(config))}.",
        )
    if not any(isinstance(error, ConnectionRefusedError) for error in errors):
        return Diagnosis(
            f"nothing ({said})",
            "No way leads from this machine to that address: its network is down, a firewall rejects the connection, "
            "or the address is an IPv6 one and this machine has no IPv6.",
            f"Let this machine have a network, and connect to {config.host} {facts.port}. Or correct SMTP_HOST.",
        )
    if is_local(config.host):
        return Diagnosis(
            said,
            f"Closed: nothing listens at {facts.port} of this machine. (In a container, {config.host} is the "
            "container itself.)",
            "Start your mail server (for development, ./start.sh starts an inbox there), or set SMTP_HOST and "
            "SMTP_PORT to the server you mean.",
        )
    return Diagnosis(
        said,
        f"Closed: the machine is there, and nothing listens at its {facts.port}.",
        f"{other_port(config)}. If the server is yours: start it, and let it listen on the network, not on its "
        "loopback only.",
    )


# What speaks there.

_OTHERS = {
    "SSH-": "an SSH server",
    "+OK": "a POP3 server, for reading mail,",
    "* ": "an IMAP server, for reading mail,",
    "HTTP/": "a web server",
    "<": "a web server",
}


def not_smtp(facts: Facts, words: str) -> Diagnosis:
    """Something else answered."""
    what = next((what for start, what in _OTHERS.items() if words.startswith(start)), "something that is not SMTP")
    return Diagnosis(
        f'"{words}"', f"Not an SMTP server: {what} listens at {facts.port}.", f"{other_port(facts.config)}."
    )


def tls_port(facts: Facts, said: str, greeting: str) -> Diagnosis:
    """The port speaks TLS from the start, and was spoken to in plain; `greeting` came on a second connection."""
    port, security = facts.port.capitalize(), facts.config.security
    if not greeting:
        return Diagnosis(
            said,
            f"Not an SMTP server: {facts.port} speaks TLS from the start (a second connection, with TLS, was taken), "
            "and no SMTP in it; a web server does so.",
            f"{other_port(facts.config)}.",
        )
    return Diagnosis(
        said,
        f"{port} speaks TLS from the start, and SMTP_SECURITY={security} begins without it. This is sure: a second "
        f'connection, with TLS, was greeted with "{greeting}".',
        "SMTP_SECURITY=tls",
    )


def plain_port(facts: Facts, greeting: str, features: Mapping[str, str]) -> Diagnosis:
    """The port speaks plain SMTP, and was asked for TLS; `greeting` and `features` came on a second connection."""
    config, port = facts.config, facts.port.capitalize()
    said = "an answer to the TLS handshake that is not TLS"
    sure = (
        f"{port} does not speak TLS from the start, and SMTP_SECURITY={config.security} begins with it. This is sure:"
        f' a second connection, without TLS, was greeted with "{greeting}"'
    )
    if "starttls" in features:
        return Diagnosis(said, f"{sure} and offered STARTTLS.", "SMTP_SECURITY=starttls")
    return Diagnosis(
        said,
        f"{sure}. It offered no STARTTLS either: the server has no TLS at this port.",
        f"{other_port(config)}. {_without_tls(config)}.",
    )


def _without_tls(config: SmtpConfig) -> str:
    # `auto` takes port 465 for TLS, and sends no password in clear to another machine.
    demanding = config.port == 465 or (config.username and not is_local(config.host))
    security = Security.NONE if demanding else Security.AUTO
    return f"Only on a network that you trust: SMTP_SECURITY={security}, which sends without TLS here"


def silent(facts: Facts, said: str) -> Diagnosis:
    """Connected, and no greeting, neither in plain nor with TLS."""
    return Diagnosis(
        said,
        f"Something holds {facts.port} open and does not greet: a server that hangs or is full, a proxy with nothing "
        "behind it, or no SMTP server. A second connection, the other way (with TLS or without), brought no more.",
        "Look into the server's log; it may make strangers wait: --timeout 60. If it is not yours: "
        f"{_lower(other_port(facts.config))}.",
    )


# TLS.


# OpenSSL's X509_V_ERR_* (x509_vfy.h), for which Python has no names.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64


def untrusted(facts: Facts, error: ssl.SSLCertVerificationError, certificate: Certificate | None) -> Diagnosis:
    """The certificate did not pass. `certificate` was read on a second connection, which carried no login."""
    said = f"a certificate that does not pass: {error.verify_message.rstrip('.')}"
    if certificate is None:
        return Diagnosis(said, "It could not be read on a second connection.", f"Look at it: {_fetch(facts)}")
    said += f" (for {certificate.shown_names}; issued by {certificate.issuer})"
    clock = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    match error.verify_code:
        case code if code == _EXPIRED and certificate.days_left < 0:
            return Diagnosis(
                said,
                f"The certificate expired on {certificate.ends:%Y-%m-%d %H:%M} UTC; {clock}.",
                "Renew the certificate on the server, and let the server load it. If the clock is wrong, set it. No "
                "setting here mends it.",
            )
        case code if code == _NOT_YET_VALID and certificate.begins > datetime.now(UTC):
            return Diagnosis(
                said,
                f"The certificate is not valid before {certificate.begins:%Y-%m-%d %H:%M} UTC; {clock}.",
                "If the clock is wrong, set it. Else give the server another certificate. No setting here mends it.",
            )
        case code if code in {_EXPIRED, _NOT_YET_VALID}:
            return Diagnosis(
                said,
                f"Not the server's own certificate, but one above it is out of date; {clock}.",
                "Renew the chain on the server, or the certificate in SMTP_CA_FILE. If the clock is wrong, set it.",
            )
        case code if code in {_WRONG_NAME, _WRONG_ADDRESS}:
            return Diagnosis(said, *_wrong_name(facts.config.host, certificate))
    if certificate.self_signed:
        return Diagnosis(
            said,
            "The certificate is self-signed, so nobody vouches for it.",
            "If the server is yours: SMTP_CA_FILE=<that certificate, as a PEM file>. Else ask whose it is. To see "
            f"it: {_fetch(facts)}",
        )
    return Diagnosis(
        said,
        f"The issuer {certificate.issuer} is not known here: it is a private CA, or the server does not send the "
        "certificates between its own and a public CA.",
        "For a private CA: SMTP_CA_FILE=<the certificate of that CA, as a PEM file>. Else let the server send its "
        f"full chain. To see what it sends: {_fetch(facts)}",
    )


def _wrong_name(host: str, certificate: Certificate) -> Advice:
    if not certificate.names:
        return (
            "The certificate has no subjectAltName, and its common name does not count (RFC 9525).",
            f"Give the server a certificate with the subjectAltName {host}.",
        )
    usable = [name for name in certificate.names if "*" not in name]
    name = f"SMTP_HOST={usable[0]}" if len(usable) == 1 else "set SMTP_HOST to one of the names"
    return (
        f"Wrong name: SMTP_HOST is {host}, and the certificate is for {certificate.shown_names}.",
        f"If that is the server you mean: {name}. Else give the server a certificate for {host}.",
    )


def _fetch(facts: Facts) -> str:
    how = "" if facts.config.tls_from_start else " -starttls smtp"
    return f"openssl s_client -connect {facts.config.host}:{facts.config.port}{how} -showcerts"


def handshake_failed(facts: Facts, error: BaseException | None) -> Diagnosis:
    """TLS broke, and neither for the certificate nor for a plain port."""
    name = (error.reason or "").upper() if isinstance(error, ssl.SSLError) else ""
    said = f"to the TLS handshake: {reason(error or ConnectionError(), facts.config.timeout)}"
    if "CERTIFICATE_REQUIRED" in name or "BAD_CERTIFICATE" in name:
        return Diagnosis(
            said,
            "The server wants a certificate of ours (mutual TLS), and this service has none.",
            "Let the server take a user name and a password in its place, or use another port of it.",
        )
    if any(word in name for word in ("PROTOCOL", "HANDSHAKE_FAILURE", "TOO_SMALL", "CIPHER", "DIGEST", "TOO_WEAK")):
        return Diagnosis(
            said,
            "No safe way of TLS in common: the server's is older than TLS 1.2, or its keys are too short.",
            "Update the server or its TLS set-up, or use another server of your provider. No setting here mends it.",
        )
    return Diagnosis(
        said,
        "The handshake was broken off: a fault of the server's TLS, or a device on the way that breaks TLS.",
        f"Look into the server's log. To see the handshake: {_fetch(facts)}",
    )


# Replies.


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
        f"{other_port(config)}. {_without_tls(config)}.",
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
    submission = "" if facts.config.port != 25 else f" Or: {_lower(other_port(facts.config))}."
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
        f"Look into the server's log. Or: {_lower(other_port(facts.config))}.",
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
    if reply.code == 552 or reply.text.startswith("5.3.4"):
        return _too_large()
    if reply.code // 100 == 4:
        return _busy()
    if (advice := _login_wanted(facts, reply)) is not None:
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
    if reply.code == 552 or reply.text.startswith("5.3.4"):
        return _too_large()
    if reply.code // 100 == 4:
        return _busy()
    if (advice := _login_wanted(facts, reply)) is not None:
        return advice
    return (
        "Sender and recipient were taken, and the mail itself is refused: by a content filter, or because sender or "
        "recipient is not verified with the provider.",
        f"Verify {facts.sender.domain} with your provider (SPF, DKIM) and see whether your account may write to "
        "everybody yet. See that BRAND_URL is an address of yours.",
    )


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


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]

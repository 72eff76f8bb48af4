"""What a fault on the way to the SMTP server most likely means, and which setting mends it.

No network: facts in, words out. `smtp_refusals` has the words for what the server itself refuses.
"""

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

from mail.errors import DeliveryError
from mail.message import Sender
from mail.smtp_replies import reason
from mail.smtp_session import Security, SmtpConfig, is_local


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
            f"Or: {lowered(other_port(config))}.",
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
        f"{other_port(config)}. {without_tls(config)}.",
    )


def without_tls(config: SmtpConfig) -> str:
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
        f"{lowered(other_port(facts.config))}.",
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


def lowered(sentence: str) -> str:
    """To stand inside another sentence."""
    return sentence[0].lower() + sentence[1:]

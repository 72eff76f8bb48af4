"""`python test_smtp.py`: does the SMTP server of the settings take our mail, and if not, why not?

Goes to the server step by step, as the workers do, and stops at the first step that fails, with what the server said,
the likely cause and the fix. Sends nothing, unless --to names a recipient. The exit code tells the step.
"""

import argparse
import sys

try:
    from dataclasses import replace

    from jinja2 import TemplateError
    from pydantic import TypeAdapter, ValidationError

    from mail.delivery import Delivery
    from mail.errors import ConfigurationError
    from mail.fields import Address
    from mail.kinds import CustomEmail
    from mail.smtp_causes import Diagnosis
    from mail.smtp_check import Failed, Result, SmtpCheck, Step
    from settings import get_settings
    from terminal import GREEN, RED, YELLOW, coloured, run, say, wrapped
    from utils.composition import get_sender, get_service, get_smtp_config
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Run it with the service's Python: ../.venv/bin/python test_smtp.py")
except KeyboardInterrupt:
    sys.exit(130)

TIMEOUT = 10.0
COLOURS = {"ok": GREEN, "warn": YELLOW, "FAIL": RED}


def main() -> int:
    """The exit code: 0, or the value of the step that failed."""
    options = _options()
    try:
        config, sender = get_smtp_config(), get_sender()
    except ConfigurationError as error:
        wrong = Diagnosis("", str(error), "Correct these settings, and run this again.")
        return _show(Result(Step.SETTINGS, 0, failure=wrong))
    check = SmtpCheck(
        replace(config, timeout=options.timeout),
        sender,
        to=options.to,
        send=(lambda: _send(options.to)) if options.to else None,
    )
    say(f"To {config.host} port {config.port}, step by step; no answer is awaited longer than {options.timeout:g} s.")
    say("")
    greeting = ""
    for result in check.run():
        if result.step is Step.GREETING:
            greeting = " ".join(result.found)
        if code := _show(result):
            return code
    say("")
    if options.to:
        say(f"All is well. Look {_where(sender.redirect_to or options.to, greeting)}.")
    else:
        say("All is well; nothing was sent. To send a real mail add: --to you@example.com")
    return 0


def _send(to: str) -> Delivery:
    service = get_service()
    email = CustomEmail(
        to=to,
        subject="A test: mail arrives",
        html="<p>This mail was sent with <strong>test_smtp.py</strong>, to see whether mail arrives and how it "
        "looks. There is nothing to do.</p>",
    )
    try:
        return service.deliver(email)
    except TemplateError as error:
        broken = f"The mail cannot be made from its template: {error}"
        raise Failed(Diagnosis("", broken, "Mend backend/templates/emails.")) from error
    finally:
        service.close()


def _where(recipient: str, greeting: str) -> str:
    if "development inbox" in greeting:
        return f"at http://127.0.0.1:{get_settings().inbox_port}, the page of the development inbox"
    return f"into the inbox of {recipient} (and into its spam folder)"


def _show(result: Result) -> int:
    """Prints a step; returns its exit code if it failed, else 0."""
    mark = "FAIL" if result.failure else "ok"
    first, *rest = result.found or ("",)
    say(f"{_mark(mark)}  {result.step.title:<9} {result.seconds * 1000:>6.0f} ms  {first}".rstrip())
    for line in rest:
        say(f"{'':<27}{line}")
    for line in result.warnings:
        say(f"{_mark('warn')}{'':<23}{line}")
    if result.failure is None:
        return 0
    say("")
    for title, text in zip(("The server said", "Likely cause", "Fix"), result.failure, strict=True):
        if text:
            say(f"  {title:<17}{wrapped(text, 19)}")
    say(f"\nFailed at {result.step.title} (exit code {result.step.value}). All codes: --help")
    return result.step.value


def _mark(word: str) -> str:
    return coloured(f"{word:<4}", COLOURS[word])


def _options() -> argparse.Namespace:
    codes = "\n".join(f"  {step.value:>3}  {step.title:<10} {step.fault}" for step in Step)
    parser = argparse.ArgumentParser(
        prog="python test_smtp.py",
        description="Goes to the SMTP server of the settings step by step, as the workers do. Names the step that\n"
        "fails, the likely cause and the fix. Sends nothing without --to. Never prints the password.",
        epilog="exit codes:\n    0  all is well\n    1  Python or its packages are not right\n"
        f"    2  a wrong argument\n{codes}\n  130  stopped with Ctrl-C\n\n"
        "Settings come from the environment, then from backend/.env. More: docs/smtp.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", metavar="ADDRESS", type=_address, help="send a real mail to this address")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=TIMEOUT,
        help=f"the longest wait for each answer (default {TIMEOUT:g}; the workers wait SMTP_TIMEOUT)",
    )
    return parser.parse_args()


def _address(text: str) -> str:
    try:
        return TypeAdapter[str](Address).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError("must be one email address, such as ada@example.com") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0, such as 10")
    return seconds


if __name__ == "__main__":
    run(main)

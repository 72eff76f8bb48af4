"""What ./start.sh says when everything is ready: where to look, what runs where, and a first mail to send."""

import json
import os
import shlex
from collections.abc import Set as AbstractSet

from dev.stack.plan import Plan, redis_place
from dev.stack.ports import local
from dev.stack.supervisor import LOG
from env_file import shown
from settings import ENV_FILE, Scope, Settings
from utils.composition import get_brand, get_sessions


def banner(settings: Settings, plan: Plan, seconds: float) -> str:
    """All of it, in 80 columns but for what is pasted."""
    api = f"http://{local(settings.api_host)}:{settings.api_port}"
    inbox = "inbox" in plan.programs
    rows = {
        "Console": f"{api}/console",
        "API": f"{api}/docs",
        "Flower": f"http://{local(settings.flower_address)}:{settings.flower_port}",
        "Inbox": f"http://127.0.0.1:{settings.inbox_port}" if inbox else "",
        "Redis": f"{redis_place(settings)}, {_origin('valkey' in plan.programs)}",
        "SMTP": f"{settings.smtp_host}:{settings.smtp_port}, {_origin(inbox)}",
        "Log": shown(LOG),
        "API key": "API_KEYS in " + ("the environment" if os.environ.get("API_KEYS") else shown(ENV_FILE)),
    }
    key = find_key(settings, {Scope.SEND})
    if key:
        body = json.dumps({"kind": "welcome", "to": "ada@example.com", "name": "Ada"})
        words = ["curl", "-sS", f"{api}/api/emails", "-H", f"Authorization: Bearer {key}"]
        command = shlex.join([*words, "-H", "Content-Type: application/json", "-d", body])
        first = f"Send a first mail from another terminal:\n\n  {command}"
    else:
        rows["API key"] = "none that may send: set API_KEYS (README.md, Keys)"
        first = "The HTTP API takes no mail until then."
    rows["Note"] = get_brand().notice or ""
    table = "\n".join(f"  {name:<8} {place}" for name, place in rows.items() if place)
    stop = "Is something wrong? cd backend && ../.venv/bin/python doctor.py\n"
    stop += "Ctrl-C stops everything. Records stay in .run/; the inbox is emptied."
    return f"\nReady in {seconds:.0f} s.\n\n{table}\n\n{first}{_sign_in(settings, api)}\n\n{stop}\n"


def _sign_in(settings: Settings, api: str) -> str:
    reader = next((caller for caller in settings.keys if Scope.READ in caller.scopes), None)
    if not (settings.development and reader):
        return ""
    return f"\n\nSign in to the console, once:\n\n  {api}/console/sign-in?once={get_sessions().link(reader)}"


def _origin(ours: bool) -> str:
    return "started here" if ours else "not started here"


def find_key(settings: Settings, scopes: AbstractSet[Scope]) -> str | None:
    """The first key with these scopes, in clear: settings keep digests only."""
    return next((key for caller, key in settings.keys_in_clear if scopes <= caller.scopes), None)

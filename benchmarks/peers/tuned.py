"""The yardstick's better half: every setting that Celery offers against losing tasks on Redis, set as advised.

    uvicorn tuned:api               celery -A tuned worker -Q tuned

Late acknowledgement, rejection on a lost worker, prefetch 1, a short visibility timeout that is looked at often, soft
shutdown, socket timeouts, many retries with a short backoff, and no retry of what is refused for good. It is run with
`appendfsync always`.
"""

import os
import smtplib
from email.message import EmailMessage
from typing import Any

from celery import Celery, Task
from fastapi import FastAPI
from jinja2 import Template
from pydantic import BaseModel

celery = Celery("tuned", broker=os.environ["REDIS_URL"])
celery.conf.update(
    task_default_queue="tuned",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_soft_shutdown_timeout=8.0,
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    task_publish_retry=False,
    broker_transport_options={
        "visibility_timeout": 20,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
)
api = FastAPI()

BODY = Template("<h1>Welcome, {{ name }}</h1><p><a href='{{ link }}'>Choose a password</a></p>", autoescape=True)


class Mail(BaseModel):
    """What is asked for."""

    to: str
    name: str
    link: str


@celery.task(bind=True, max_retries=20)
def send_email(self: "Task[..., Any]", to: str, name: str, link: str) -> None:
    """Renders and sends one mail; tries again unless the server refuses it for good."""
    message = EmailMessage()
    message["Subject"] = "Welcome"
    message["From"] = "no-reply@lms.example.com"
    message["To"] = to
    message["Message-ID"] = f"<{self.request.id}@lms.example.com>"
    message.set_content(f"Welcome, {name}. Choose a password: {link}")
    message.add_alternative(BODY.render(name=name, link=link), subtype="html")
    try:
        with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"]), timeout=30) as smtp:
            smtp.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        if any(code >= 500 for code, _ in error.recipients.values()):
            raise
        raise self.retry(exc=error, countdown=_backoff(self)) from error
    except OSError as error:
        raise self.retry(exc=error, countdown=_backoff(self)) from error


def _backoff(task: "Task[..., Any]") -> int:
    seconds: int = 2 ** int(task.request.retries or 0)
    return min(15, seconds)


@api.post("/emails", status_code=202)
def accept(mail: Mail) -> dict[str, str]:
    """Queues one mail."""
    return {"id": send_email.delay(mail.to, mail.name, mail.link).id}


@api.get("/health")
def health() -> dict[str, str]:
    """For whoever waits for the start."""
    return {"status": "ok"}

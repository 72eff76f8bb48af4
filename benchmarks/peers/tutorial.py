"""The yardstick: what tutorials of FastAPI, Celery and Redis show for sending mail.

    uvicorn tutorial:api            celery -A tutorial worker -Q tutorial

Celery's defaults, and the two options for retries that its documents show first.
"""

import os
import smtplib
from email.message import EmailMessage

from celery import Celery
from fastapi import FastAPI
from jinja2 import Template
from pydantic import BaseModel

celery = Celery("tutorial", broker=os.environ["REDIS_URL"])
celery.conf.task_default_queue = "tutorial"
api = FastAPI()

BODY = Template("<h1>Welcome, {{ name }}</h1><p><a href='{{ link }}'>Choose a password</a></p>", autoescape=True)


class Mail(BaseModel):
    """What is asked for."""

    to: str
    name: str
    link: str


@celery.task(autoretry_for=(Exception,), retry_backoff=True)
def send_email(to: str, name: str, link: str) -> None:
    """Renders and sends one mail over a connection of its own."""
    message = EmailMessage()
    message["Subject"] = "Welcome"
    message["From"] = "no-reply@lms.example.com"
    message["To"] = to
    message.set_content(f"Welcome, {name}. Choose a password: {link}")
    message.add_alternative(BODY.render(name=name, link=link), subtype="html")
    with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"])) as smtp:
        smtp.send_message(message)


@api.post("/emails", status_code=202)
def accept(mail: Mail) -> dict[str, str]:
    """Queues one mail."""
    return {"id": send_email.delay(mail.to, mail.name, mail.link).id}


@api.get("/health")
def health() -> dict[str, str]:
    """For whoever waits for the start."""
    return {"status": "ok"}

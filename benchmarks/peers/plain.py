"""What the accepting of mails is compared with: a route that does nothing, Celery's own `.delay()`, sending in the
request.

    uvicorn plain:api
"""

import os
import smtplib
from email.message import EmailMessage

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

celery = Celery("plain", broker=os.environ["REDIS_URL"])
celery.conf.update(task_default_queue="plain", task_ignore_result=True)
api = FastAPI()


class Mail(BaseModel):
    to: str
    name: str


@celery.task
def send(to: str, name: str) -> None:
    pass


@api.post("/empty", status_code=202)
async def empty(mail: Mail) -> dict[str, str]:
    return {"id": "1", "state": "queued"}


@api.post("/delay", status_code=202)
def delay(mail: Mail) -> dict[str, str]:
    return {"id": send.delay(mail.to, mail.name).id, "state": "queued"}


@api.post("/inline")
def inline(mail: Mail) -> dict[str, str]:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = "Welcome", "no-reply@lms.example.com", mail.to
    message.set_content(f"Welcome, {mail.name}")
    with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"])) as smtp:
        smtp.send_message(message)
    return {"state": "sent"}

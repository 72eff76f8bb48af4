"""`/console`: pages for the people round an LMS. Rendered here, with a little JavaScript of our own."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from api.console import actions, batches, compose, dead_letters, emails, gallery, inbox, overview, sign_in

FILES = Path(__file__).parent / "files"


def install(app: FastAPI) -> None:
    """Serve the pages."""
    app.mount("/console/files", StaticFiles(directory=FILES))
    for room in (sign_in, overview, emails, compose, batches, dead_letters, gallery, inbox, actions):
        app.include_router(room.router)

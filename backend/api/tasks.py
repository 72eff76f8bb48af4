"""`/api/tasks/{id}`: an email's status in Celery's words."""

from fastapi import APIRouter, Depends

from api.auth import DESCRIBED, KeyedRoute, requires
from api.problems import responses
from mail.errors import UnknownEmail
from settings import Scope
from utils.email_async import TaskStatus, get_task_status

router = APIRouter(prefix="/api/tasks", tags=["tasks"], route_class=KeyedRoute, dependencies=DESCRIBED)


@router.get(
    "/{task_id}",
    summary="Task status",
    responses=responses(401, 403, 404, 429, 500, 503),
    dependencies=[Depends(requires(Scope.READ))],
)
def task_status(task_id: str) -> TaskStatus:
    """`status` is Celery's word, `state` the outbox's."""
    status = get_task_status(task_id)
    if status["status"] == "UNKNOWN":
        raise UnknownEmail
    return status

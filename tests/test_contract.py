"""The forms that people import, kept equal to the kinds: a new kind fails here until everything it needs exists.

Each failure prints what to paste, and where.
"""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import pytest

import tasks.email_tasks
import utils.email
import utils.email_async
from api.schemas import EXAMPLES
from mail.brand import Brand
from mail.fields import Link, Name, Secret
from mail.kinds import KINDS, Category, Email, Lane, parse
from mail.rendering import Renderer
from support.processes import BACKEND

TEMPLATES = BACKEND / "templates" / "emails"
GOLDEN = Path(__file__).parent / "golden"
OPTIONS = ("reply_to", "from_name")
QUEUE_OPTIONS = {"send_at": "datetime | None", "expires_at": "datetime | None", "idempotency_key": "str | None"}
RENDERER = Renderer(TEMPLATES, Brand("Academy", "https://lms.example.com", "help@lms.example.com", "", "#1f5eff"))

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# What each form must be


def plain(annotation: Any) -> str:
    """A field's type as a signature has it, without pydantic's marks: `str`, `str | None`."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_args(annotation):
        return " | ".join(plain(one) for one in get_args(annotation))
    return "None" if annotation is type(None) else str(annotation.__name__)


class Form:
    """One hand-written form of a kind: its name, its parameters, and the code that makes it right."""

    def __init__(self, kind: type[Email], suffix: str) -> None:
        self.kind = kind
        self.suffix = suffix
        self.queued = suffix == "_async"
        self.module: types.ModuleType = utils.email_async if self.queued else utils.email
        self.name = f"send_{kind.noun()}{suffix}"
        self.returns = "str" if self.queued else "Delivery"

    @property
    def positional(self) -> dict[str, str]:
        """`to` and the kind's own fields, in their order, as they stand in a signature."""
        own = {name: self.kind.model_fields[name] for name in ("to", *self.kind.template_fields())}
        return {
            name: plain(field.annotation) + ("" if field.is_required() else f" = {field.default!r}")
            for name, field in own.items()
        }

    @property
    def keywords(self) -> dict[str, str]:
        options = dict.fromkeys(OPTIONS, "str | None") | (QUEUE_OPTIONS if self.queued else {})
        return {name: f"{annotation} = None" for name, annotation in options.items()}

    @property
    def expected(self) -> list[str]:
        return [*(f"{name}: {kind}" for name, kind in self.positional.items()), "*"] + [
            f"{name}: {kind}" for name, kind in self.keywords.items()
        ]

    @property
    def found(self) -> list[str]:
        parameters = inspect.signature(getattr(self.module, self.name)).parameters.values()
        written: list[str] = []
        for one in parameters:
            if one.kind is one.KEYWORD_ONLY and "*" not in written:
                written.append("*")
            written.append(str(one).replace("datetime.datetime", "datetime"))
        return written

    @property
    def snippet(self) -> str:
        given = ", ".join(f"{name}={name}" for name in (*self.positional, *OPTIONS))
        email = f"new({self.kind.__name__}, {given})"
        if self.queued:
            options = ", ".join(f"{name}={name}" for name in QUEUE_OPTIONS)
            body = f"    email = {email}\n    return enqueue(email, {options}).id"
        else:
            body = f"    return {'send_sync' if self.suffix else 'await send'}({email})"
        head = "def" if self.suffix else "async def"
        parameters = "".join(f"    {one},\n" for one in self.expected)
        doc = (self.kind.__doc__ or "").splitlines()[0]
        return f'{head} {self.name}(\n{parameters}) -> {self.returns}:\n    """{doc}"""\n{body}\n'

    def paste(self, why: str) -> str:
        file = Path(str(self.module.__file__)).relative_to(BACKEND)
        return (
            f"{why}\n\nPaste into backend/{file}, and format:\n\n{self.snippet}\n"
            f'Its __all__ needs "{self.name}", its imports from mail.kinds need {self.kind.__name__}.'
        )


every_form = pytest.mark.parametrize("suffix", ["", "_sync", "_async"], ids=["await", "sync", "queued"])


# The checks, which further below are also run on what is wrong


def require(condition: object, message: str) -> None:
    """Like assert, but prints the message as it is, ready to be pasted."""
    if not condition:
        pytest.fail(message, pytrace=False)


def check_form(form: Form) -> None:
    function = getattr(form.module, form.name, None)
    require(function, form.paste(f"{form.name} does not exist."))
    require(
        form.found == form.expected,
        form.paste(
            f"{form.name} has other parameters than {form.kind.__name__} has fields.\n"
            f"  found:    {', '.join(form.found)}\n  expected: {', '.join(form.expected)}"
        ),
    )
    is_async = inspect.iscoroutinefunction(function)
    require(is_async == (form.suffix == ""), form.paste(f"{form.name}: def or async def?"))
    returns = inspect.signature(function).return_annotation
    require(getattr(returns, "__name__", returns) == form.returns, form.paste(f"{form.name} returns {returns}."))
    require(inspect.getdoc(function), form.paste(f"{form.name} has no docstring."))
    require(form.name in form.module.__all__, form.paste(f"{form.name} is not in __all__ of {form.module.__name__}."))


def check_task(kind: type[Email]) -> None:
    name = f"send_{kind.noun()}_task"
    require(
        f"tasks.email_tasks.{name}" in tasks.email_tasks.app.tasks and hasattr(tasks.email_tasks, name),
        f"There is no task tasks.email_tasks.{name}.\n\nPaste into backend/tasks/email_tasks.py:\n\n"
        f"{name} = _sends({kind.__name__})\n",
    )


def check_templates(kind: type[Email]) -> None:
    word = kind.name_of_kind()
    for suffix in ("html", "txt"):
        path = TEMPLATES / f"{word}.{suffix}"
        require(
            path.is_file(), f"Write backend/{path.relative_to(BACKEND)}; welcome.{suffix} beside it is a pattern."
        )
    undeclared = RENDERER.fields_used(kind) - set(kind.template_fields())
    require(not undeclared, f"The templates of {word} read what {kind.__name__} does not declare: {undeclared}")
    for suffix in ("html", "txt"):
        command = "UPDATE_GOLDEN=1 ./test.sh tests/mail/test_rendering.py"
        require(
            (GOLDEN / f"{word}.{suffix}").is_file(),
            f"tests/golden/{word}.{suffix} is missing; write it with\n{command}",
        )


@every_form
@every_kind
def test_form(kind: type[Email], suffix: str) -> None:
    check_form(Form(kind, suffix))


@every_kind
def test_task(kind: type[Email]) -> None:
    check_task(kind)


@pytest.mark.parametrize("module", [utils.email, utils.email_async])
def test_nothing_is_left_of_a_kind_that_is_gone(module: types.ModuleType) -> None:
    known = {Form(kind, suffix).name for kind in KINDS.values() for suffix in ("", "_sync", "_async")}
    known |= {"send_bulk_email", "send_bulk_email_sync", "send_bulk_emails_async"}
    found = {name for name in dir(module) if name.startswith("send_") and name != "send_sync"}
    assert found <= known
    assert set(module.__all__) <= set(dir(module))
    sends = {name for name in tasks.email_tasks.app.tasks if name.startswith("tasks.email_tasks.")}
    of_kinds = {f"tasks.email_tasks.send_{kind.noun()}_task" for kind in KINDS.values()}
    assert sends == {*of_kinds, "tasks.email_tasks.send_bulk_chunk_task"}


@every_kind
def test_kind(kind: type[Email]) -> None:
    word = kind.name_of_kind()
    assert word.isidentifier()
    assert word.islower()
    assert kind.__doc__, f"{kind.__name__} needs a docstring: OpenAPI shows its first line"
    assert isinstance(kind.lane, Lane)
    assert isinstance(kind.category, Category)
    assert "subject" in kind.model_fields or isinstance(getattr(kind, "subject", None), str), "no subject"
    assert kind.valid_for is not None or not kind.secret_fields(), "a secret must end: set valid_for"
    for name, field in kind.model_fields.items():
        if any(isinstance(mark, Secret) for mark in field.metadata):
            assert name in kind.secret_fields()


@every_kind
def test_sample(kind: type[Email]) -> None:
    sample = kind.sample()
    assert type(sample) is kind
    assert parse(sample.model_dump(mode="json")) == sample
    assert parse(sample.model_dump(mode="json", exclude_none=True)) == sample
    assert EXAMPLES[kind.name_of_kind()]["value"] == sample.model_dump(mode="json", exclude_none=True)
    for name in sample.secret_fields():
        assert getattr(sample, name) not in repr(sample)
        assert sample.redacted()[name] == "***"
    assert sample.to not in repr(sample)


@every_kind
def test_templates(kind: type[Email]) -> None:
    check_templates(kind)


@every_kind
def test_request_in_openapi(kind: type[Email], configure: Any) -> None:
    from main import create_app
    from settings import get_settings

    document = create_app(get_settings()).openapi()
    word = kind.name_of_kind()
    content = document["paths"]["/api/emails"]["post"]["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["discriminator"]["mapping"][word].rpartition("/")[2]]
    assert set(schema["properties"]) == {*kind.model_fields, "send_at", "expires_at"}
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    assert set(schema["required"]) - {"kind"} == required
    assert content["examples"][word]["value"]["kind"] == word


# The checks can fail, and what they print works


class LessonEmail(Email):
    """Tells a person that a lesson is open."""

    kind: Literal["lesson"] = "lesson"
    name: Name
    lesson_url: Link
    note: Name | None = None

    @classmethod
    def sample(cls) -> Self:
        return cls(to="ada@example.com", name="Ada", lesson_url="https://lms.example.com/lessons/1")


def module_with(form: Form, source: str) -> types.ModuleType:
    """The form's module with the form written another way."""
    module = types.ModuleType(form.module.__name__)
    module.__dict__.update({**vars(form.module), form.kind.__name__: form.kind})
    module.__dict__.pop(form.name, None)
    module.__dict__["__all__"] = [*form.module.__all__, form.name]
    exec(source, module.__dict__)
    return module


def told(check: Callable[..., None], subject: object) -> str:
    with pytest.raises(pytest.fail.Exception) as caught:
        check(subject)
    return str(caught.value)


@every_form
@pytest.mark.parametrize("kind", [*KINDS.values(), LessonEmail], ids=lambda kind: kind.name_of_kind())
def test_the_snippet_passes_the_check(kind: type[Email], suffix: str) -> None:
    form = Form(kind, suffix)
    form.module = module_with(form, form.snippet)
    check_form(form)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "does not exist"),
        ("def {name}(to: str, *, {options}) -> Delivery: 'Doc.'", "other parameters"),
        ("def {name}(name: str, to: str, *, {options}) -> Delivery: 'Doc.'", "other parameters"),
        ("def {name}(to: str, name: str, {options}) -> Delivery: 'Doc.'", "other parameters"),
        ("def {name}(to: str, name: str = '', *, {options}) -> Delivery: 'Doc.'", "other parameters"),
        ("def {name}(to: str, name: str, *, {options}, cc: str = '') -> Delivery: 'Doc.'", "other parameters"),
        ("async def {name}(to: str, name: str, *, {options}) -> Delivery: 'Doc.'", "def or async def"),
        ("def {name}(to: str, name: str, *, {options}) -> str: 'Doc.'", "returns"),
        ("def {name}(to: str, name: str, *, {options}) -> Delivery: pass", "no docstring"),
        ("def {name}(to: str, name: str, *, {options}) -> Delivery: 'Doc.'\n__all__ = []", "not in __all__"),
    ],
)
def test_a_wrong_form_is_told_with_the_right_one(source: str, complaint: str) -> None:
    form = Form(KINDS["welcome"], "_sync")
    options = "reply_to: str | None = None, from_name: str | None = None"
    form.module = module_with(form, source.format(name=form.name, options=options))
    message = told(check_form, form)
    assert complaint in message.split("\n")[0]
    assert "Paste into backend/utils/email.py" in message
    assert form.snippet in message
    assert form.snippet == (
        "def send_welcome_email_sync(\n"
        "    to: str,\n"
        "    name: str,\n"
        "    *,\n"
        "    reply_to: str | None = None,\n"
        "    from_name: str | None = None,\n"
        ") -> Delivery:\n"
        '    """Greets a person whose account was just made."""\n'
        "    return send_sync(new(WelcomeEmail, to=to, name=name, reply_to=reply_to, from_name=from_name))\n"
    )


def test_a_new_kind_is_told_what_it_lacks() -> None:
    assert "async def send_lesson_email(" in told(check_form, Form(LessonEmail, ""))
    assert "send_lesson_email_task = _sends(LessonEmail)" in told(check_task, LessonEmail)
    assert "templates/emails/lesson.html" in told(check_templates, LessonEmail)

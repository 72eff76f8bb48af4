"""Breaks a worker node from inside, on purpose: `celery worker -I support.sabotage`. Never imported by the product.

SIGUSR2 brings about what the environment variable SABOTAGE names. Celery's event loop runs in the main thread, where
Python runs signal handlers, so whoever sleeps there has stopped the loop.
"""

import ctypes
import gc
import os
import signal
import socket
import threading
import time

from celery.worker.consumer import Consumer
from kombu.transport import redis

from mail.outbox import Outbox
from mail.smtp import SmtpTransport

FOR_EVER = 3600

_kept: list[socket.socket] = []


def _stuck(*_: object, **__: object) -> None:
    threading.Event().wait(FOR_EVER)


def loop() -> None:
    """The event loop stands still."""
    time.sleep(FOR_EVER)


def interpreter() -> None:
    """C code keeps the interpreter's lock: no thread of Python runs any more."""
    ctypes.PyDLL(None).sleep(FOR_EVER)


def sweep() -> None:
    """The sweep hangs in its next look at a lane."""
    Outbox.sweep = _stuck


def threads() -> None:
    """Each mail that goes to SMTP from now on stays there."""
    SmtpTransport.send = _stuck


def line() -> None:
    """The consumer's connection is dead and nobody says so: the broker's side stays open, and nothing comes back."""
    (consumer,) = (found for found in gc.get_objects() if isinstance(found, Consumer))
    channel = consumer.task_consumer.channel
    if isinstance(channel, redis.Channel):
        sockets = [client.connection._sock for client in (channel.client, channel.subclient) if client.connection]
    else:
        sockets = [channel.connection.sock]
    for sock in sockets:
        os.dup(sock.fileno())
        ours, theirs = socket.socketpair()
        os.dup2(ours.fileno(), sock.fileno())
        _kept.extend([ours, theirs])


signal.signal(signal.SIGUSR2, lambda *_: globals()[os.environ["SABOTAGE"]]())

"""A private RabbitMQ for tests, from Debian's package: its own node, ports, directories and epmd; no root needed."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import amqp

from mail.kinds import Lane
from support.needs import missing, need
from support.processes import Process, free_port, wait_until

# Debian's /usr/sbin/rabbitmq-server changes to the user rabbitmq, who may not write into a test's directory.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitMQ(Process):
    """One broker with its queues on disk. kill() and start() are an outage that it survives with what it had."""

    def __init__(self, directory: Path) -> None:
        if not SERVER.exists():
            missing(f"{SERVER} is not there (Debian's package rabbitmq-server)")
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="rabbitmq-", dir=directory))
        self._epmd = Process(
            [need("epmd", package="erlang-base"), "-port", str(free_port()), "-address", "127.0.0.1"],
            self._home / "epmd.log",
        )
        plugins = self._home / "plugins"
        plugins.write_text("[].")
        env = {
            "HOME": str(self._home),  # for the cookie
            "ERL_EPMD_PORT": self._epmd.command[2],
            "RABBITMQ_ALLOW_INPUT": "1",  # runs as this very process, without a shell around it
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self._home / "none"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_LOG_BASE": str(self._home),
            "RABBITMQ_MNESIA_BASE": str(self._home),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            # One scheduler that sleeps when it has nothing to do: a test's broker must not take the tests' CPU.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        super().__init__([str(SERVER)], self._home / "rabbitmq.log", env)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> Self:
        if not self._epmd.running:
            self._epmd.start()
        super().start()
        wait_until(self._answers, timeout=60, what="RabbitMQ")
        return self

    def stop(self, timeout: float = 30) -> int:
        code = super().stop(timeout)
        self._epmd.stop()
        shutil.rmtree(self._home, ignore_errors=True)
        return code

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self._epmd.stop()

    def waiting(self, lane: str) -> tuple[int, int]:
        """How many wake-ups are ready in a lane's queue, and how many consumers it has."""
        with self._connection() as connection, connection.channel() as channel:
            declared = channel.queue_declare(lane, passive=True)
            return declared.message_count, declared.consumer_count

    def empty(self) -> None:
        """Delete the queues of the lanes."""
        with self._connection() as connection, connection.channel() as channel:
            for lane in Lane:
                channel.queue_delete(lane)

    def _connection(self) -> amqp.Connection:
        return amqp.Connection(f"127.0.0.1:{self.port}", "guest", "guest", connect_timeout=5)

    def _answers(self) -> bool:
        assert self.running, f"RabbitMQ ended:\n{self.text()[-4000:]}"
        try:
            with self._connection():
                return True
        except OSError:
            return False

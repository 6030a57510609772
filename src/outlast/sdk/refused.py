"""What a workflow's loop has no use for, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from outlast.model.errors import DurableCallError
from outlast.sdk.compat import DeterministicLoop

REFUSED = {
    "run_forever": "A workflow's loop runs by itself; await what you need.",
    "run_until_complete": "A workflow's loop runs by itself; await the coroutine.",
    "stop": "A workflow ends by returning from its main function.",
    "shutdown_asyncgens": "Generators are closed for you.",
    "shutdown_default_executor": "There is no executor to shut down.",
    "call_soon_threadsafe": "Other threads cannot reach a workflow; do the work in an activity and await it.",
    "set_default_executor": "Functions given to asyncio.to_thread run in the workflow's own thread, one at a time.",
    "set_debug": "Asyncio's debug mode measures time, which stands still here.",
    "add_signal_handler": "A workflow outlives the process: handle the process's signals outside of it.",
    "remove_signal_handler": "A workflow outlives the process: handle the process's signals outside of it.",
} | dict.fromkeys(
    [
        *["getaddrinfo", "getnameinfo", "create_connection", "create_server", "start_tls", "sendfile", "sock_recv"],
        *["create_unix_connection", "create_unix_server", "connect_accepted_socket", "create_datagram_endpoint"],
        *["connect_read_pipe", "connect_write_pipe", "subprocess_shell", "subprocess_exec", "add_reader"],
        *["remove_reader", "add_writer", "remove_writer", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"],
        *["sock_sendall", "sock_sendto", "sock_connect", "sock_accept", "sock_sendfile"],
    ],
    "Do input and output in an activity and call that.",
)


class LimitedLoop(DeterministicLoop):
    """The part of an event loop that is refused, or does nothing."""

    def set_task_factory(self, factory: Any) -> None:
        if factory is not None:
            raise DurableCallError(
                "A task factory was set on a workflow's loop. Tasks of a workflow run in an order that replay repeats, "
                "which eager or foreign tasks do not keep; leave the factory alone."
            )

    def get_task_factory(self) -> None:
        return None

    def get_debug(self) -> bool:
        return False


def _refusal(name: str, advice: str) -> Callable[..., NoReturn]:
    def refused(self: LimitedLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise DurableCallError(f"loop.{name}() was called in a workflow, where it cannot work. {advice}")

    refused.__name__ = name
    return refused


for _name, _advice in REFUSED.items():
    setattr(LimitedLoop, _name, _refusal(_name, _advice))

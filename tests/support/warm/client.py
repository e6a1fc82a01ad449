#!/usr/bin/env python3
"""What stands for `python`: it asks the warm process for a fork, hands signals on, and ends as the fork does."""

import marshal
import os
import signal
import socket
import sys

SOCKET = ""
"""The warm process's, written here by `support.warm`."""

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(SOCKET)
    ignored = [int(number) for number in HANDED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = marshal.dumps((sys.argv[1:], os.getcwd(), dict(os.environ), ignored))  # noqa: PTH109 (pathlib would cost more than the rest)
    # With the standard streams, and so that a reader at their other end sees them close when the fork ends.
    socket.send_fds(connection, [b"R" + len(request).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(request)
    for number in HANDED_ON:
        if number not in ignored:
            signal.signal(number, lambda number, frame: hand_on(connection, number))
    answer = connection.recv(2)
    if len(answer) != 2:
        os._exit(255)  # the warm process is gone
    killed, code = answer
    if killed:
        if code != signal.SIGKILL:
            signal.signal(code, signal.SIG_DFL)
        os.kill(os.getpid(), code)
        signal.pause()
    os._exit(code)


def hand_on(connection: socket.socket, number: int) -> None:
    """Tell the warm process of a signal; it has closed the connection where the fork has ended meanwhile."""
    try:
        connection.sendall(bytes([number]))
    except (BrokenPipeError, ConnectionResetError):
        return


main()

"""Our own lack of file descriptors is ours, and no endpoint's fault."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from collectors.http import Http
from collectors.window import CollectError
from tests.collectors.servers import answering, serve


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_descriptor_left_is_not_told_as_an_endpoint_that_is_down(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system's own refusal, at the call that makes a socket."""

    async def ask(url: str) -> str:
        http = Http()
        try:
            with monkeypatch.context() as starved:

                def refuse(*_: object, **__: object) -> socket.socket:
                    raise OSError(number, "Too many open files")

                starved.setattr(socket, "socket", refuse)
                with pytest.raises(CollectError) as refused:
                    await http.get(url)
            assert (await http.get(url)).status == 200
            return refused.value.kind
        finally:
            await http.aclose()

    with serve(answering("ok")) as server:
        assert asyncio.run(ask(server.url)) == "no_descriptors"

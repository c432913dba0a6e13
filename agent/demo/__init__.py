"""`flyball demo`: the whole loop on this machine, with everything real but the endpoints, which are emulated, and Slack's side,
for which a local stand-in presses the buttons with a really signed request.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

from agent.cli.output import console, fail
from agent.demo.story import Story, StoryError


def show(directory: Path | None, *, once: bool) -> int:
    """Tell the story; returns the exit code: 0 when it ended as it should."""
    folder = directory or Path(f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    if (folder / "flyball.db").exists():
        raise fail(f"{folder} holds an earlier demo; name another folder with --dir", 2)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(Story(folder.resolve(), once=once).tell())
    except StoryError as error:
        console.print(f"[red]error[/red] {error}", soft_wrap=True, highlight=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130

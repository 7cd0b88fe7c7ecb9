"""A run on a terminal of its own: the live view follows its size, Ctrl-C ends the run with a checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

from evidence.kills import MODEL

CTRL_C = b"\x03"
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"
#: A process that makes the terminal its own before it becomes the command.
OWN_TERMINAL = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from anew.cli.main import main; "


class Terminal:
    """A command on a terminal, and what it shows."""

    def __init__(self, arguments: list[str], columns: int) -> None:
        self._end, other = pty.openpty()
        self.resize(columns)
        command = [sys.executable, "-c", OWN_TERMINAL + "sys.exit(main(sys.argv[1:]))", *arguments]
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")} | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
        )
        os.close(other)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._end, 4096):
                self.shown += data.decode(errors="ignore")
        except OSError:
            pass  # the command has ended, and with it the terminal

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait until a text is shown after a position, and return the position behind it."""
        deadline = time.monotonic() + 120
        while (at := self.shown.find(text, after)) < 0:
            assert time.monotonic() < deadline, self.shown
            assert self._reader.is_alive() or text in self.shown[after:], self.shown
            time.sleep(0.02)
        return at + len(text)

    def end(self) -> int:
        code = self.process.wait(120)
        self._reader.join()
        os.close(self._end)
        return code


def test_the_view_follows_the_terminal_and_ctrl_c_says_how_to_go_on(tmp_path: Path):
    (tmp_path / "small.json").write_text(json.dumps(MODEL))
    (tmp_path / "text.txt").write_text(TEXT * 40)
    words = f"train --preset {tmp_path}/small.json --data {tmp_path}/text.txt --seq-len 32 --batch-size 2 --device cpu"
    terminal = Terminal([*words.split(), "--steps", "100000", "--out", str(tmp_path / "out")], columns=150)
    try:
        wide = terminal.wait_for("calls run again", terminal.wait_for("smoothed"))
        terminal.resize(30)
        time.sleep(1.1)  # two drawings
        narrow = len(terminal.shown)
        terminal.wait_for("smoothed", narrow)
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    finally:
        terminal.process.kill()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.shown)
    assert f"go on with: anew train --resume {tmp_path}/out" in shown.replace("\r\n", "")
    assert "cpu, plain PyTorch in fp32" in terminal.shown[:wide]
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.shown[narrow:].partition(CTRL_C.decode())[0])
    bars = [line.removesuffix("^C") for line in re.split(r"[\r\n]+", drawn) if line.startswith(("loss", "cpu"))]
    assert bars
    assert max(map(len, bars)) <= 30
    steps = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]
    assert (tmp_path / "out" / f"checkpoint-{steps}").is_dir()

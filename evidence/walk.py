"""The first hour: in a fresh clone, every command of docs/getting-started.md in its order, each step timed.

Commands and scripts are taken from the page itself; a block marked ``form`` has names for the reader's own model and
data and is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from evidence import record

PAGE = Path("docs") / "getting-started.md"
HEADING = re.compile(r"^## (\d+)\. ", re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a newcomer has at the end.
LEFT = ("runs/demo/model", "runs/demo/report.html", "runs/finetune/adapters.safetensors", "runs/finetune/report.html")


def steps(page: str) -> list[tuple[str, str]]:
    """Return what a page asks for: the number of the section, and a command for a shell."""
    found = []
    _, *parts = HEADING.split(page)
    for section, text in zip(parts[::2], parts[1::2], strict=True):
        for kind, body in BLOCK.findall(text):
            if kind == "python":
                found.append((section, f"cat > script.py <<'END'\n{body}END\npython script.py"))
            else:
                found += [(section, line.partition(" # ")[0].strip()) for line in body.splitlines()]
    return found


def walk(folder: Path) -> dict[str, float]:
    """Do the steps of the page in a clone and return the seconds of each section; a step that fails ends it.

    Raises subprocess.CalledProcessError if a step fails, FileNotFoundError if the last leaves nothing.
    """
    asked = steps((folder / PAGE).read_text())
    stamp = "date +%s.%N >> times\n"
    script = "set -e\n" + stamp + "".join(f"{command}\n{stamp}" for _, command in asked)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHONPATH"))}
    environment["BROWSER"] = "true"  # a command that shows nothing: reports are opened where there is no screen
    subprocess.run(["bash", "-c", script], cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True)
    times = [float(line) for line in (folder / "times").read_text().split()]
    seconds = dict.fromkeys((section for section, _ in asked), 0.0)
    for (section, _), before, after in zip(asked, times, times[1:], strict=False):
        seconds[section] += after - before
    for name in LEFT:
        (folder / name).stat()
    return seconds


def main() -> None:
    """Walk once and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "anew"
        subprocess.run(["git", "clone", "--quiet", record.ROOT, clone], check=True)
        seconds = walk(clone)
        asked = steps((clone / PAGE).read_text())
    record.write(
        "walk",
        {
            "seconds": seconds,
            "minutes": {section: spent / 60 for section, spent in seconds.items()},
            "minutes_all": sum(seconds.values()) / 60,
            "steps": [command for _, command in asked],
        },
    )

"""Gathers the pages in one folder and lets zensical make a site of them: strictly, every internal link checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from website import api, command_line, errors

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).with_name("zensical.toml")
#: Generated pages: file below docs/, and what writes it.
GENERATED = {
    "reference/command-line.md": command_line.page,
    "reference/api.md": api.page,
    "reference/errors.md": errors.page,
}
#: The start of a code block; what stands after its language is for the tests alone, and zensical takes no such word.
_FENCE = re.compile(r"^( *```\w+) .*$", re.MULTILINE)


def build(target: Path) -> None:
    """Build the site into a folder that is replaced if it exists.

    Raises subprocess.CalledProcessError, after zensical has said which page and link, if there is anything to warn of.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        gather(project / "docs")
        shutil.copy(CONFIG, project)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        subprocess.run(command, cwd=project, check=True)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(project / "site", target)


def gather(docs: Path) -> None:
    """Put README as the first page, the pages of docs/ and the generated ones into a folder."""
    shutil.copytree(ROOT / "docs", docs)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (docs / "index.md").write_text(_as_first_page(readme), encoding="utf-8")
    for name, generated in GENERATED.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(generated(), encoding="utf-8")
    for page in docs.rglob("*.md"):
        page.write_text(_FENCE.sub(r"\1", page.read_text(encoding="utf-8")), encoding="utf-8")


def _as_first_page(readme: str) -> str:
    """The README with its links seen from docs/; what lies elsewhere in the repository is named without a link."""
    inside = re.sub(r"\]\(docs/", "](", readme)
    return re.sub(r"\[([^\]]+)\]\((?:NOTICE|LICENSE)\)", r"`\1`", inside)

"""``python -m website [FOLDER]``: build the site, into build/site unless another folder is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from website.build import ROOT, build

if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "site"
    try:
        build(target)
    except subprocess.CalledProcessError:  # zensical has said why
        sys.exit(1)
    print(target / "index.html")

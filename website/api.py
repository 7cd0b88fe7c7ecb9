"""The reference of what ``import anew`` gives, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import anew


def members() -> dict[str, Any]:
    """Return every public function and class of the package, by name."""
    found = {name: getattr(anew, name) for name in anew.__all__}
    return {name: value for name, value in found.items() if callable(value)}


def page() -> str:
    """Return the page."""
    parts = [
        "# Python\n",
        "What `import anew` gives. The same regions come from PyTorch's own entry: "
        '`torch.compile(layer, backend="anew", options={...})`, with the options of `anew.compile`.\n',
    ]
    parts += [_section(name, value) for name, value in members().items()]
    return "\n".join(parts)


def _section(name: str, value: Any) -> str:
    if inspect.isclass(value):
        base = value.__bases__[0].__name__
        return f"## anew.{name}\n\n`class {name}({base})`\n\n{_markdown(value)}\n"
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
    return f"## anew.{name}\n\n```text\nanew.{name}{signature}\n```\n\n{_markdown(value)}\n"


def _markdown(value: Any) -> str:
    """A docstring as Markdown: arguments as a list, code in single backticks, references as code."""
    text = inspect.getdoc(value) or ""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line in ("Args:", "Attributes:"):
            inside = True
            lines += [f"**{line.rstrip(':')}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("        "):
            names, _, rest = line.strip().partition(":")
            lines.append(f"- `{names}`:{rest}")
        else:
            inside = inside and (not line or line.startswith(" "))
            lines.append(line.strip() if inside else line)
    return "\n".join(lines)

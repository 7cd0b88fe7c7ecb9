"""The reference of what ``import anew`` gives, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import anew
from anew.callbacks import EngineState
from anew.energy import Energy
from anew.frontend.explain import Explanation, HostUse, ProgramUse
from anew.frontend.loss.check import LossVerdict
from anew.frontend.placement import HostOperation, PlacementWarning
from anew.frontend.session import BudgetWarning, Statistics

#: Characters that a page shows of a line of code.
WIDTH = 74
#: What the functions return, or warn with.
RESULTS = (Explanation, ProgramUse, HostUse, Statistics, HostOperation, LossVerdict, Energy)
WARNINGS = (PlacementWarning, BudgetWarning)


def members() -> dict[str, Any]:
    """Return every public function and class of the package, by name."""
    found = {name: getattr(anew, name) for name in anew.__all__}
    return {name: value for name, value in found.items() if callable(value)}


def classes() -> dict[str, type]:
    """Return the public classes that lie elsewhere, by the name that they are imported by."""
    return {f"{value.__module__}.{value.__name__}": value for value in (EngineState, *RESULTS, *WARNINGS)}


def page() -> str:
    """Return the page."""
    parts = [
        "# Python\n",
        "What `import anew` gives. The same regions come from PyTorch's own entry: "
        '`torch.compile(layer, backend="anew", options={...})`, with the options of `anew.compile`. Below stand a '
        "callback for `transformers.Trainer`, and the classes of what these functions return and warn with.\n",
    ]
    parts += [_section(f"anew.{name}", value) for name, value in members().items()]
    parts += [_section(name, value) for name, value in classes().items()]
    return "\n".join(parts)


def _section(name: str, value: Any) -> str:
    if inspect.isclass(value):
        base = value.__bases__[0].__name__
        head = f"`class {value.__name__}{'' if base == 'object' else f'({base})'}`"
        return "\n\n".join([f"## {name}", head, _markdown(value), *_properties(value)]) + "\n"
    return f"## {name}\n\n```text\n{_call(name, value)}\n```\n\n{_markdown(value)}\n"


def _call(name: str, function: Any) -> str:
    """How a function is called: in one line if that is short, else with a line for each argument."""
    signature = inspect.signature(function)
    found = re.sub(r"(: |-> )'([^']*)'", r"\1\2", f"{name}{signature}")
    if len(found) <= WIDTH:
        return found
    arguments, _, result = found.partition("(")[2].rpartition(")")
    given = re.split(r", (?=\w+:|\*)", arguments)
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in given) + f"){result}"


def _properties(value: type) -> list[str]:
    """The properties of a class, each with the first sentence of its description."""
    found = [(name, p) for name, p in vars(value).items() if isinstance(p, property)]
    return ["\n".join(f"- `{name}`: {inspect.getdoc(p)}" for name, p in found)] if found else []


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
            rest = re.sub(r"\. (\w+(?:, \w+)*): ", r". `\1`: ", rest)  # several in a line
            lines.append(f"- `{names}`:{rest}")
        else:
            inside = inside and (not line or line.startswith(" "))
            lines.append(line.strip() if inside else line)
    return "\n".join(lines)

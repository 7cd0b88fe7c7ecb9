"""Every error that anew raises, from the source, by what it is about, each with what to do about it.

Many messages say so themselves; the cures of the others stand in cures.toml.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anew

PACKAGE = Path(anew.__file__).parent
CURES = Path(__file__).with_name("cures.toml")
#: A message that holds one of these says what to do: an order to the reader, or what a value has to be.
ORDERS = (
    "cast|check|choose|compile|continue|delete|divide|drop|free|give|go|keep|lease|leave|load|look|lower|name|pad|"
    "pip install|raise|read|release|remove|start|train|use"
)
SAYS = re.compile(
    rf"(?:[:;,] |\. |\bor )(?:to [^:;]*, )?(?:{ORDERS})\b"
    r"|must be |has to be |\bneeds? |is one of|are one of|known: |rows: |exist for|it takes |takes at most",
    re.IGNORECASE,
)
#: Errors of anew's, and functions that make one, by the position of the message among their arguments; an error of
#: several arguments, by the sentence that it makes of them.
RAISED: dict[str, int | str] = {
    "AnewError": 0,
    "UserError": 0,
    "BadRow": 0,
    "MilError": 0,
    "DeviceError": 1,
    "FrameworkError": '{1} failed with {2} code {3}; "{4}"; {5}',
    "NotLowered": 0,
    "PlacementError": 0,
    "WorkerLost": 0,
    "shape_error": 1,
}


@dataclass(frozen=True)
class Topic:
    """Errors of some packages: a heading, and what helps where the message alone does not."""

    title: str
    cure: str
    places: tuple[str, ...]


TOPICS = (
    Topic(
        "Training and its data",
        "The message names the flag, the file or the line: change that and start again; nothing was overwritten. A run "
        "that stopped in the middle names its last good checkpoint, and `--resume` goes on from there.",
        ("train", "optim", "report", "callbacks.py", "errors.py"),
    ),
    Topic(
        "Fine-tuning",
        "Rows are named by file and line; correct them, or leave them out. Options are those of mlx_lm.lora: a name "
        "that is not known is refused with the nearest one that is.",
        ("finetune",),
    ),
    Topic(
        "Models, adapters, answers, conversions",
        "Most of these mean that a folder is not what its flag takes, or was made for another model: compare it with "
        "[pretrained models and adapters](../pretrained.md).",
        ("models", "adapters", "generation", "evaluation.py", "llama2c", "cli"),
    ),
    Topic(
        "Capture: what of a model becomes a region",
        "Call `anew.explain(model, inputs)` to see what is captured. Keep to few input shapes, load the model in "
        'float32, and compile one layer with `torch.compile(layer, backend="anew")` where a model has no list of '
        "layers.",
        ("frontend", "energy.py"),
    ),
    Topic(
        "Operations that do not lower",
        "Without `strict` the operation runs on the host and is listed by `anew.explain` with this sentence as its "
        "rule; with `strict=True` it is an error. Write it with operations that lower, leave it on the host, or [add a "
        "lowering](../extending.md#an-operation).",
        ("compiler",),
    ),
    Topic(
        "Devices and routes to the engine",
        "`anew doctor` tells what this machine has. `--device emulator` needs no engine; `--worker` replaces a process "
        "that aborts or hangs; a budget of the chip that is spent asks for fewer input shapes, or a new process from a "
        "checkpoint.",
        ("device", "doctor"),
    ),
    Topic(
        "MIL text, chips and projections",
        "These concern programs written by hand, chip files and reports of a doctor. In a program that anew made "
        "itself they are a defect: please report it with the message.",
        ("mil", "chips", "plan", "projection"),
    ),
    Topic(
        "Estimates",
        "`anew estimate` takes causal language models of transformers, by preset or configuration, and the chips that "
        "[projected times](../projection.md) has rates for.",
        ("estimate",),
    ),
)


@dataclass(frozen=True)
class Message:
    """A message with … where values stand, and the module and function that raise it."""

    text: str
    module: str
    function: str

    @property
    def speaks(self) -> bool:
        """Whether it is more than a sentence that was made elsewhere and is passed on."""
        return bool(self.text.strip("… "))


def cures() -> dict[str, str]:
    """Return what to do by message, for those that do not say it themselves."""
    listed = tomllib.loads(CURES.read_text(encoding="utf-8"))["cure"]
    return {text: cure["do"] for cure in listed for text in cure["messages"]}


def messages() -> Iterator[Message]:
    """Yield every message that is raised somewhere in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for function, call in raised(ast.parse(path.read_text(encoding="utf-8")), ""):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in RAISED and function not in RAISED:
                text = _message(call, RAISED[name])
                if text is not None:
                    yield Message(text, module, function)


def raised(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call whose result is raised, or returned, below a node, with the function that it stands in."""
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else function
        found = child.exc if isinstance(child, ast.Raise) else child.value if isinstance(child, ast.Return) else None
        if isinstance(found, ast.Call):
            yield inner, found
        yield from raised(child, inner)


def _message(call: ast.Call, where: int | str) -> str | None:
    """The message among the arguments of a call, or the sentence made of them up to the last that is given."""
    given = [_text(argument) for argument in call.args]
    if isinstance(where, int):
        return given[where] if where < len(given) else None
    parts = (part for part in where.split("; ") if all(int(n) < len(given) for n in re.findall(r"{(\d)}", part)))
    return "; ".join(parts).format(*given)


def _text(node: ast.expr) -> str:
    """The message of an expression; whatever is no literal text becomes …"""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def topic_of(module: str) -> Topic | None:
    """Return the topic of a module's errors."""
    return next((topic for topic in TOPICS if module.split("/")[0] in topic.places), None)


def page() -> str:
    """Return the page: under each topic what to do, then its messages."""
    known, cure = list(messages()), cures()
    parts = [
        "# Errors and their cures\n",
        "Every error is one sentence that names what is wrong and, where it can, what to do; `…` stands for names and "
        "numbers. On the command line it comes after `anew: error:`, with exit code 1. Where the second column is "
        "empty, the message itself says what to do.\n",
    ]
    for topic in TOPICS:
        modules: dict[str, dict[str, None]] = {}  # of each message: it may be raised in several
        for message in known:
            if topic_of(message.module) is topic and message.speaks:
                modules.setdefault(message.text, {})[message.module] = None
        parts.append(f"## {topic.title}\n\n{topic.cure}\n\n| message | what to do | raised in |\n|---|---|---|")
        for text, where in modules.items():
            parts.append(f"| {_cell(text)} | {cure.get(text, '')} | {', '.join(f'`{module}`' for module in where)} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text that Markdown leaves alone in a table."""
    for special in "\\`*_[]<>#|{}":
        text = text.replace(special, f"\\{special}" if special not in "<>{}" else f"&#{ord(special)};")
    return text.replace("\n", " ")

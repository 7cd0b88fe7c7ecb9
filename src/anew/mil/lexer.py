"""Split MIL text into tokens, and give an error its line and column."""

from __future__ import annotations

import re
from typing import NoReturn

from anew.mil.ops.registry import MilError

# The last alternative takes any other character as a token of its own; the parser reports it where it stands.
_TOKEN = re.compile(
    r"""
      "(?:[^"\\\n]|\\.)*"                                          # string
    | [A-Za-z_][A-Za-z0-9_]*                                       # name or word
    | [-+]?0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][-+]?\d+)?   # hexadecimal number
    | [-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?                    # decimal number
    | [-+](?:inf|nan)\b
    | ->
    | \S
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(.)")


def is_name(token: str) -> bool:
    """Say whether a token is a name or a word."""
    return token.isidentifier() and token.isascii()


class Lexer:
    """A cursor over the tokens of a text. ``tokens`` ends with an empty token; ``at`` is the index of the next one."""

    def __init__(self, text: str) -> None:
        # Tokens carry no position: plain strings are several times faster, and only an error asks for one.
        self.tokens: list[str] = [*_TOKEN.findall(text), ""]
        self.at = 0
        self._text = text

    @property
    def next(self) -> str:
        """The next token, not taken."""
        return self.tokens[self.at]

    def take(self) -> str:
        """Return the next token and step over it (never over the end)."""
        token = self.tokens[self.at]
        if token:
            self.at += 1
        return token

    def accept(self, token: str) -> bool:
        """Step over the next token if it is ``token``, and say whether it was."""
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def expect(self, *tokens: str) -> None:
        """Step over the given tokens; raises MilError at the first that differs."""
        for token in tokens:
            if self.tokens[self.at] != token:
                self.unexpected(f"'{token}'")
            self.at += 1

    def identifier(self, what: str) -> str:
        """Take a name; raises MilError saying that ``what`` was expected."""
        if not is_name(self.next):
            self.unexpected(what)
        return self.take()

    def string(self) -> str:
        """Take a quoted string and return its text."""
        token = self.next
        if len(token) < 2 or token[0] != '"':
            self.unexpected("a string")
        self.at += 1
        return _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], token[1:-1])

    def unexpected(self, wanted: str) -> NoReturn:
        """Raise MilError: ``wanted`` was expected at the next token."""
        token = self.next
        if token == '"':
            self.fail("this string is not terminated")
        self.fail(f"expected {wanted}, but " + (f"found '{token}'" if token else "the text ends"))

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise MilError with the line and column of token ``at`` (default: the next one)."""
        index = self.at if at is None else at
        starts = [m.start() for m in _TOKEN.finditer(self._text)]
        position = starts[index] if index < len(starts) else len(self._text.rstrip())
        line = self._text.count("\n", 0, position) + 1
        column = position - (self._text.rfind("\n", 0, position) + 1) + 1
        raise MilError(f"line {line}, column {column}: {message}")

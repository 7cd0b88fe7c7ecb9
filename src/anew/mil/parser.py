"""Parse MIL text, with its weight blob, into a program.

Every name must be defined before its use and once, and every declared type must be the one that the operation's type
rule gives. Literals that stand inside an operation's arguments become named constants, as parameters left out do; so
do the literals in the brackets of ``constexpr_*`` operations.
"""

from __future__ import annotations

from typing import Any

from anew.mil.arguments import Arguments, Scope, brackets
from anew.mil.blob import Weights
from anew.mil.builder import infer_types
from anew.mil.lexer import Lexer
from anew.mil.literals import Literals
from anew.mil.ops.registry import lookup
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import TensorType

#: A result of an operation as the text declares it: type, name, and the token of the name.
_Declared = tuple[TensorType, str, int]


def parse_program(text: str, weights: Weights | None = None) -> Program:
    """Return the program that MIL text spells.

    ``weights`` is the file that its ``BLOBFILE`` constants point into or, where the text names several, the files by
    the path it gives each.

    Raises MilError with line and column when the text is not well formed: a syntax error, an operation that anew does
    not know, a name that is undefined or defined twice, operands or declared types that do not fit, a constant that
    the blob does not hold.
    """
    return _Parser(Lexer(text), weights).program()


class _Parser:
    def __init__(self, lexer: Lexer, weights: Weights | None) -> None:
        self._lex = lexer
        self._literals = Literals(lexer, weights)
        self._words = set(lexer.tokens)
        self._scope = Scope(lexer, self._words)

    # ---- program and functions

    def program(self) -> Program:
        lex = self._lex
        lex.expect("program", "(")
        if not lex.next[:1].isdigit():
            lex.unexpected("the version of the program")
        version = lex.take()
        lex.expect(")")
        info = self._build_info() if lex.next == "[" else {}
        lex.expect("{")
        functions: dict[str, Function] = {}
        while not lex.accept("}"):
            at = lex.at + 1
            function = self._function()
            if function.name in functions:
                lex.fail(f"function '{function.name}' is defined twice", at)
            functions[function.name] = function
        if lex.next:
            lex.unexpected("the end of the text")
        return Program(functions, version, info)

    def _build_info(self) -> dict[str, str]:
        lex = self._lex
        lex.expect("[", "buildInfo", "=", "dict", "<")
        self._literals.type()
        lex.expect(",")
        self._literals.type()
        lex.expect(">", "(", "{")
        info: dict[str, str] = {}
        while not lex.accept("}"):
            if info:
                lex.expect(",")
            lex.expect("{")
            key = lex.string()
            lex.expect(",")
            info[key] = lex.string()
            lex.expect("}")
        lex.expect(")", "]")
        return info

    def _function(self) -> Function:
        lex = self._lex
        if lex.next != "func":
            lex.unexpected("a function or '}'")
        lex.take()
        name = lex.identifier("the name of the function")
        lex.expect("<")
        target = lex.identifier("the target of the function")
        lex.expect(">", "(")
        self._scope = Scope(lex, self._words)
        inputs = self._literals.items(")", self._input)
        lex.expect("{")
        while not lex.accept("}"):
            self._op()
        lex.expect("->", "(")
        missing = f"result '{{}}' is not produced by function '{name}'"
        outputs = self._literals.items(")", lambda: self._scope.reference(missing))
        lex.expect(";")
        return Function(name, inputs, self._scope.ops, outputs, target)

    def _input(self) -> Value:
        value = Value("", self._literals.type())
        at = self._lex.at
        value.name = self._lex.identifier("the name of the input")
        self._scope.define(value, at)
        return value

    # ---- operations

    def _op(self) -> None:
        lex = self._lex
        declared = self._declarations()
        lex.expect("=")
        at = lex.at
        kind = lex.identifier("an operation")
        if kind == "const":
            self._const(declared, at)
            return
        definition = self._literals.located(at, lambda: lookup(kind))
        arguments = Arguments(lex, self._literals, self._scope, definition, declared[0][1])
        inputs = arguments.parse()
        lex.expect(";")
        types = self._literals.located(at, lambda: infer_types(definition, inputs))
        if len(types) != len(declared):
            lex.fail(f"{kind}: {len(declared)} results are declared, but the operation gives {len(types)}", at)
        for (type, name, _), inferred in zip(declared, types, strict=True):
            if inferred != type:
                lex.fail(f"{kind}: '{name}' is declared {type}, but the operation gives {inferred}", at)
        self._append(kind, inputs, declared, arguments.attributes, constexpr=definition.family == "constexpr")

    def _declarations(self) -> list[_Declared]:
        """Parse ``type name``, several with commas between them, and with or without parentheses around them."""
        lex = self._lex
        enclosed = lex.accept("(")
        declared = [self._declaration()]
        while lex.accept(","):
            declared.append(self._declaration())
        if enclosed:
            lex.expect(")")
        return declared

    def _declaration(self) -> _Declared:
        type = self._literals.type()
        at = self._lex.at
        return type, self._lex.identifier("the name of the value"), at

    def _append(
        self,
        kind: str,
        inputs: dict[str, Operand],
        declared: list[_Declared],
        attributes: dict[str, Any],
        *,
        payload: Any = None,
        constexpr: bool = False,
    ) -> None:
        values = [Value(name, type, payload, constexpr) for type, name, _ in declared]
        for value, (_, _, at) in zip(values, declared, strict=True):
            self._scope.define(value, at)
        self._scope.ops.append(Op(kind, inputs, values, attributes))

    def _const(self, declared: list[_Declared], at: int) -> None:
        self._lex.expect("(", ")")
        bracketed = brackets(self._lex, self._literals)
        self._lex.expect(";")
        if "val" not in bracketed:
            self._lex.fail("const: the attribute 'val' is missing", at)
        _, type, payload = bracketed.pop("val")
        if len(declared) != 1 or declared[0][0] != type:
            given = ", ".join(str(t) for t, _, _ in declared)
            self._lex.fail(f"const: the value is declared {given}, but val is {type}", at)
        attributes = {key: (type, item) for key, (_, type, item) in bracketed.items()}
        self._append("const", {}, declared, attributes, payload=payload)

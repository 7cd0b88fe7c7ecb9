"""Parse what an operation is given: arguments in parentheses, attributes in brackets, values and literals in both."""

from __future__ import annotations

from typing import Any

import numpy as np

from anew.mil.lexer import Lexer, is_name
from anew.mil.literals import BOOLS, Literals
from anew.mil.ops.registry import OpDef, Param
from anew.mil.program import Op, Operand, Value
from anew.mil.types import ELEMENT_BITS, TensorType, is_float


class Scope:
    """The values and operations of a function while it is parsed."""

    def __init__(self, lexer: Lexer, words: set[str]) -> None:
        self.ops: list[Op] = []
        self._lex = lexer
        self._words = words  # constants that the parser adds must not take a name of the text
        self._values: dict[str, Value] = {}

    def define(self, value: Value, at: int) -> None:
        """Add a value whose name is token ``at``; raises MilError when the name is taken."""
        if value.name in self._values:
            self._lex.fail(f"'{value.name}' is defined twice", at)
        self._values[value.name] = value

    def reference(self, what: str = "'{}' is not defined") -> Value:
        """Parse the name of a value; raises MilError, which says ``what``, when there is none of that name."""
        at = self._lex.at
        name = self._lex.identifier("the name of a value")
        if name not in self._values:
            self._lex.fail(what.format(name), at)
        return self._values[name]

    def constant(self, hint: str, type: TensorType, payload: Any) -> Value:
        """Add a constant that the text does not name."""
        name, n = hint, 0
        while name in self._words:
            n += 1
            name = f"{hint}_{n}"
        self._words.add(name)
        value = Value(name, type, payload)
        self.ops.append(Op("const", {}, [value]))
        return value


class Arguments:
    """Parses the operands of one operation; ``result`` is the name of its first result."""

    def __init__(self, lexer: Lexer, literals: Literals, scope: Scope, definition: OpDef, result: str) -> None:
        self._lex = lexer
        self._literals = literals
        self._scope = scope
        self._definition = definition
        self._params = {p.name: p for p in definition.params}
        self._result = result
        self._given: dict[str, Operand] = {}
        self.attributes: dict[str, tuple[TensorType, Any]] = {}

    def parse(self) -> dict[str, Operand]:
        """Parse parentheses and brackets; return the operands in the order of the parameters, with the defaults."""
        self._arguments()
        self._brackets()
        for param in self._definition.params:
            if param.name not in self._given and param.default is not None:
                self._given[param.name] = self._default(param)
        return {name: self._given[name] for name in self._params if name in self._given}

    def _arguments(self) -> None:
        lex, kind = self._lex, self._definition.name
        lex.expect("(")
        while not lex.accept(")"):
            if self._given:
                lex.expect(",")
            at = lex.at
            name = lex.identifier("the name of a parameter")
            if name not in self._params:
                lex.fail(f"{kind}: unknown parameter '{name}'; it takes {', '.join(self._params)}", at)
            if name in self._given:
                lex.fail(f"{kind}: parameter '{name}' is given twice", at)
            lex.expect("=")
            self._given[name] = self._operand(self._params[name])

    def _brackets(self) -> None:
        """Parse attributes; what they give the parameters of a ``constexpr_*`` operation joins the arguments."""
        constexpr = self._definition.family == "constexpr"
        for key, (at, type, payload) in brackets(self._lex, self._literals).items():
            if not (constexpr and key in self._params):
                self.attributes[key] = type, payload
            elif key in self._given:
                self._lex.fail(f"{self._definition.name}: parameter '{key}' is given twice", at)
            else:
                value = self._scope.constant(f"{self._result}_{key}", type, payload)
                self._given[key] = self._checked(self._params[key], value, at)

    def _operand(self, param: Param) -> Operand:
        lex = self._lex
        at = lex.at
        if lex.accept("("):
            if param.kind != "tensors":
                lex.fail(f"{self._definition.name}: '{param.name}' takes one value", at)
            return tuple(self._literals.items(")", self._scope.reference))
        return self._checked(param, self._value(param), at)

    def _checked(self, param: Param, operand: Value, at: int) -> Value:
        if param.kind == "const" and not _fits(param, operand):
            message = f"{self._definition.name}: '{param.name}' must be a constant {param.type}, not {operand!r}"
            self._lex.fail(message, at)
        return operand

    def _value(self, param: Param) -> Value:
        """Parse a name or a literal; a literal without a type takes the parameter's."""
        lex = self._lex
        hint = f"{self._result}_{param.name}"
        token, after = lex.next, lex.tokens[lex.at + 1 : lex.at + 2]
        if (token == "tensor" and after == ["<"]) or (token in ELEMENT_BITS and after == ["("]):
            return self._scope.constant(hint, *self._literals.typed())
        if is_name(token) and token not in BOOLS:
            return self._scope.reference()
        if not param.type:
            lex.unexpected("a value or a literal with its type, such as fp16(0.5)")
        return self._scope.constant(hint, *self._literals.untyped(param.type))

    def _default(self, param: Param) -> Value:
        default = float(np.float16(param.default)) if param.type == "fp16" else param.default
        return self._scope.constant(f"{self._result}_{param.name}", TensorType(param.type), default)


def brackets(lexer: Lexer, literals: Literals) -> dict[str, tuple[int, TensorType, Any]]:
    """Parse ``[name = string("n"), key = type(payload), ...]``, which may be left out.

    Returns token, type and payload of each key. The name is dropped: it says nothing that the value's does not.
    """
    given: dict[str, tuple[int, TensorType, Any]] = {}

    def item() -> None:
        at = lexer.at
        key = lexer.identifier("the name of an attribute")
        if key in given:
            lexer.fail(f"attribute '{key}' is given twice", at)
        lexer.expect("=")
        given[key] = (at, *literals.typed())

    if lexer.accept("["):
        literals.items("]", item)
    given.pop("name", None)
    return given


def _fits(param: Param, operand: Value) -> bool:
    """Say whether a value is a constant of the type a parameter takes; an fp16 one may be fp32 beside fp32 tensors."""
    element, is_list = param.type.removesuffix("[]"), param.type.endswith("[]")
    same = is_float(operand.type.dtype) if element == "fp16" else operand.type.dtype == element
    return operand.const is not None and same and operand.type.rank == int(is_list)

"""Parse MIL text, with its weight blob, into a program.

Every name must be defined before its use and once, and every declared type must be the one that the operation's type
rule gives. Literals that stand inside an operation's arguments become named constants, as parameters left out do; so
do the literals in the brackets of ``constexpr_*`` operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anew.mil.blob import Weights
from anew.mil.builder import infer_types
from anew.mil.lexer import Lexer, is_name
from anew.mil.literals import BOOLS, Literals
from anew.mil.ops.registry import OpDef, Param, lookup
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import ELEMENT_BITS, TensorType, is_float

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
        self._words = set(lexer.tokens)  # constants that the parser adds must not take a name of the text
        self._values: dict[str, Value] = {}
        self._ops: list[Op] = []

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
        self._values, self._ops = {}, []
        inputs = self._literals.items(")", self._input)
        lex.expect("{")
        while not lex.accept("}"):
            self._op()
        lex.expect("->", "(")
        outputs = self._literals.items(")", lambda: self._result(name))
        lex.expect(";")
        return Function(name, inputs, self._ops, outputs, target)

    def _input(self) -> Value:
        value = Value("", self._literals.type())
        at = self._lex.at
        value.name = self._lex.identifier("the name of the input")
        self._define(value, at)
        return value

    def _define(self, value: Value, at: int) -> None:
        if value.name in self._values:
            self._lex.fail(f"'{value.name}' is defined twice", at)
        self._values[value.name] = value

    def _reference(self) -> Value:
        at = self._lex.at
        name = self._lex.identifier("the name of a value")
        if name not in self._values:
            self._lex.fail(f"'{name}' is not defined", at)
        return self._values[name]

    def _result(self, function: str) -> Value:
        at = self._lex.at
        name = self._lex.identifier("the name of a result")
        if name not in self._values:
            self._lex.fail(f"result '{name}' is not produced by function '{function}'", at)
        return self._values[name]

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
        inputs = self._inputs(definition, declared[0][1])
        attributes = self._attributes(definition, inputs, declared[0][1])
        lex.expect(";")
        inputs = self._with_defaults(definition, inputs, declared[0][1])
        types = self._literals.located(at, lambda: infer_types(definition, inputs))
        if len(types) != len(declared):
            lex.fail(f"{kind}: {len(declared)} results are declared, but the operation gives {len(types)}", at)
        for (type, name, _), inferred in zip(declared, types, strict=True):
            if inferred != type:
                lex.fail(f"{kind}: '{name}' is declared {type}, but the operation gives {inferred}", at)
        self._append(kind, inputs, declared, attributes, constexpr=definition.family == "constexpr")

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
            self._define(value, at)
        self._ops.append(Op(kind, inputs, values, attributes))

    def _const(self, declared: list[_Declared], at: int) -> None:
        self._lex.expect("(", ")")
        bracketed = self._bracketed()
        self._lex.expect(";")
        if "val" not in bracketed:
            self._lex.fail("const: the attribute 'val' is missing", at)
        _, type, payload = bracketed.pop("val")
        if len(declared) != 1 or declared[0][0] != type:
            given = ", ".join(str(t) for t, _, _ in declared)
            self._lex.fail(f"const: the value is declared {given}, but val is {type}", at)
        attributes = {key: (type, item) for key, (_, type, item) in bracketed.items()}
        self._append("const", {}, declared, attributes, payload=payload)

    # ---- brackets

    def _bracketed(self) -> dict[str, tuple[int, TensorType, Any]]:
        """Parse ``[name = string("n"), key = type(payload), ...]``, which may be left out: token, type and payload of
        each key. The name is dropped: it says nothing that the value's does not."""
        lex = self._lex
        given: dict[str, tuple[int, TensorType, Any]] = {}

        def item() -> None:
            at = lex.at
            key = lex.identifier("the name of an attribute")
            if key in given:
                lex.fail(f"attribute '{key}' is given twice", at)
            lex.expect("=")
            given[key] = (at, *self._literals.typed())

        if lex.accept("["):
            self._literals.items("]", item)
        given.pop("name", None)
        return given

    def _attributes(self, definition: OpDef, inputs: dict[str, Operand], result: str) -> dict[str, Any]:
        """Parse brackets; what they give the parameters of a ``constexpr_*`` operation joins the inputs."""
        params = {p.name: p for p in definition.params} if definition.family == "constexpr" else {}
        attributes: dict[str, Any] = {}
        for key, (at, type, payload) in self._bracketed().items():
            if key not in params:
                attributes[key] = type, payload
            elif key in inputs:
                self._lex.fail(f"{definition.name}: parameter '{key}' is given twice", at)
            else:
                value = self._add_constant(f"{result}_{key}", type, payload)
                inputs[key] = self._checked(definition, params[key], value, at)
        return attributes

    # ---- arguments

    def _inputs(self, definition: OpDef, result: str) -> dict[str, Operand]:
        lex = self._lex
        params = {p.name: p for p in definition.params}
        given: dict[str, Operand] = {}
        lex.expect("(")
        while not lex.accept(")"):
            if given:
                lex.expect(",")
            at = lex.at
            name = lex.identifier("the name of a parameter")
            if name not in params:
                lex.fail(f"{definition.name}: unknown parameter '{name}'; it takes {', '.join(params)}", at)
            if name in given:
                lex.fail(f"{definition.name}: parameter '{name}' is given twice", at)
            lex.expect("=")
            given[name] = self._operand(definition, params[name], result)
        return given

    def _with_defaults(self, definition: OpDef, given: dict[str, Operand], result: str) -> dict[str, Operand]:
        """Return the operands in the order of the parameters, those left out with their default."""
        for param in definition.params:
            if param.name not in given and param.default is not None:
                given[param.name] = self._default(param, result)
        return {p.name: given[p.name] for p in definition.params if p.name in given}

    def _operand(self, definition: OpDef, param: Param, result: str) -> Operand:
        lex = self._lex
        at = lex.at
        if lex.accept("("):
            if param.kind != "tensors":
                lex.fail(f"{definition.name}: '{param.name}' takes one value", at)
            return tuple(self._literals.items(")", self._reference))
        return self._checked(definition, param, self._value(param, result), at)

    def _checked(self, definition: OpDef, param: Param, operand: Value, at: int) -> Value:
        if param.kind == "const" and not _fits(param, operand):
            message = f"{definition.name}: '{param.name}' must be a constant {param.type}, not {operand!r}"
            self._lex.fail(message, at)
        return operand

    def _value(self, param: Param, result: str) -> Value:
        """Parse a name or a literal; a literal without a type takes the parameter's."""
        lex = self._lex
        hint = f"{result}_{param.name}"
        token, after = lex.next, lex.tokens[lex.at + 1 : lex.at + 2]
        if (token == "tensor" and after == ["<"]) or (token in ELEMENT_BITS and after == ["("]):
            return self._add_constant(hint, *self._literals.typed())
        if is_name(token) and token not in BOOLS:
            return self._reference()
        if not param.type:
            lex.unexpected("a value or a literal with its type, such as fp16(0.5)")
        return self._add_constant(hint, *self._literals.untyped(param.type))

    def _default(self, param: Param, result: str) -> Value:
        default = float(np.float16(param.default)) if param.type == "fp16" else param.default
        return self._add_constant(f"{result}_{param.name}", TensorType(param.type), default)

    def _add_constant(self, hint: str, type: TensorType, payload: Any) -> Value:
        name, n = hint, 0
        while name in self._words:
            n += 1
            name = f"{hint}_{n}"
        self._words.add(name)
        value = Value(name, type, payload)
        self._ops.append(Op("const", {}, [value]))
        return value


def _fits(param: Param, operand: Value) -> bool:
    """Say whether a value is a constant of the type a parameter takes; an fp16 one may be fp32 beside fp32 tensors."""
    element, is_list = param.type.removesuffix("[]"), param.type.endswith("[]")
    same = is_float(operand.type.dtype) if element == "fp16" else operand.type.dtype == element
    return operand.const is not None and same and operand.type.rank == int(is_list)

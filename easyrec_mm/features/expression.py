"""Expressions over numeric fields: text -> a tree of known operations -> numbers. No text is ever evaluated as Python.

The operators are < <= == != > >= + - * / & |, the functions are those of FUNCTIONS; EasyRec's spelling
"tf.math.log1p(x)" is accepted. Numbers are float64; a comparison gives 1 or 0, and & and | join comparisons. An
operation whose result is not a finite number, such as x / 0, log1p(-2) or sqrt(-1), gives 0. TensorFlow and NumPy
evaluate the same tree (features/back_end.py), each with its own table of `Functions`.

Functions of times (times.py) take seconds since 1970, and as a second argument the hours of local time ahead of UTC.
`from_millis` makes seconds of milliseconds, `from_text` of a field with the text of a time.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from easyrec_mm.errors import did_you_mean
from easyrec_mm.features.times import TIME_FUNCTIONS

# Function -> least and greatest number of arguments.
FUNCTIONS: dict[str, tuple[int, int]] = {
    "abs": (1, 1), "sqrt": (1, 1), "exp": (1, 1), "log": (1, 1), "log1p": (1, 1), "floor": (1, 1),
    "min": (2, 9), "max": (2, 9), "clip": (3, 3), "where": (3, 3),
    **dict.fromkeys(TIME_FUNCTIONS, (1, 2)), "from_millis": (1, 1), "from_text": (1, 1),
}  # fmt: skip
# TensorFlow's names of some functions -> names here.
_ALIASES = {"minimum": "min", "maximum": "max", "clip_by_value": "clip"}
# Functions that a back end must provide in addition to Python's operators: functions of one, two and three arguments,
# where a number divided by 0 is 0 or not finite; a constant; truth values and whole numbers as float64; the whole
# number below a number, int64, at most LARGEST_TIME in magnitude; and a test for finite numbers.
BACK_END = (
    *("abs", "sqrt", "exp", "log", "log1p", "floor"),
    *("divide", "minimum", "maximum", "where", "constant", "as_number", "as_whole", "is_finite"),
)
Functions = Mapping[str, Callable[..., Any]]

_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_LOGIC = {ast.BitAnd: "&", ast.BitOr: "|"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=", ast.Gt: ">", ast.GtE: ">="}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OPERATOR_NAMES = " ".join((*_COMPARISONS.values(), *_ARITHMETIC.values(), *_LOGIC.values()))
_PARENTHESES = "& and | join comparisons; put parentheses around each, as in (a > 1) & (b < 2)"
_MOST_LEVELS = 100
# No local time differs more from UTC.
_MOST_HOURS = 15


class ExpressionError(ValueError):
    """An invalid expression; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `str` returns a text with the same meaning.

    operation  an operator, a function, "negative", "field" or "number"
    operands   operands of an operation, name of a field, or value of a number
    """

    operation: str
    operands: tuple[Any, ...]

    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields that the expression reads, each once."""
        if self.operation == "field":
            return (self.operands[0],)
        if self.operation == "number":
            return ()
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.fields()))

    def text_fields(self) -> tuple[str, ...]:
        """Return the names of the fields that contain texts of times, each once."""
        if self.operation in ("field", "number"):
            return ()
        if self.operation == "from_text":
            return self.fields()
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.text_fields()))

    def exact_fields(self) -> tuple[str, ...]:
        """Return the names of the fields from which times are computed as numbers, each once."""
        if self.operation in ("field", "number", "from_text"):
            return ()
        if self.operation in (*TIME_FUNCTIONS, "from_millis"):
            return self.operands[0].number_fields()  # type: ignore[no-any-return]
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.exact_fields()))

    def number_fields(self) -> tuple[str, ...]:
        """Return the names of the fields that are read as numbers, each once."""
        if self.operation in ("number", "from_text"):
            return ()
        if self.operation == "field":
            return (self.operands[0],)
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.number_fields()))

    def require_truths(self, bool_fields: frozenset[str] = frozenset()) -> None:
        """Check that the operands of & and |, and the condition of `where`, are true or false.

        Raises:
          ExpressionError: if one of them is a number, or if the result of & or | is compared.
        """
        if self.operation in ("field", "number"):
            return
        tested = self.operands if self.operation in _LOGIC.values() else self.operands[: self.operation == "where"]
        for operand in tested:
            if not operand._is_truth(bool_fields):
                raise ExpressionError(f"'{_short(str(operand))}' is a number, not true or false; {_PARENTHESES}")
        for operand in self.operands:
            if self.operation in _COMPARISONS.values() and operand.operation in _LOGIC.values():
                raise ExpressionError(f"'{_short(str(operand))}' is compared, and is true or false; {_PARENTHESES}")
            operand.require_truths(bool_fields)

    def evaluate(self, fields: Mapping[str, Any], functions: Functions) -> Any:
        """Evaluate the expression on float64 fields `[S]`: float64 `[S]`, all finite.

        The values of `text_fields` are their times.
        """
        if self.operation == "field":
            return fields[self.operands[0]]
        if self.operation == "number":
            return functions["constant"](self.operands[0])
        values = [operand.evaluate(fields, functions) for operand in self.operands]
        result = self._result(values, functions)
        return functions["where"](functions["is_finite"](result), result, functions["constant"](0.0))

    def _result(self, values: list[Any], functions: Functions) -> Any:
        name = self.operation
        if name in _LOGIC.values():
            return functions["minimum" if name == "&" else "maximum"](*values)
        if name in _COMPARISONS.values():
            return functions["as_number"](_OPERATORS[name](*values))
        if name in _OPERATORS:
            return _OPERATORS[name](*values)
        if name == "/":
            return functions["divide"](*values)
        if name == "negative":
            return -values[0]
        if name in ("min", "max"):
            result = values[0]
            for value in values[1:]:
                result = functions[f"{name}imum"](result, value)
            return result
        if name == "clip":
            return functions["minimum"](functions["maximum"](values[0], values[1]), values[2])
        if name == "where":
            return functions["where"](values[0] > functions["constant"](0.0), values[1], values[2])
        if name == "from_text":
            return values[0]
        if name == "from_millis":
            return functions["as_number"](functions["as_whole"](values[0]) // 1000)
        if name in TIME_FUNCTIONS:
            # Rounded, as 5.1 * 3600 is a little less than a whole number.
            offset = functions["as_whole"](values[1] * 3600.0 + 0.5) if len(values) > 1 else 0
            return functions["as_number"](TIME_FUNCTIONS[name](functions["as_whole"](values[0]) + offset))
        return functions[name](*values)

    def _is_truth(self, bool_fields: frozenset[str]) -> bool:
        if self.operation == "field":
            return self.operands[0] in bool_fields
        return self.operation in (*_LOGIC.values(), *_COMPARISONS.values())

    def __str__(self) -> str:
        if self.operation in ("field", "number"):
            return str(self.operands[0])
        if self.operation == "negative":
            return f"(-{self.operands[0]})"
        if self.operation in FUNCTIONS:
            return f"{self.operation}({', '.join(map(str, self.operands))})"
        return f"({self.operands[0]} {self.operation} {self.operands[1]})"


def parse_expression(text: str) -> Expression:
    """Parse the text of an expression.

    Raises:
      ExpressionError: for anything but the operators and functions of the module's docstring.
    """
    text = re.sub(r"\s+", " ", text.strip())
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(f"'{_short(text)}' cannot be read at column {error.offset or 1}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"'{_short(text)}' cannot be read: {error or 'it is too deep'}") from error
    return _Reader(text).read(tree.body, 1)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, node: ast.expr, level: int) -> Expression:
        if level > _MOST_LEVELS:
            raise ExpressionError(f"is nested more than {_MOST_LEVELS} levels deep; make several features of it")
        if isinstance(node, ast.Name):
            return Expression("field", (node.id,))
        if isinstance(node, ast.Constant):
            return Expression("number", (self._number(node),))
        operation, operands = self._operation(node)
        if operation == "from_text" and not isinstance(operands[0], ast.Name):
            raise ExpressionError(f"'{self._part(node)}': from_text takes the name of a field")
        expression = Expression(operation, tuple(self.read(operand, level + 1) for operand in operands))
        if operation in TIME_FUNCTIONS and any(
            abs(_constant(ahead)) > _MOST_HOURS for ahead in expression.operands[1:]
        ):
            raise ExpressionError(f"'{self._part(node)}': {operation} takes a time, and hours ahead of UTC: hour(t, 8)")
        return expression

    def _operation(self, node: ast.expr) -> tuple[str, list[ast.expr]]:
        if isinstance(node, ast.BinOp) and type(node.op) in {**_ARITHMETIC, **_LOGIC}:
            return {**_ARITHMETIC, **_LOGIC}[type(node.op)], [node.left, node.right]  # type: ignore[index]
        if isinstance(node, ast.Compare):
            if len(node.ops) > 1:
                raise ExpressionError(f"'{self._part(node)}' compares twice; write (a < b) & (b < c)")
            if type(node.ops[0]) in _COMPARISONS:
                return _COMPARISONS[type(node.ops[0])], [node.left, node.comparators[0]]  # type: ignore[index]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return "negative", [node.operand]
        if isinstance(node, ast.Call):
            return self._function(node), node.args
        if isinstance(node, ast.BoolOp):
            raise ExpressionError(f"'{self._part(node)}': write & for and, | for or, with parentheses")
        raise ExpressionError(
            f"'{self._part(node)}' is not supported; there are {_OPERATOR_NAMES}, numbers, fields and the functions "
            f"{', '.join(FUNCTIONS)}"
        )

    def _function(self, node: ast.Call) -> str:
        written = ast.unparse(node.func)
        name = re.sub(r"^tf\.(math\.|nn\.)?", "", written)
        name = _ALIASES.get(name, name)
        if name not in FUNCTIONS:
            raise ExpressionError(f"no function '{written}'; {did_you_mean(name, FUNCTIONS)}")
        least, most = FUNCTIONS[name]
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise ExpressionError(f"'{self._part(node)}': {name} takes positional arguments only")
        if not least <= len(node.args) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise ExpressionError(f"'{self._part(node)}': {name} takes {count} arguments, not {len(node.args)}")
        return name

    def _number(self, node: ast.Constant) -> float:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            try:
                number = float(node.value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise ExpressionError(f"'{self._part(node)}' is not a number")

    def _part(self, node: ast.expr) -> str:
        return _short(ast.get_source_segment(self._text, node) or self._text)


def _constant(expression: Expression) -> float:
    """Return the value of a number with or without a sign; 0 for another expression."""
    if expression.operation == "negative":
        return -_constant(expression.operands[0])
    return float(expression.operands[0]) if expression.operation == "number" else 0.0


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

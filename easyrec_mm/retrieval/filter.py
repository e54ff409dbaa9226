"""Conditions on the columns of a table: text -> a tree that Python parses -> known operations of Arrow.

No text is ever evaluated as Python: whatever is not listed here is refused. The language is that of Python's
conditions: comparisons (also several in a row, 5 < price < 9), `and`, `or`, `not`, `in`, + - * /, texts in quotation
marks, numbers, True, False, None. & and | stand for `and` and `or`, as in expressions of features, which know numbers
alone and are evaluated by graphs. A comparison with a missing value is neither true nor false; `not` and `!=` do not
make it true, either, only `x is None` does.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.retrieval.metadata import Metadata, is_text

_MOST_CHARACTERS, _MOST_LEVELS = 10_000, 100
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: pc.less, ast.LtE: pc.less_equal, ast.Eq: pc.equal, ast.Is: pc.equal, ast.NotEq: pc.not_equal,
    ast.IsNot: pc.not_equal, ast.Gt: pc.greater, ast.GtE: pc.greater_equal,
}  # fmt: skip
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: pc.add, ast.Sub: pc.subtract, ast.Mult: pc.multiply, ast.Div: pc.divide,
}  # fmt: skip
_LANGUAGE = (
    "a filter has columns, numbers, 'texts', True, False, None, < <= == != >= > in, + - * /, and, or, not; for a "
    "column whose name has other signs, column('its name')"
)
# Kind of a value -> what it is called in messages.
_KINDS = {"number": "a number", "text": "a text", "truth": "true or false", "time": "a time", "nothing": "None"}


class FilterError(UserError):
    """An invalid filter; the message says where, and what to do."""


class _Value(NamedTuple):
    """The value of a part of the filter: its kind, one of _KINDS, and an Arrow array, or a scalar for a constant."""

    kind: str
    data: Any


class Filter:
    """A condition on the columns of a table.

    Args:
      text: the condition.
      metadata: the table.

    Raises:
      FilterError: if it cannot be read, names a column that does not exist, or compares unlike things.
    """

    def __init__(self, text: str, metadata: Metadata) -> None:
        self._name, self._schema = metadata.name, metadata.schema
        self._text = text.strip()
        if len(self._text) > _MOST_CHARACTERS:
            raise FilterError(f"--filter: has more than {_MOST_CHARACTERS} characters; make it shorter")
        try:
            self._tree = ast.parse(self._text, mode="eval").body
        except SyntaxError as error:
            raise FilterError(
                f"--filter {_short(self._text)}: cannot be read at column {error.offset or 1}: {error.msg}"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise FilterError(f"--filter {_short(self._text)}: cannot be read: {error or 'it is too deep'}") from error
        self.mask(self._schema.empty_table())  # finds what is wrong before a large store is read

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return for each row of a table with these columns whether the condition is true."""
        truth = self._truth(self._tree, table, 1)
        if isinstance(truth, pa.Scalar):
            return np.full(len(table), bool(truth.as_py()))
        mask: NDArray[np.bool_] = np.asarray(pc.fill_null(truth, False), bool)
        return mask

    def _truth(self, node: ast.expr, table: pa.Table, level: int) -> Any:
        value = self._value(node, table, level)
        if value.kind != "truth":
            raise self._error(node, f"is {_KINDS[value.kind]}, not true or false; compare it, as in (price < 5)")
        return value.data

    def _value(self, node: ast.expr, table: pa.Table, level: int) -> _Value:
        if level > _MOST_LEVELS:
            raise self._error(node, f"is nested more than {_MOST_LEVELS} levels deep")
        if isinstance(node, ast.Name):
            return self._column(node, node.id, table)
        if isinstance(node, ast.Call):
            return self._column(node, self._column_name(node), table)
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in (ast.And, ast.Or, ast.BitAnd, ast.BitOr):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.left, node.right]
            join = pc.and_kleene if isinstance(node.op, ast.And | ast.BitAnd) else pc.or_kleene
            truths = [self._truth(part, table, level + 1) for part in parts]
            return _Value("truth", functools.reduce(join, truths))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            numbers = [self._number(part, table, level + 1) for part in (node.left, node.right)]
            return _Value("number", _ARITHMETIC[type(node.op)](*numbers))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            return _Value("truth", pc.invert(self._truth(node.operand, table, level + 1)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return _Value("number", pc.negate(self._number(node.operand, table, level + 1)))
        if isinstance(node, ast.Compare):
            return self._comparisons(node, table, level)
        raise self._error(node, f"is not supported; {_LANGUAGE}")

    def _comparisons(self, node: ast.Compare, table: pa.Table, level: int) -> _Value:
        operands = [node.left, *node.comparators]
        truths = []
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            if not isinstance(operator, ast.In | ast.NotIn):
                value = [self._value(part, table, level + 1) for part in (left, right)]
                truths.append(self._compared(node, type(operator), *value))
                continue
            truth = self._is_in(node, left, right, table, level)
            truths.append(pc.invert(truth) if isinstance(operator, ast.NotIn) else truth)
        return _Value("truth", functools.reduce(pc.and_kleene, truths))

    def _is_in(self, node: ast.Compare, left: ast.expr, right: ast.expr, table: pa.Table, level: int) -> Any:
        """Return whether a value is one of a list, or a text a part of another one."""
        value = self._value(left, table, level + 1)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            if not right.elts:
                raise self._error(node, "names no value; give some, as in ['shoes', 'bags']")
            choices = [self._value(choice, table, level + 1) for choice in right.elts]
            return functools.reduce(pc.or_kleene, (self._compared(node, ast.Eq, value, choice) for choice in choices))
        whole = self._value(right, table, level + 1)
        if (value.kind, whole.kind) != ("text", "text") or not isinstance(value.data, pa.Scalar):
            raise self._error(node, "needs a list or a text, as in category in ['shoes', 'bags'] or 'red' in title")
        return pc.match_substring(whole.data, value.data.as_py())

    def _compared(self, node: ast.Compare, operator: type, left: _Value, right: _Value) -> Any:
        is_equality = operator in (ast.Eq, ast.Is, ast.NotEq, ast.IsNot)
        if "nothing" in (left.kind, right.kind):
            if not is_equality:
                raise self._error(node, "compares with None; only == and != do, as in price != None")
            is_missing = pc.is_null((left if right.kind == "nothing" else right).data)
            return is_missing if operator in (ast.Eq, ast.Is) else pc.invert(is_missing)
        if operator in (ast.Is, ast.IsNot):
            raise self._error(node, "uses 'is', which is for None alone; write == or !=")
        if {left.kind, right.kind} == {"time", "text"}:
            left, right = self._as_times(node, left, right), self._as_times(node, right, left)
        if left.kind != right.kind:
            raise self._error(
                node, f"compares {_KINDS[left.kind]} with {_KINDS[right.kind]}; 'texts' stand in quotation marks, "
                "numbers do not"
            )  # fmt: skip
        values = [left.data, right.data]
        if left.kind == "number" and values[0].type != values[1].type and not all(_is_int(v) for v in values):
            values = [_as_float(value) for value in values]
        try:
            return _COMPARISONS[operator](*values)
        except pa.ArrowException as error:
            raise self._error(node, f"cannot be compared: {error}") from error

    def _as_times(self, node: ast.Compare, value: _Value, other: _Value) -> _Value:
        """Return a text as a time of the type of the other one."""
        if value.kind == "time":
            return value
        try:
            return _Value("time", value.data.cast(other.data.type))
        except (pa.ArrowException, ValueError) as error:
            raise self._error(node, "compares a time with a text that is none; write it as 2026-12-31") from error

    def _number(self, node: ast.expr, table: pa.Table, level: int) -> Any:
        value = self._value(node, table, level)
        if value.kind != "number":
            raise self._error(node, f"is {_KINDS[value.kind]}, with which nothing can be computed; give numbers")
        return _as_float(value.data)

    def _column(self, node: ast.expr, name: str, table: pa.Table) -> _Value:
        if name not in self._schema.names:
            raise FilterError(
                f"--filter: {self._name} has no column '{_short(name)}'; {did_you_mean(name, self._schema.names)}"
            )
        column = table[name].combine_chunks()
        kind = _kind_of(column.type)
        if kind is None:
            raise self._error(node, f"is a column of type {column.type}, which a filter cannot compare")
        return _Value(kind, _as_float(column) if pa.types.is_decimal(column.type) else column)

    def _column_name(self, node: ast.Call) -> str:
        is_column = isinstance(node.func, ast.Name) and node.func.id == "column" and not node.keywords
        if is_column and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            if isinstance(name, str):
                return name
        raise self._error(node, f"is not supported; {_LANGUAGE}")

    def _constant(self, node: ast.Constant) -> _Value:
        value = node.value
        if value is None:
            return _Value("nothing", pa.scalar(None))
        if isinstance(value, bool):
            return _Value("truth", pa.scalar(value))
        if isinstance(value, int | float):
            is_long = isinstance(value, int) and not -(1 << 63) <= value < 1 << 63
            try:
                return _Value("number", pa.scalar(float(value) if is_long else value))
            except OverflowError as error:
                raise self._error(node, "is too large a number") from error
        if isinstance(value, str):
            return _Value("text", pa.scalar(value))
        raise self._error(node, f"is not supported; {_LANGUAGE}")

    def _error(self, node: ast.expr, problem: str) -> FilterError:
        return FilterError(f"--filter: '{_short(ast.get_source_segment(self._text, node) or self._text)}' {problem}")


def _kind_of(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "truth"
    if is_text(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    return None


def _is_int(value: Any) -> bool:
    return bool(pa.types.is_integer(value.type))


def _as_float(value: Any) -> Any:
    """Return numbers as float64, rounded where they have more digits."""
    return pc.cast(value, pa.float64(), safe=False)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."

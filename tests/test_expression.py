"""Expressions: what they compute against Python on single numbers, and every mistake in them."""

import math
import operator

import numpy as np
import pytest
import tensorflow as tf
from feature_helpers import expr_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.features.expression import BACK_END, ExpressionError, parse_expression
from easyrec_mm.features.numpy_back_end import NumpyBackEnd
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.features.tensorflow_back_end import TensorFlowBackEnd
from easyrec_mm.features.tensorflow_transform import FeatureTransform


def finite(value):
    return value if math.isfinite(value) else 0.0


def guarded(function):
    """A function of Python that gives 0 where it cannot, or gives no finite number."""

    def run(*arguments):
        try:
            return finite(float(function(*arguments)))
        except (ValueError, ZeroDivisionError, OverflowError):
            return 0.0

    return run


OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
FUNCTIONS = {
    "abs": abs, "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log1p": math.log1p, "floor": math.floor,
    "min": min, "max": max, "clip": lambda x, low, high: min(max(x, low), high),
}  # fmt: skip
COMPARISONS = ("<", "<=", "==", "!=", ">", ">=")


@st.composite
def numbers(draw, depth=3):
    """(text, what Python makes of a, b and c)."""
    kind = draw(st.sampled_from(["field", "number"] if not depth else ["field", "binary", "function", "negative"]))
    if kind == "field":
        name = draw(st.sampled_from("abc"))
        return name, lambda values: values[name]
    if kind == "number":
        number = draw(st.sampled_from([0.0, 1.0, 2.5, 1e30, 3]))
        return repr(number), lambda values: float(number)
    if kind == "negative":
        text, inner = draw(numbers(depth - 1))
        return f"-({text})", lambda values: -inner(values)
    if kind == "binary":
        sign = draw(st.sampled_from("+-*/"))
        (left, f), (right, g) = draw(numbers(depth - 1)), draw(numbers(depth - 1))
        run = guarded(OPERATORS[sign])
        return f"({left}){sign}({right})", lambda values: run(f(values), g(values))
    name = draw(st.sampled_from([*FUNCTIONS, "where"]))
    count = {"min": 3, "max": 2, "clip": 3, "where": 2}.get(name, 1)
    parts = [draw(numbers(depth - 1)) for _ in range(count)]
    if name == "where":
        condition, truth = draw(truths(depth - 1))
        (left, f), (right, g) = parts
        return f"where({condition}, {left}, {right})", lambda values: f(values) if truth(values) else g(values)
    run = guarded(FUNCTIONS[name])
    spelling = draw(st.sampled_from([name, f"tf.{name}", f"tf.math.{name}"]))
    return f"{spelling}({', '.join(text for text, _ in parts)})", lambda values: run(*(f(values) for _, f in parts))


@st.composite
def truths(draw, depth=2):
    if depth > 0 and draw(st.booleans()):
        sign = draw(st.sampled_from("&|"))
        (left, f), (right, g) = draw(truths(depth - 1)), draw(truths(depth - 1))
        both = {"&": lambda x, y: x and y, "|": lambda x, y: x or y}[sign]
        return f"({left}) {sign} ({right})", lambda values: both(f(values), g(values))
    sign = draw(st.sampled_from(COMPARISONS))
    (left, f), (right, g) = draw(numbers(max(depth - 1, 0))), draw(numbers(max(depth - 1, 0)))
    return f"({left}) {sign} ({right})", lambda values: float(OPERATORS[sign](f(values), g(values)))


VALUES = st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -7.25, 3.0, 1e20, -1e-3]), min_size=3, max_size=3)


@given(st.one_of(numbers(), truths()), st.lists(VALUES, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_both_back_ends_compute_what_python_computes(made, rows):
    text, reference = made
    parse_expression(text).require_truths()
    text = f"({text}) + 0 * a"  # which reads a field in any case
    feature = expr_feature("f", ("a", "b", "c"), 1, expression=text)
    columns = {name: np.float32([row[i] for row in rows]) for i, name in enumerate("abc")}
    by_numpy = NumpyTransform([feature])(columns, len(rows))["f"]
    by_tensorflow = FeatureTransform([feature])({n: tf.constant(v) for n, v in columns.items()})["f"]
    exact = [finite(reference({n: float(v[i]) for n, v in columns.items()})) for i in range(len(rows))]
    with np.errstate(over="ignore"):
        expected = np.float32(exact)
    expected = np.where(np.isfinite(expected), expected, 0)[:, None]
    assert by_numpy.shape == by_tensorflow.shape == expected.shape
    assert by_numpy.dtype == by_tensorflow.dtype == np.float32
    # TensorFlow may take numbers that are smaller than normal ones for 0.
    np.testing.assert_allclose(by_numpy, by_tensorflow, rtol=0, atol=np.finfo(np.float32).tiny)
    np.testing.assert_allclose(by_numpy, expected, rtol=2e-7, atol=1e-30)


@given(st.one_of(numbers(), truths()))
@settings(max_examples=100, deadline=None)
def test_the_text_of_an_expression_means_the_same_again(made):
    expression = parse_expression(made[0])
    assert parse_expression(str(expression)) == expression
    assert set(expression.fields()) <= set("abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a / b", [0.0, 0.0]),  # b is 0
        ("log1p(-a - 1)", [0.0, 0.0]),
        ("log(b)", [0.0, 0.0]),
        ("sqrt(-a)", [0.0, 0.0]),
        ("exp(1000 * a)", [0.0, 0.0]),  # beyond float64
        ("exp(100 * a)", [0.0, 0.0]),  # beyond float32
        ("1 / (a / b + 1)", [1.0, 1.0]),
        ("(a / b == 0) + 1", [2.0, 2.0]),
    ],
)
def test_what_is_no_finite_number_is_0(text, expected):
    feature = expr_feature("f", ("a", "b"), 1, expression=text)
    columns = {"a": np.float32([1, 2]), "b": np.float32([0, -0.0])}
    assert NumpyTransform([feature])(columns, 2)["f"][:, 0].tolist() == expected
    tensors = {name: tf.constant(value) for name, value in columns.items()}
    assert FeatureTransform([feature])(tensors)["f"][:, 0].numpy().tolist() == expected


def test_integers_keep_their_digits_and_text_is_a_float32():
    feature = expr_feature("f", ("n", "m"), 1, expression="n - m")
    values = {"n": np.array([2**53 - 1]), "m": np.array([2**53 - 2])}
    assert NumpyTransform([feature])(values, 1)["f"].tolist() == [[1.0]]
    assert FeatureTransform([feature])({n: tf.constant(v) for n, v in values.items()})["f"].numpy().tolist() == [[1.0]]
    feature = expr_feature("f", ("x",), 1, expression="x == 16777216")
    assert NumpyTransform([feature])({"x": ["16777217", ""]}, 2)["f"].tolist() == [[1.0], [0.0]]
    assert FeatureTransform([feature])({"x": tf.constant(["16777217", ""])})["f"].numpy().tolist() == [[1.0], [0.0]]


def test_both_back_ends_offer_every_function():
    assert set(TensorFlowBackEnd.functions) == set(NumpyBackEnd.functions) == set(BACK_END)


def test_precedence_is_that_of_arithmetic():
    assert str(parse_expression("a + b * -c / 2 - 1")) == "((a + ((b * (-c)) / 2.0)) - 1.0)"
    assert str(parse_expression(" (a > 1)\n | (b < 2) & (c != 3)")) == "((a > 1.0) | ((b < 2.0) & (c != 3.0)))"
    assert str(parse_expression("tf.math.log1p(user_age) / 10.0")) == "(log1p(user_age) / 10.0)"
    assert str(parse_expression("tf.maximum(a, tf.clip_by_value(b, 0, 1))")) == "max(a, clip(b, 0.0, 1.0))"


MISTAKES = {
    "a +": "'a +' cannot be read at column ",
    "a = b": "cannot be read at column",
    "a; b": "cannot be read at column 2",
    "a\0b": "cannot be read",
    "1 < a < 3": "'1 < a < 3' compares twice; write (a < b) & (b < c)",
    "a > 1 & b > 1": "compares twice",
    "a >= 1 & b": "'(1.0 & b)' is compared, and is true or false; & and | join comparisons; put parentheses",
    "(a + 1) & (b > 1)": "'(a + 1.0)' is a number, not true or false; & and | join comparisons",
    "where(a, b, c)": "'a' is a number, not true or false",
    "a > 1 and b > 1": "'a > 1 and b > 1': write & for and, | for or, with parentheses",
    "not a": "'not a' is not supported; there are < <= == != > >= + - * / & |, numbers, fields and the functions abs, ",
    "a ** b": "'a ** b' is not supported",
    "a % 2": "'a % 2' is not supported",
    "a if b else c": "'a if b else c' is not supported",
    "lambda: a": "'lambda: a' is not supported",
    "a[0]": "'a[0]' is not supported",
    "a.b": "'a.b' is not supported",
    "__import__('os').system('true')": "no function '__import__('os').system'",
    "[x for x in a]": "'[x for x in a]' is not supported",
    "log2(a)": "no function 'log2'; did you mean 'log'?",
    "tf.math.lgo1p(a)": "no function 'tf.math.lgo1p'; did you mean 'log1p'?",
    "eval(a)": "no function 'eval'; choose one of abs, ",
    "min(a)": "'min(a)': min takes 2 to 9 arguments, not 1",
    "clip(a, 1)": "'clip(a, 1)': clip takes 3 arguments, not 2",
    "max(a, b=c)": "'max(a, b=c)': max takes positional arguments only",
    "max(*a)": "max takes positional arguments only",
    "'a' == a": "''a'' is not a number",
    "a == True": "'True' is not a number",
    "a + 1e999": "'1e999' is not a number",
    f"a + 1{'0' * 400}": "is not a number",
    f"a{' + a' * 200}": "is nested more than 100 levels deep; make several features of it",
    "(" * 300 + "a" + ")" * 300: "cannot be read",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES, ids=[text[:20].encode("unicode_escape").decode() for text in MISTAKES])
def test_a_mistake_is_told(text):
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text).require_truths()
    assert MISTAKES[text] in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_field_of_truth_values_may_be_joined():
    expression = parse_expression("(a & (b > 1)) | (c == a)")
    expression.require_truths(frozenset("a"))
    with pytest.raises(ExpressionError, match="'a' is a number"):
        expression.require_truths(frozenset("b"))

import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segbatch.errors import InputError
from segbatch.masks.classes import Classes
from segbatch.results.formulas import MAX_DEPTH, MAX_LENGTH, Formula

CLASSES = Classes(["window", "wall", "brick", "traffic light", "Street-Tree"])
FLOAT32_MAX = float(np.finfo(np.float32).max)


def value(text: str, *coverage: float) -> float:
    """The formula's value for one image; classes without a coverage cover nothing."""
    row = [*coverage, *[0.0] * (len(CLASSES) - len(coverage))]
    (result,) = Formula.parse("ratio", text, CLASSES).evaluate(np.array([row]))
    return float(result)


def error_of(text: str, name: str = "ratio") -> str:
    with pytest.raises(InputError) as caught:
        Formula.parse(name, text, CLASSES)
    return str(caught.value)


def test_a_formula_is_evaluated_for_every_image() -> None:
    formula = Formula.parse("window_to_wall", "window / (window + wall + brick)", CLASSES)
    result = formula.evaluate(
        np.array([[0.25, 0.25, 0.5, 0, 0], [0.5, 0, 0, 0.5, 0], [0, 0, 0, 1, 0]], np.float32)
    )
    assert result.dtype == np.float64
    assert result[:2].tolist() == [0.25, 1.0]
    assert np.isnan(result[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("10 - 4 - 3", 3),
        ("24 / 4 / 2", 3),
        ("24 / (4 / 2)", 12),
        ("-2 * 3", -6),
        ("2 - -3", 5),
        ("--2", 2),
        ("-(1 + 2)", -3),
        ("1.5e1 + .5 + 2.", 17.5),
        ("1E-1*10", 1),
        ("\n 1\t+ 1 ", 2),
    ],
)
def test_operators_have_the_usual_precedence(text: str, expected: float) -> None:
    assert value(text) == expected


def test_a_class_is_written_as_its_name_or_its_field() -> None:
    coverage = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert value("window", *coverage) == 0.1
    assert value('"window"', *coverage) == 0.1
    assert value('"traffic light"', *coverage) == 0.4
    assert value("traffic_light", *coverage) == 0.4
    assert value('"Street-Tree"', *coverage) == 0.5
    assert value("street_tree", *coverage) == 0.5


def test_any_word_can_be_a_class() -> None:
    classes = Classes(["in", "lambda", "None", "e1", "Fläche", "+", "2"])
    formula = Formula.parse("x", 'in + lambda + None + e1 + Fläche + "+" + "2"', classes)
    assert formula.evaluate(np.array([[1, 2, 4, 8, 16, 32, 64]])).tolist() == [127]


@pytest.mark.parametrize(
    "text", ["1 / window", "window / window", "0 / 0", "1 / (1 / window)", "1 / (window - window)"]
)
def test_a_division_by_zero_anywhere_is_null(text: str) -> None:
    assert math.isnan(value(text))


@pytest.mark.parametrize("text", ["1e999", "1e300 * 1e300", "1 / (1e300 * 1e300)", "1e39", "-1e39"])
def test_a_value_that_is_not_finite_is_null(text: str) -> None:
    assert math.isnan(value(text))


def test_a_value_always_fits_into_float32() -> None:
    assert np.isfinite(np.float32(value("3.4e38")))


def test_a_missing_coverage_is_null_only_in_formulas_that_use_it() -> None:
    coverage = np.array([[np.nan, 0.5, 0, 0, 0]])
    assert np.isnan(Formula.parse("a", "window + wall", CLASSES).evaluate(coverage)).all()
    assert Formula.parse("a", "wall * 2", CLASSES).evaluate(coverage).tolist() == [1.0]


def test_no_images_give_no_values() -> None:
    assert Formula.parse("a", "window / 2 + 1", CLASSES).evaluate(np.zeros((0, 5))).shape == (0,)


def test_evaluating_does_not_change_the_coverage() -> None:
    coverage = np.ones((2, 5))
    coverage.flags.writeable = False
    result = Formula.parse("a", "window", CLASSES).evaluate(coverage)
    assert not np.shares_memory(result, coverage)


def test_a_formula_travels_to_workers() -> None:
    formula = Formula.parse("a", 'window / "traffic light"', CLASSES)
    assert pickle.loads(pickle.dumps(formula)) == formula


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a class, a number or a parenthesis, found the end"),
        ("window +", "found the end"),
        ("window wall", "expected an operator, found 'wall' (character 8)"),
        ("2 window", "expected an operator, found 'window'"),
        ("1_000", "expected an operator, found '_000'"),
        ("window)", "expected an operator, found ')'"),
        ("(window", "closing parenthesis, found the end"),
        ("()", "found ')' (character 2)"),
        ("+window", "found '+'"),
        ("* window", "found '*'"),
        ("window ** 2", "found '*' (character 9)"),
        ("window // 2", "found '/'"),
        ("window ^ 2", "found '^'"),
        ("window % 2", "found '%'"),
        ("window > 1", "found '>'"),
        ("window, wall", "found ','"),
        ("window.wall", "found '.'"),
        ("window[0]", "found '['"),
        ("abs(window)", "no class is called 'abs'"),
        ("window(1)", "found '('"),
        ("1; DROP TABLE images", "found ';'"),
        ("__import__", "no class is called '__import__'"),
        ("'window'", 'found "\'"'),
        ('"window', "found '\"' (character 1)"),
        ('""', "no class is called ''"),
        ("window # note", "found '#'"),
        ("٣ + window", "found '٣'"),
    ],
)
def test_wrong_syntax_is_refused_with_its_position(text: str, expected: str) -> None:
    message = error_of(text)
    assert message.startswith("formulas.ratio: ")
    assert expected in message
    assert "\n" not in message


def test_an_unknown_class_is_named_with_a_suggestion_and_the_classes() -> None:
    assert error_of("windw / wall") == (
        "formulas.ratio: no class is called 'windw'; did you mean window?"
        ' (classes: window, wall, brick, "traffic light", "Street-Tree")'
    )
    assert 'did you mean "traffic light"?' in error_of('"trafic light"')
    assert "did you mean" not in error_of("xyzzy")


def test_the_spellings_in_a_message_are_valid() -> None:
    classes = Classes(['6" pipe', "3d sign", "plain"])
    with pytest.raises(InputError, match=r'\(classes: 6_pipe, "3d sign", plain\)'):
        Formula.parse("a", "unknown", classes)


@pytest.mark.parametrize("name", ["", "Ratio", "1st", "a-b", "a b", "a.b", "ä", "ratio\n"])
def test_a_name_that_cannot_be_a_column_is_refused(name: str) -> None:
    assert "becomes a column" in error_of("window", name)


@pytest.mark.parametrize("name", ["uri", "coverage", "run"])
def test_the_name_of_another_column_is_refused(name: str) -> None:
    assert f"results have a column {name} already" in error_of("window", name)


def test_the_name_of_a_column_of_the_view_wide_is_refused() -> None:
    with pytest.raises(InputError, match="view `wide` has a column coverage_window already"):
        Formula.parse("coverage_window", "window", Classes(["wall", "window"]))


def test_nesting_is_limited() -> None:
    assert value("(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1)) == 1
    assert f"more than {MAX_DEPTH}" in error_of("(" * 5_000)
    assert f"more than {MAX_DEPTH}" in error_of("-" * 5_000 + "1")


def test_length_is_limited_and_a_sum_of_all_classes_fits() -> None:
    assert "at most" in error_of("1" + " " * MAX_LENGTH)
    many = Classes([f"a rather long class name, number {i}" for i in range(255)])
    text = " + ".join(many.fields)
    assert Formula.parse("a", text, many).evaluate(np.ones((1, 255))).tolist() == [255]


Tree = float | str | tuple[str, "Tree", "Tree"] | tuple[str, "Tree"]

trees = st.recursive(
    st.sampled_from(["window", "wall", '"traffic light"'])
    | st.sampled_from([0.0, 1.0, 0.5, 3.0, 1e200, 1e-200]),
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner) | st.tuples(st.just("-"), inner),
    max_leaves=12,
)
PYTHON = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def written(tree: Tree) -> str:
    match tree:
        case (symbol, left, right):
            return f"({written(left)} {symbol} {written(right)})"
        case (symbol, inner):
            return f"{symbol}({written(inner)})"
    return str(tree)


def evaluated(tree: Tree, coverage: dict[str, float]) -> float | None:
    """The value by Python's own arithmetic; ``None`` for null."""
    match tree:
        case (symbol, left, right):
            a, b = evaluated(left, coverage), evaluated(right, coverage)
            if a is None or b is None or (symbol == "/" and b == 0):
                return None
            result = PYTHON[symbol](a, b)
            return result if math.isfinite(result) else None
        case (_, inner):
            a = evaluated(inner, coverage)
            return None if a is None else -a
        case str():
            return coverage[tree]
    return tree


@settings(deadline=None, max_examples=300)
@given(trees, st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=4))
def test_random_formulas_agree_with_python(
    tree: Tree, rows: list[tuple[float, float, float]]
) -> None:
    coverage = np.zeros((len(rows), len(CLASSES)))
    coverage[:, [0, 1, 3]] = rows
    result = Formula.parse("random", written(tree), CLASSES).evaluate(coverage)
    for row, got in zip(rows, result, strict=True):
        expected = evaluated(
            tree, dict(zip(["window", "wall", '"traffic light"'], row, strict=True))
        )
        if expected is None or abs(expected) > FLOAT32_MAX:
            assert math.isnan(got)
        else:
            assert got == expected


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=40) | st.text(alphabet='window+-*/()."1e \n', max_size=40))
def test_any_text_is_a_formula_or_an_input_error(text: str) -> None:
    try:
        formula = Formula.parse("random", text, CLASSES)
    except InputError:
        return
    assert formula.evaluate(np.ones((2, len(CLASSES)))).shape == (2,)


def test_a_class_that_begins_with_a_digit_is_written_in_quotes() -> None:
    classes = Classes(["2nd_floor", "wall"])
    with pytest.raises(InputError, match='needs quotes: "2nd_floor"') as refused:
        Formula.parse("ratio", "2nd_floor / wall", classes)
    assert "found 'nd_floor'" in str(refused.value)
    Formula.parse("ratio", '"2nd_floor" / wall', classes)


def test_a_class_is_found_in_either_unicode_form() -> None:
    for name, text in (("Tür", "Tu\u0308r"), ("Tu\u0308r", "Tür")):
        assert Formula.parse("doors", text, Classes([name])).text == text

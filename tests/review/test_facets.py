"""What the filters of the browse page offer, found in a table."""

from datetime import datetime, timedelta

import duckdb
import pyarrow as pa
import pytest

from segbatch.masks.classes import Classes
from segbatch.results.schema import rows_schema
from segbatch.review.browse.facets import FEW_VALUES, Facets, find_facets
from segbatch.review.browse.measures import measures_in

NUM = 200
START = datetime(2024, 5, 6)
COLUMNS = {
    "floors": [n % 7 for n in range(NUM)],
    "area": [10_000.0 if n == 3 else 80.0 + n for n in range(NUM)],
    "taken": [START + timedelta(days=n) for n in range(NUM)],
    "noted": [f"{START + timedelta(days=n)}" if n else None for n in range(NUM)],
    "city": ["Bern" if n % 3 else None for n in range(NUM)],
    "code": [f"B{n % (FEW_VALUES + 1)}" for n in range(NUM)],
    "year": [2024] * NUM,
}


@pytest.fixture(scope="module")
def facets() -> Facets:
    own = pa.table(COLUMNS)
    classes = Classes(["wall", "window", "shop"])
    coverage = pa.array([{"wall": 1 - n / 1000, "window": n / 1000, "shop": 0} for n in range(NUM)])
    table = own.append_column("coverage", coverage)
    schema = rows_schema(classes, user_columns=list(own.schema))
    con = duckdb.connect()
    con.from_arrow(table).create("answer")
    measures = list(measures_in(schema, classes, list(own.schema)))
    texts = ["taken", "noted", "city", "code"]
    return find_facets(lambda select: con.sql(select).to_arrow_table(), measures, texts)


def test_a_range_goes_as_far_as_the_data(facets: Facets) -> None:
    window = facets.ranges["coverage.window"]
    assert (window.low, window.high) == (0, pytest.approx(199 / 1000))
    assert sum(window.bins) == NUM - 1  # only images with the class
    floors = facets.ranges["columns.floors"]
    assert (floors.low, floors.high, sum(floors.bins)) == (0, 6, NUM)


def test_what_is_the_same_in_all_images_or_in_none_has_no_range(facets: Facets) -> None:
    assert "columns.year" not in facets.ranges
    assert "coverage.shop" not in facets.ranges


def test_one_outlier_does_not_press_the_others_together(facets: Facets) -> None:
    area = facets.ranges["columns.area"]
    assert (area.low, area.is_cut) == (81, True)
    assert area.high < 300
    assert sum(area.bins) == NUM


def test_moments_are_dates_as_timestamps_and_as_texts(facets: Facets) -> None:
    days = 24 * 3600
    taken, noted = (facets.ranges[f"dates.{name}"] for name in ("taken", "noted"))
    assert (taken.high - taken.low, noted.high - noted.low) == (199 * days, 198 * days)
    assert taken.low == pytest.approx(1714953600)  # 2024-05-06 in UTC
    assert "dates.code" not in facets.ranges


def test_few_values_are_counted_and_many_are_not(facets: Facets) -> None:
    assert facets.values["city"] == [("Bern", 133), (None, 67)]
    assert "code" not in facets.values

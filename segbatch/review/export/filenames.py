"""Names of the images that are exported, each the same in every export of a run.

An image whose name another image of the run has too gets its id appended. To name a million images
takes ten seconds, in Python, which is long for an export of a few; so SQL first finds those that
may have a name of the few.
"""

from __future__ import annotations

import duckdb

from segbatch.results.query import sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK
from segbatch.review.names import MAX_PART, common_folder, safe_name

# The letters and digits of a URI's last part up to its first dot. Images of one name have the same,
# unless a part is cut or a web address has escapes.
LETTERS = """
CREATE MACRO letters(uri) AS regexp_replace(
    lower(nfc_normalize(split_part(ltrim(parse_filename(uri, false, 'both_slash'), '.'), '.', 1))),
    '[^a-z0-9]', '', 'g')"""
NAMESAKES = f"""
CREATE VIEW namesakes AS SELECT uri FROM answer
WHERE letters(uri) IN (SELECT letters(uri) FROM chosen)
    OR strlen(uri) > {MAX_PART} OR uri ILIKE 'http%'"""

# Some file systems ignore case: images whose names differ in case only get their id appended. No
# name contains "@" otherwise.
NAME_IMAGES = """
CREATE TABLE named AS
SELECT
    image_id, uri, width, height,
    CASE WHEN lower(name) IN (FROM shared) THEN name || '@' || image_id ELSE name END AS name
FROM called
ORDER BY image_id"""  # so that a range of ids is found without reading all


def name_images(con: duckdb.DuckDBPyConnection, run: RunFolder, *, among_chosen: bool) -> None:
    """Create the table ``named`` of the images in the table ``chosen``.

    Names are unique in the run or, with ``among_chosen``, among these images: the same where they
    are all images, and what exports of some images did before.
    """
    # Names start below the folder of all images of the run, not only of the chosen ones.
    [(first, last)] = sql([run], "SELECT min(uri), max(uri) FROM images").fetchall()
    folder = common_folder(first or "", last or "")

    def name(uri: str) -> str:
        return safe_name(uri, folder)

    con.create_function("safe_name", name, ["VARCHAR"], "VARCHAR")
    con.execute("CREATE TABLE called AS SELECT *, safe_name(uri) AS name FROM chosen")
    names = "SELECT name FROM called"
    if not among_chosen:
        con.execute(LETTERS)
        uris = sql([run], f"SELECT uri FROM images WHERE status = '{OK}'")
        con.register("answer", uris.to_arrow_reader())
        con.execute(NAMESAKES)
        names = "SELECT safe_name(uri) AS name FROM namesakes"
    con.execute(
        f"CREATE TABLE shared AS SELECT lower(name) FROM ({names}) GROUP BY 1 HAVING count(*) > 1"
    )
    con.execute(NAME_IMAGES)
    con.execute("DROP TABLE called")

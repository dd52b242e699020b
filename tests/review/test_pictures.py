import numpy as np

from segbatch.masks.classes import IGNORE_INDEX
from segbatch.review.pictures import Picture, read_run_pictures
from segbatch.run import Run


def test_photographs_of_a_run_come_with_their_masks_on_one_grid(whole_run: Run) -> None:
    rows = whole_run.sql("SELECT image_id, uri, status FROM images ORDER BY image_id").fetchall()
    seen = read_run_pictures(
        whole_run, [(image_id, uri) for image_id, uri, _ in rows], long_side=64
    )
    for (image_id, uri, status), picture in zip(rows, seen, strict=True):
        if status == "failed":
            assert not isinstance(picture, Picture), uri
            continue
        assert isinstance(picture, Picture)
        assert max(picture.photo.shape) <= 64
        assert picture.photo.shape == (*picture.label_map.shape, 3)
        mask = whole_run.mask(image_id)
        assert mask is not None
        assert set(np.unique(picture.label_map)) <= set(np.unique(mask)) - {IGNORE_INDEX}


def test_an_image_that_is_gone_has_a_reason_and_the_others_are_shown(whole_run: Run) -> None:
    [(image_id, uri)] = whole_run.sql(
        "SELECT image_id, uri FROM images WHERE status = 'ok' LIMIT 1"
    ).fetchall()
    gone, there = read_run_pictures(whole_run, [(image_id, f"{uri}.gone"), (image_id, uri)], None)
    assert isinstance(there, Picture)
    assert not isinstance(gone, Picture)
    assert gone.kind == "not_found"

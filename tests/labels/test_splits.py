"""Which images go to which split."""

from collections import Counter
from pathlib import Path

import pytest

from segbatch.errors import InputError, SourceError
from segbatch.formats.format import AnnotatedImage
from segbatch.labels.splits import Splits


def images(*uris: str, **splits: str) -> list[AnnotatedImage]:
    return [AnnotatedImage(uri, f"{uri}.json", splits.get(uri.split("/")[1])) for uri in uris]


def photos(number: int) -> list[AnnotatedImage]:
    return images(*(f"/photos/house-{index // 4}/{index}.jpg" for index in range(number)))


def assigned(rules: Splits, some: list[AnnotatedImage], **of_group: str) -> dict[str, str]:
    return rules.assign(some, of_group)


def test_a_tenth_goes_to_val_where_nothing_is_said() -> None:
    counts = Counter(assigned(Splits(), photos(2000)).values())
    assert set(counts) == {"train", "val"}
    assert counts["val"] == pytest.approx(200, abs=40)


def test_shares_are_kept() -> None:
    counts = Counter(assigned(Splits("val=0.2,test=0.3"), photos(2000)).values())
    assert counts["val"] == pytest.approx(400, abs=60)
    assert counts["test"] == pytest.approx(600, abs=70)


def test_an_image_lands_in_the_same_split_whatever_comes_with_it() -> None:
    together = assigned(Splits("val=0.3"), photos(50))
    alone = [assigned(Splits("val=0.3"), [annotated]) for annotated in photos(50)]
    assert together == {uri: split for one in alone for uri, split in one.items()}
    assert together["/photos/house-0/0.jpg"] == "val"  # on every machine, and in every version
    assert together["/photos/house-0/1.jpg"] == "train"


def test_a_share_of_test_takes_no_image_out_of_val() -> None:
    before = assigned(Splits("val=0.2"), photos(200))
    after = assigned(Splits("test=0.2,val=0.2"), photos(200))
    assert all(after[uri] == "val" for uri, split in before.items() if split == "val")
    assert Counter(after.values())["test"] > 20


def test_images_of_one_building_stay_together() -> None:
    rules = Splits("val=0.3", group_by=r"house-(\d+)")
    chosen = assigned(rules, photos(100))
    assert rules.group_of("/photos/house-7/28.jpg") == "7"
    for house in range(25):
        splits = {split for uri, split in chosen.items() if f"/house-{house}/" in uri}
        assert len(splits) == 1
    assert set(chosen.values()) == {"train", "val"}


def test_a_group_without_brackets_is_the_whole_match() -> None:
    assert Splits(group_by=r"house-\d+").group_of("/photos/house-7/28.jpg") == "house-7"


def test_an_image_without_a_group_stands_alone() -> None:
    rules = Splits("val=0.3", group_by=r"house-(\d+)")
    some = [*photos(3), *images("/photos/other.jpg")]
    assert rules.group_of("/photos/other.jpg") is None
    assert (
        assigned(rules, some)["/photos/other.jpg"]
        == assigned(Splits("val=0.3"), some[3:]).popitem()[1]
    )


def test_a_new_image_goes_where_its_group_is() -> None:
    rules = Splits(group_by=r"house-(\d+)")
    assert set(assigned(rules, photos(4), **{"0": "test"}).values()) == {"test"}


def test_folders_are_followed_when_they_are_asked_for() -> None:
    some = images("/a/1.jpg", "/b/2.jpg", a="val", b="test")
    assert assigned(Splits("folder"), some) == {"/a/1.jpg": "val", "/b/2.jpg": "test"}
    assert set(assigned(Splits("val=0"), some).values()) == {"train"}


def test_an_image_in_no_such_folder_is_refused() -> None:
    some = images("/a/1.jpg", "/c/3.jpg", a="val")
    with pytest.raises(SourceError, match=r"1 of 2 images are in no folder .*: /c/3.jpg"):
        assigned(Splits("folder"), some)


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg val\n2 test\ns3://bucket/b/3.jpg train\n",
        "a/1.jpg, val\n2.jpg,test\nb/3\ttrain\n\n",
        "note,split,uri\nfirst,val,./a/1.jpg\n,TEST,2\n,train,s3://bucket/b/3.jpg\n",
        "note;split;uri\r\nfirst;val;./a/1.jpg\r\n;TEST;2\r\n;train;s3://bucket/b/3.jpg\r\n",
        "\ufeff1 valid\n/photos/a/2.jpg  test\n3.jpg train",
    ],
    ids=["blanks", "commas", "columns", "semicolons", "names"],
)
def test_a_list_names_images_by_their_uri_or_the_end_of_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.txt").write_text(text)
    rules = Splits(split_list=str(tmp_path / "splits.txt"))
    some = images("/photos/a/1.jpg", "/photos/a/2.jpg", "s3://bucket/b/3.jpg")
    assert list(assigned(rules, some).values()) == ["val", "test", "train"]


def test_a_list_takes_names_with_blanks(tmp_path: Path) -> None:
    (tmp_path / "splits.txt").write_text("front of the house.jpg val\n")
    rules = Splits(split_list=str(tmp_path / "splits.txt"))
    assert assigned(rules, images("/a/front of the house.jpg")).popitem()[1] == "val"


def test_an_image_that_is_not_in_the_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "splits.txt").write_text("1.jpg val\n")
    with pytest.raises(SourceError, match=r"1 of 2 images are not in .*splits.txt.*: /a/11.jpg"):
        assigned(Splits(split_list=str(tmp_path / "splits.txt")), images("/a/1.jpg", "/a/11.jpg"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.jpg val\n2.jpg holdout\n", "line 2: must be NAME SPLIT"),
        ("1.jpg\n", "line 1: must be NAME SPLIT"),
        ("1.jpg val\n1.jpg test\n", "line 2: 1.jpg is in val, too"),
        ("\n", "no line"),
    ],
)
def test_a_list_that_says_nothing_sensible_is_refused_by_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "splits.txt").write_text(text)
    with pytest.raises(InputError, match=f"--split-list .*{said}"):
        Splits(split_list=str(tmp_path / "splits.txt"))


def test_a_missing_list_is_refused() -> None:
    with pytest.raises(InputError, match=r"--split-list /none/list.txt: .*no such file"):
        Splits(split_list="/none/list.txt")


@pytest.mark.parametrize(
    "text", ["", "val", "val=x", "val=-0.1", "val=1.1", "holdout=0.1", "val=0.1,val=0.2"]
)
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be folder, or shares like"):
        Splits(text)


@pytest.mark.parametrize("text", ["val=0.6,test=0.6", "train=0.5,val=0.1"])
def test_shares_must_sum_to_one(text: str) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        Splits(text)
    assert Splits("train=0.7,val=0.2,test=0.1").wanted == ["val", "test"]


def test_a_group_that_folders_tear_apart_is_refused() -> None:
    some = images("/a/house-1.jpg", "/b/house-1.jpg", a="train", b="val")
    with pytest.raises(SourceError, match=r"/b/house-1.jpg: belongs in val, .* '1' is in train"):
        assigned(Splits("folder", group_by=r"house-(\d+)"), some)


def test_an_expression_that_matches_nothing_or_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match=r"building: matches no image, .* not a/1.jpg"):
        Splits(group_by="building").require_groups(["a/1.jpg", "a/2.jpg"])
    Splits(group_by=r"\d").require_groups(["a/front.jpg", "a/2.jpg"])
    with pytest.raises(InputError, match=r"--group-by \(: not a regular expression"):
        Splits(group_by="(")


def test_a_list_and_shares_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        Splits("val=0.1", "splits.txt")

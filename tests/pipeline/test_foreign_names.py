"""A name that somebody else wrote leads to a file in the folder, or is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.foreign_names import ForeignName, checked_name, inside
from pipeline.storage.opening import open_storage

WRONG = (
    "", "/etc/passwd", "..", "../x", "a/../x", "a/..", ".", "./a", "a/./b", "a//b", "a/", "a\\b", "..\\x", "C:/x",
    "C:x",     "a\0b", "a\nb", "\x1b[31m", "a\u202eb", "\ud800", "x" * 201, "a/" * 16 + "a", None, 3, ["a"],
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_names_that_could_lead_elsewhere_are_refused(tmp_path, name):
    for join in (checked_name, lambda each: inside(tmp_path, each)):
        with pytest.raises(ForeignName) as refused:
            join(name)
        str(refused.value).encode()
        assert str(refused.value).isprintable()
    if isinstance(name, str):
        with pytest.raises(ForeignName):
            open_storage(str(tmp_path)) / name


@pytest.mark.parametrize(
    "name", ["a", ".hidden", "a b", "ü", "checkpoints/step-000001/state.safetensors", "a~003.json"]
)
def test_plain_names_are_taken(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@given(st.text(st.sampled_from("ab./\\:~\0 "), max_size=12))
def test_whatever_is_taken_lies_in_the_folder(name):
    folder = Path("/nowhere/folder")
    try:
        place = inside(folder, name)
    except ForeignName:
        return
    assert place.resolve().is_relative_to(folder)
    assert place != folder


def test_links_on_the_way_are_not_followed(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "file").write_text("x")
    (folder / "sub").mkdir()
    for name in ("link", "link/x", "dangling", "dangling/x", "file/x", "sub"):
        with pytest.raises(ForeignName):
            inside(folder, name)
    (tmp_path / "door").symlink_to(folder)  # the folder itself is the caller's
    assert inside(tmp_path / "door", "file") == tmp_path / "door" / "file"

"""The folder part: what is listed, what is refused, what is held out, and that every file is looked at."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainrun.errors import UserError
from trainrun.parts.datasets import Data, cache_folder, folder, listing
from trainrun.parts.datasets import verify as verifying

folder_part = folder.folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path_factory.mktemp("cache")))


def colour(*numbers: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (numbers[0] * 40 % 256, numbers[1] * 7 % 256, 99))


def fill(root: Path, classes: str = "ab", count: int = 4) -> Path:
    for label, name in enumerate(classes.split() if " " in classes else classes):
        (root / name).mkdir(parents=True)
        for k in range(count):
            colour(label, k).save(root / name / f"{k:04}.png")
    return root


def names(data: Data, side: str = "train") -> list[str]:
    split = getattr(data, side)
    return [split.source(k) for k in range(len(split))]


def test_train_and_val_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train", "ba")
    fill(tmp_path / "val", "b", 2)
    data = folder_part(root=str(tmp_path))
    assert data.classes == ("a", "b") and data.train.shape == (8, 8, 3) and data.train.cache and data.skipped == ()
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 and data.train.labels.dtype == np.int64
    assert names(data)[:2] == [str(tmp_path / "train" / "a" / "0000.png"), str(tmp_path / "train" / "a" / "0001.png")]
    assert data.validation and data.validation.labels.tolist() == [1, 1]
    pictures = data.train.read([5, 0, 5])
    assert pictures.dtype == np.uint8 and (pictures == np.stack([np.asarray(Image.open(names(data)[k])) for k in (5, 0, 5)])).all()
    again = pickle.loads(pickle.dumps(data.train))
    assert (again.read(np.array([5, 0, 5])) == pictures).all() and again.source(5) == data.train.source(5)


@pytest.mark.parametrize("side", ["val", "valid", "validation", "test"])
def test_names_of_the_validation_folder(tmp_path: Path, side: str) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / side, count=3)
    data = folder_part(root=str(tmp_path))
    assert data.validation and len(data.validation) == 6


def test_a_test_folder_is_left_alone_where_there_is_a_val_folder_or_a_fraction(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=3)
    held_out = folder_part(root=str(tmp_path), validation=0.5).validation
    assert held_out and len(held_out) == 4
    fill(tmp_path / "val", count=1)
    held_out = folder_part(root=str(tmp_path)).validation
    assert held_out and len(held_out) == 2


def test_one_folder_and_a_class_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "car plane train")
    data = folder_part(root=str(tmp_path))
    assert data.classes == ("car", "plane", "train") and data.validation is None and len(data.train) == 12


def test_a_fraction_is_stratified_seeded_and_stable(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 20)
    fill(tmp_path, "c", 1)
    first, same, other = (folder_part(root=str(tmp_path), validation=0.25, split_seed=seed) for seed in (0, 0, 1))
    assert first.validation and np.bincount(first.validation.labels).tolist() == [5, 5] and len(first.train) == 31
    assert sorted(names(first) + names(first, "validation")) == sorted(str(p) for p in tmp_path.rglob("*.png"))
    assert names(first) == names(same) and first.train.digest == same.train.digest
    assert names(first) != names(other) and first.train.digest != other.train.digest
    assert not set(names(first)) & set(names(first, "validation"))
    colour(1, 1).save(tmp_path / "a" / "0020.png")
    after = folder_part(root=str(tmp_path), validation=0.25)
    assert len(set(names(first, "validation")) ^ set(names(after, "validation"))) <= 2


def test_what_is_not_a_picture_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "ab")
    for hidden in (".git/x.png", "__MACOSX/x.png", "a/.hidden/x.png", "a/.DS_Store", "a/._0000.png", "a/notes.txt", "a/Thumbs.db", "c.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"not a picture")
    os.mkfifo(tmp_path / "a" / "fifo.png")
    (tmp_path / "a" / "folder.png").mkdir()
    for link, target in (("loop", "."), ("up", ".."), ("again", "a"), ("a/loop", ".."), ("a/dangling.png", "nowhere")):
        (tmp_path / link).symlink_to(target)
    data = folder_part(root=str(tmp_path))
    assert data.classes == ("a", "b") and len(data.train) == 8


def test_links_to_files_and_to_class_folders_elsewhere_count_and_nested_folders_too(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "x")
    root = fill(tmp_path / "root", "a")
    (root / "b").symlink_to(store / "x")
    (root / "a" / "link.png").symlink_to(store / "x" / "0000.png")
    (root / "a" / "deeper").mkdir()
    colour(3, 3).save(root / "a" / "deeper" / "UPPER.PNG")
    data = folder_part(root=str(root))
    assert data.classes == ("a", "b") and np.bincount(data.train.labels).tolist() == [6, 4]


def test_names_with_every_kind_of_character(tmp_path: Path) -> None:
    fill(tmp_path, "猫", 1)
    nasty = os.fsencode(tmp_path) + b"/\x1b[31mred\xff"
    os.mkdir(nasty)
    for name in ("naïve ünï.png", "a\nb\x1b]0;x\x07.png"):
        colour(1, 2).save(os.path.join(os.fsdecode(nasty), name))
    data = folder_part(root=str(tmp_path))
    assert data.classes == (r"\x1b[31mred\udcff", "猫")
    assert data.train.read(range(3)).shape == (3, 8, 8, 3)
    assert all(name.isprintable() for name in names(data)) and any(r"a\nb\x1b]0;x\x07.png" in name for name in names(data))
    Path(os.path.join(os.fsdecode(nasty), "bad\x1b.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"bad\\x1b\.png: an empty file"):
        folder_part(root=str(tmp_path))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: None, {}, "holds no class folders"),
        (lambda root: colour(1, 1).save(root / "x.png"), {}, "holds pictures but no class folders"),
        (lambda root: fill(root).joinpath("c").mkdir(), {}, r"no pictures .* in .*/c; add some or remove the folder"),
        (lambda root: (fill(root / "train"), fill(root / "val")), {"validation": 0.2}, "has a folder val .* remove data.validation"),
        (lambda root: (fill(root / "train"), fill(root / "val"), fill(root / "valid")), {}, "val and valid; keep one"),
        (lambda root: (fill(root / "train"), fill(root / "val", "abc")), {}, "val has a class c that train lacks"),
        (lambda root: fill(root, count=1), {"validation": 0.2}, "every class has one picture only"),
        (lambda root: fill(root), {"root": "/no/such/place"}, "/no/such/place does not exist"),
    ],
)
def test_mistakes_in_the_layout(tmp_path: Path, make: Any, options: dict[str, Any], message: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        folder_part(**{"root": str(tmp_path), **options})


@pytest.mark.parametrize("verify", ["full", "sample", "off"])
def test_pictures_of_different_sizes_need_a_size(tmp_path: Path, verify: Any) -> None:
    fill(tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "b" / "0002.png")
    with pytest.raises(UserError, match=r"b/0002.png has 8 x 9 pixels .* the first picture 8 x 8; .* write data.size=8"):
        folder_part(root=str(tmp_path), verify=verify).train.read(range(8))
    data = folder_part(root=str(tmp_path), verify=verify, size=6, channels=1)
    assert data.train.read(range(8)).shape == (8, 6, 6, 1) == (8, *data.train.shape)


@pytest.mark.parametrize("verify", ["full", "sample", "off"])
def test_the_sizes_of_all_pictures_are_found_once(tmp_path: Path, verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, root, expected = np.random.default_rng(0), fill(tmp_path / "data", count=0), {}
    monkeypatch.setattr(verifying, "_SAMPLE", 7)
    for k in range(40):
        expected[path := str(root / "ab"[k % 2] / f"{k:04}.jpg")] = (int(rng.integers(5, 20)), int(rng.integers(5, 20)))
        exif = Image.Exif()
        exif[0x0112] = turned = 1 + 5 * int(rng.integers(0, 2))
        height, width = expected[path][:: 1 if turned == 1 else -1]
        Image.new("RGB", (width, height)).save(path, exif=exif)
    first = folder_part(root=str(root), verify=verify, validation=0.25)
    read: list[str] = []
    for name in ("decode", "measure"):
        real = getattr(verifying, name)
        monkeypatch.setattr(verifying, name, lambda path, *a, real=real, **k: read.append(path) or real(path, *a, **k))
    again = folder_part(root=str(root), verify=verify, validation=0.25)
    assert len(read) == {"full": 0, "sample": 7 + 7, "off": 1 + 7}[verify]
    for data in (first, again):
        for split in (data.train, data.validation):
            assert split and split.sizes is not None and split.sizes.dtype == np.int32
            assert [tuple(size) for size in split.sizes.tolist()] == [expected[split.source(k)] for k in range(len(split))]
            assert split.shape[:2] == tuple(np.array(list(expected.values())).max(0))
    assert first.train.digest == again.train.digest
    assert not [file for file in cache_folder().iterdir() if file.is_file()]  # nothing decoded is kept


def test_a_bad_picture_among_unequal_ones_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "b" / "0002.png")
    (tmp_path / "a" / "0001.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1 of 8 pictures cannot be read:\n.*a/0001.png"):
        folder_part(root=str(tmp_path))
    train = folder_part(root=str(tmp_path), verify="off").train
    assert train.decode and train.decode(0, 1).shape == (8, 8, 3)
    with pytest.raises(UserError, match=r"a/0001.png cannot be read: not a picture"):
        train.decode(1, 1)


@pytest.mark.parametrize("verify", ["full", "sample", "off"])
def test_the_sizes_of_both_sides_are_known_where_any_two_differ(tmp_path: Path, verify: Any) -> None:
    fill(tmp_path / "train")
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(tmp_path / "val" / "a" / "x.png")
    data = folder_part(root=str(tmp_path), verify=verify)
    assert data.validation and data.train.sizes is not None and data.validation.sizes is not None
    assert data.train.sizes.tolist() == [[8, 8]] * 8 and data.validation.sizes.tolist() == [[8, 9]] and data.validation.sizes.dtype == np.int32
    assert data.train.shape == data.validation.shape == (8, 9, 3)
    assert data.train.read([3, 4]).shape == (2, 8, 8, 3)
    assert folder_part(root=str(tmp_path / "train"), verify=verify).train.sizes is None


def spoil(root: Path, count: int) -> list[str]:
    paths = sorted(root.rglob("*.png"))[3 :: max(1, len(list(root.rglob("*.png"))) // count)][:count]
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    return [str(path) for path in paths]


def test_bad_pictures_are_all_listed_before_the_run(tmp_path: Path) -> None:
    fill(tmp_path, count=30)
    spoiled = spoil(tmp_path, 25)
    with pytest.raises(UserError) as caught:
        folder_part(root=str(tmp_path))
    text = str(caught.value)
    assert "25 of 60 pictures cannot be read" in text and "and 5 more" in text and "data.on_bad_image=skip" in text
    assert all(f"{path}: " in text for path in spoiled[:20]) and not any(path in text for path in spoiled[20:])
    with pytest.raises(UserError, match=r"at most 0\.1 %"):
        folder_part(root=str(tmp_path), on_bad_image="skip")


def test_an_eps_called_jpg_is_a_bad_picture(tmp_path: Path) -> None:
    fill(tmp_path)
    colour(1, 1).save(tmp_path / "a" / "x.jpg", "EPS")
    with pytest.raises(UserError, match=r"a/x\.jpg: not a picture in one of the formats"):
        folder_part(root=str(tmp_path))


def test_up_to_one_in_a_thousand_is_skipped_the_same_ones_each_time(tmp_path: Path) -> None:
    fill(tmp_path, count=1)
    template = (tmp_path / "a" / "0000.png").read_bytes()
    for k in range(1999):
        (tmp_path / "b" / f"x{k}.png").write_bytes(template)
    whole = folder_part(root=str(tmp_path), on_bad_image="skip")
    spoiled = spoil(tmp_path / "b", 2)
    first, again = (folder_part(root=str(tmp_path), on_bad_image="skip") for _ in range(2))
    assert [path for path, _ in first.skipped] == spoiled and all(reason for _, reason in first.skipped)
    assert first.skipped == again.skipped and first.train.digest == again.train.digest != whole.train.digest
    assert len(first.train) == len(whole.train) - 2 and not set(names(first)) & set(spoiled)
    assert first.train.read(range(len(first.train))).shape[0] == 1999
    spoil(tmp_path / "b", 5)
    with pytest.raises(UserError, match=r"at most 0\.1 %"):
        folder_part(root=str(tmp_path), on_bad_image="skip")


def test_a_full_check_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    looked: list[str] = []
    real = verifying.decode
    monkeypatch.setattr(verifying, "decode", lambda path, *a, **k: looked.append(path) or real(path, *a, **k))

    def all_looked_at() -> bool:
        found = len(set(looked)) == 8
        assert found or not looked
        looked.clear()
        return found

    folder_part(root=str(tmp_path))
    assert all_looked_at()
    assert folder_part(root=str(tmp_path)).train.shape == (8, 8, 3) and not all_looked_at()
    folder_part(root=str(tmp_path), channels=1)
    assert all_looked_at()
    colour(5, 5).save(tmp_path / "a" / "0000.png")
    os.utime(tmp_path / "a" / "0000.png", ns=(1, 1))
    folder_part(root=str(tmp_path))
    assert all_looked_at()
    for file in (cache_folder() / "verify").iterdir():
        file.write_text('{"bad": [[99999, 3]], "count": "x"}')
    folder_part(root=str(tmp_path))
    assert all_looked_at()
    # A size says nothing about the pictures' own sizes, so it must not answer for them.
    assert folder_part(root=str(tmp_path), size=6).train.shape == (6, 6, 3) and all_looked_at()
    assert folder_part(root=str(tmp_path), size=7).train.shape == (7, 7, 3) and not all_looked_at()
    assert folder_part(root=str(tmp_path)).train.shape == (8, 8, 3)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "file"))
    assert len(folder_part(root=str(tmp_path / "data")).train) == 8


def test_a_failure_of_the_system_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(path: str, *_: object, **__: object) -> np.ndarray:
        raise OSError(5, "Input/output error", path)

    with monkeypatch.context() as patched:
        patched.setattr(verifying, "decode", refuse)
        with pytest.raises(UserError, match="Input/output error"):
            folder_part(root=str(tmp_path))
    assert len(folder_part(root=str(tmp_path)).train) == 8


def test_a_picture_that_fails_later_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    train = folder_part(root=str(tmp_path), verify="sample").train
    (tmp_path / "a" / "0001.png").write_bytes(b"x")
    (tmp_path / "b" / "0003.png").unlink()
    with pytest.raises(UserError, match=r"(?s)2 of 8 pictures.*a/0001\.png: not a picture.*b/0003\.png: No such file"):
        train.read(range(8))
    assert train.read([0]).shape == (1, 8, 8, 3)


def test_the_digest_follows_files_and_options(tmp_path: Path) -> None:
    fill(tmp_path)

    def digest(**options: Any) -> str:
        return folder_part(root=str(tmp_path), size=4, **options).train.digest

    first = digest()
    assert first == digest() == digest(verify="off") and first != digest(channels=1)
    os.utime(tmp_path / "a" / "0000.png", ns=(1, 1))
    assert digest() != first
    os.rename(tmp_path, moved := str(tmp_path) + "-moved")
    assert folder_part(root=moved, size=4).train.digest != first
    os.rename(moved, tmp_path)


def test_the_list_of_files_is_compact(tmp_path: Path) -> None:
    fill(tmp_path, count=50)
    files = listing.list_pictures(str(tmp_path))
    assert len(pickle.dumps(files)) < 100 * 40 and files.relative(0) == "a/0000.png" and files.relative(99) == "b/0049.png"


def photos(root: Path, count: int) -> Path:
    """JPEGs of noise in two classes, large enough to be decoded at a reduced scale."""
    for k in range(count):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 40 + k % 2)).save(root / "ab"[k % 2] / f"{k:04}.jpg")
    return root


@pytest.mark.parametrize("count", [20, 400])  # of few, this process takes care alone
def test_what_the_check_decodes_is_not_decoded_again(count: int, tmp_path: Path) -> None:
    root = photos(tmp_path / "data", count)
    first = folder_part(root=str(root), size=8, validation=0.2)
    again = folder_part(root=str(root), size=8, validation=0.2)  # remembers the verdict, has no pictures
    assert first.validation and again.validation
    sides = [(first.train, again.train), (first.validation, again.validation)]
    expected = [later.read(range(len(later))) for _, later in sides]
    shutil.rmtree(root)
    for (split, later), pictures in zip(sides, expected, strict=True):
        found = split.read(np.arange(len(split)))
        assert (found == pictures).all() and found.dtype == np.uint8 and found.flags.writeable and split.digest == later.digest
        with pytest.raises(UserError, match="No such file"):
            later.read([0])
        with pytest.raises(UserError, match="No such file"):  # what is sent to another process decodes by itself
            pickle.loads(pickle.dumps(split.read))([0])
    assert not [file for file in cache_folder().iterdir() if file.is_file()]


def test_pictures_that_are_skipped_do_not_move_those_that_the_check_decoded(tmp_path: Path) -> None:
    root = photos(tmp_path / "data", 1001)
    bad = sorted((root / "a").iterdir())[3]
    bad.write_bytes(b"rubbish")
    first, again = (folder_part(root=str(root), size=8, on_bad_image="skip") for _ in range(2))
    assert [path for path, _ in first.skipped] == [str(bad)] and first.skipped == again.skipped and len(first.train) == 1000
    assert (first.train.read(range(1000)) == again.train.read(range(1000))).all()


def test_a_disk_without_room_for_what_the_check_decodes(tmp_path: Path) -> None:
    root = photos(tmp_path / "data", 20)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        first = folder_part(root=str(root), size=8).train
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (first.read(range(20)) == folder_part(root=str(root), size=8, verify="off").train.read(range(20))).all()


def test_a_picture_that_kills_the_check_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "data", 400)
    real, deadly = verifying.decode, str(root / "b" / "0301.jpg")

    def decode(path: str, *given: Any, **more: Any) -> np.ndarray:
        if path == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *given, **more)

    monkeypatch.setattr(verifying, "decode", decode)
    with pytest.raises(UserError, match="a process that checks pictures died") as caught:
        folder_part(root=str(root), size=8)
    assert deadly in str(caught.value) and str(caught.value).count(".jpg") <= 32

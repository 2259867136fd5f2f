"""CIFAR and MNIST files, read like torchvision reads them, and refused where they are damaged or want to run something."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from trainrun.errors import UserError
from trainrun.parts.datasets import archives, published

N = 7
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINRUN_DATA", raising=False)
    monkeypatch.setenv("TRAINRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_DEBIAN", {"fashion_mnist": str(tmp_path / "debian")})
    for name in ("CIFAR10", "CIFAR100", "MNIST", "FASHION_MNIST"):
        monkeypatch.setattr(published, name, replace(getattr(published, name), train_records=N, test_records=N))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def cifar_batches(spec: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "data": RANDOM.integers(0, 256, (N, 3072), dtype=np.uint8),
            spec.label_key: RANDOM.integers(0, 10 if spec.label_bytes == 1 else 100, N).tolist(),
            "coarse_labels": RANDOM.integers(0, 20, N).tolist(),
            "filenames": [f"f{k}.png" for k in range(N)],
        }
        for name in (*spec.train_files, spec.test_file)
    }


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """As the published files have it: protocol 2, the array by way of _reconstruct, raw data as a byte string."""

    class Plain(pickle._Pickler):  # type: ignore[name-defined, misc]  # the Python one, which can be extended
        dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # as above

        def save_bytes(self, value: bytes) -> None:
            self.write(b"T" + len(value).to_bytes(4, "little") + value)

        dispatch[bytes] = save_bytes

    out = io.BytesIO()
    Plain(out, 2).dump(batch)
    return out.getvalue()


def write_cifar(folder: Path, spec: Any, binary: bool, pack: Any = python2_pickle) -> dict[str, dict[str, Any]]:
    folder.mkdir(parents=True)
    batches = cifar_batches(spec)
    for name, batch in batches.items():
        if binary:
            columns = [np.array(batch[key], np.uint8)[:, None] for key in ("coarse_labels", spec.label_key)[2 - spec.label_bytes :]]
            (folder / f"{name}.bin").write_bytes(np.hstack([*columns, batch["data"]]).tobytes())
        else:
            (folder / name).write_bytes(pack(batch))
    return batches


def check_cifar(data: Any, batches: dict[str, dict[str, Any]], spec: Any) -> None:
    for split, files in ((data.train, spec.train_files), (data.validation, (spec.test_file,))):
        expected = np.concatenate([batches[file]["data"] for file in files]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert (split.read(range(len(split))) == expected).all() and split.shape == (32, 32, 3)
        assert split.labels.tolist() == [label for file in files for label in batches[file][spec.label_key]]


PACKS = {
    "python 2": python2_pickle,
    "protocol 2": lambda b: pickle.dumps(b, 2),
    "protocol 4": lambda b: pickle.dumps({k.encode(): v for k, v in b.items()}, 4),
}


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("kind", ["binary", *PACKS])
@pytest.mark.parametrize("part", ["cifar10", "cifar100"])
def test_cifar_in_each_form(tmp_path: Path, part: str, kind: str, archive: bool) -> None:
    spec = getattr(published, part.upper())
    k = 0 if kind == "binary" else 1
    folder = tmp_path / "d" / spec.folders[k]
    batches = write_cifar(folder, spec, k == 0, PACKS.get(kind))
    roots = [tmp_path / "d", folder]
    if archive:
        (tmp_path / "e").mkdir()
        with tarfile.open(tmp_path / "e" / spec.archive_names[k], "w:gz") as out:
            out.add(folder, spec.folders[k])
        roots = [tmp_path / "e"]
    for root in roots:
        data = getattr(published, part)(root=str(root))
        check_cifar(data, batches, spec)
        assert len(data.classes) == (10 if part == "cifar10" else 100) and len(data.mean) == len(data.std) == 3


@pytest.mark.parametrize("part", ["CIFAR10", "CIFAR100"])
def test_cifar_as_torchvision_reads_it(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as reference

    spec, their = getattr(published, part), getattr(reference, part)
    folder = tmp_path / their.base_folder
    write_cifar(folder, spec, binary=False)
    names = [f"class {k}" for k in range(100)]
    (folder / their.meta["filename"]).write_bytes(pickle.dumps({their.meta["key"]: names}))
    monkeypatch.setattr(their, "_check_integrity", lambda self: True)
    monkeypatch.setattr(reference.cifar, "check_integrity", lambda *a: True)
    data = getattr(published, part.lower())(root=str(tmp_path))
    for split, train in ((data.train, True), (data.validation, False)):
        expected = their(str(tmp_path), train=train)
        assert (split.read(range(len(split))) == expected.data).all() and split.labels.tolist() == expected.targets


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder: Path, compressed: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    arrays = {}
    for side in ("train", "t10k"):
        arrays[f"{side}-images-idx3-ubyte"] = RANDOM.integers(0, 256, (N, 28, 28), dtype=np.uint8)
        arrays[f"{side}-labels-idx1-ubyte"] = RANDOM.integers(0, 10, N, dtype=np.uint8)
    for name, array in arrays.items():
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("part", "below"), [("mnist", "MNIST/raw"), ("mnist", "."), ("fashion_mnist", "FashionMNIST/raw"), ("fashion_mnist", "raw")]
)
def test_mnist_in_each_layout(tmp_path: Path, part: str, below: str, compressed: bool) -> None:
    arrays = write_mnist(tmp_path / "d" / below, compressed)
    data = getattr(published, part)(root=str(tmp_path / "d"))
    for split, side in ((data.train, "train"), (data.validation, "t10k")):
        assert (split.read(range(N))[..., 0] == arrays[f"{side}-images-idx3-ubyte"]).all() and split.shape == (28, 28, 1)
        assert split.labels.tolist() == arrays[f"{side}-labels-idx1-ubyte"].tolist()
    assert len(data.classes) == 10 and len(data.mean) == 1


def test_mnist_as_torchvision_reads_it(tmp_path: Path) -> None:
    import torchvision.datasets as reference

    write_mnist(tmp_path / "MNIST" / "raw")
    data = published.mnist(root=str(tmp_path))
    for split, train in ((data.train, True), (data.validation, False)):
        expected = reference.MNIST(str(tmp_path), train=train)
        assert (
            split and (split.read(range(N))[..., 0] == expected.data.numpy()).all() and split.labels.tolist() == expected.targets.tolist()
        )


def test_the_usual_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in ("debian", "cache/fashion_mnist", "here/data/FashionMNIST/raw", "own/fashion-mnist"):
        arrays = write_mnist(tmp_path / place)
        if place.startswith("own"):
            monkeypatch.setenv("TRAINRUN_DATA", str(tmp_path / "own"))
        found.append((published.fashion_mnist().train.read(range(N))[..., 0] == arrays["train-images-idx3-ubyte"]).all())
    assert found == [True] * 4
    with pytest.raises(UserError, match="mnist: no train-images"):  # files of Fashion-MNIST are not taken for MNIST
        published.mnist()


def test_nothing_there_says_where_it_looked_and_what_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_DATA", str(tmp_path / "own"))
    with pytest.raises(UserError) as caught:
        published.fashion_mnist()
    for words in (tmp_path / "own", tmp_path / "here" / "data", tmp_path / "cache", tmp_path / "debian"):
        assert str(words) in str(caught.value)
    assert "data.download=true" in str(caught.value) and "apt install dataset-fashion-mnist" in str(caught.value)
    with pytest.raises(UserError, match=r"cifar10: no cifar-10-batches-bin or .* in .*/x; write data\.download=true"):
        published.cifar10(root=str(tmp_path / "x"))


def test_cut_and_strange_mnist_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "d")
    write_mnist(tmp_path / "z", compressed=True)
    for folder, suffix in (("d", ""), ("z", ".gz")):
        for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            path = tmp_path / folder / (name + suffix)
            good = path.read_bytes()
            for bad in (good[:-1], good[:3], b"", b"x" + good, good + b"x"):
                path.write_bytes(bad)
                with pytest.raises(UserError, match=name):
                    published.mnist(root=str(tmp_path / folder))
            path.write_bytes(good)
    (tmp_path / "d" / "train-labels-idx1-ubyte").write_bytes(idx(np.full(N, 10, np.uint8)))
    with pytest.raises(UserError, match=r"label is outside 0\.\.9"):
        published.mnist(root=str(tmp_path / "d"))
    (tmp_path / "d" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError):
        published.mnist(root=str(tmp_path / "d"))


@pytest.mark.parametrize("binary", [True, False])
def test_cut_cifar_files_are_named(tmp_path: Path, binary: bool) -> None:
    spec = published.CIFAR10
    folder = tmp_path / spec.folders[not binary]
    write_cifar(folder, spec, binary)
    for name in ("data_batch_3", "test_batch"):
        path = folder / (name + ".bin" * binary)
        good = path.read_bytes()
        for bad in (good[:-1], good[: len(good) // 2], good[:-3073], b""):
            path.write_bytes(bad)
            with pytest.raises(UserError, match=name):
                published.cifar10(root=str(tmp_path))
        path.write_bytes(good)
    (folder / ("data_batch_4" + ".bin" * binary)).unlink()
    with pytest.raises(UserError, match="data_batch_4"):
        published.cifar10(root=str(tmp_path))


class Trap:
    """What it says when it is unpickled goes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    spec = published.CIFAR10
    folder = tmp_path / spec.folders[1]
    write_cifar(folder, spec, binary=False)
    sprung = tmp_path / "sprung"
    trap = pickle.dumps({"data": Trap(sprung), "labels": [0] * N}, 2)
    pickle.loads(trap)
    assert sprung.exists(), "the control: an ordinary reader runs it"
    sprung.rmdir()
    (folder / "data_batch_1").write_bytes(trap)
    with pytest.raises(UserError, match="data_batch_1.*mkdir, which is not allowed"):
        published.cifar10(root=str(tmp_path))
    assert not sprung.exists()


@pytest.mark.parametrize(
    "attack",
    [b"cos\nsystem\n(S'true'\ntR.", b"cnumpy\nload\n.", b"c_codecs\ndecode\n.", b"cbuiltins\neval\n.", b"\x80\x02}r\xff\xff\xff\x03."],
)
def test_other_names_and_huge_memo_numbers(tmp_path: Path, attack: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match="data_batch_1"):
        archives.cifar_python(str(tmp_path / "data_batch_1"), attack, N, "labels")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_small_files_that_unpack_to_large_ones_are_refused_cheaply(tmp_path: Path) -> None:
    write_mnist(tmp_path / "z", compressed=True)
    bomb = gzip.compress(idx(np.zeros((N, 28, 28), np.uint8)) + bytes(200 << 20), 9)
    (tmp_path / "z" / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    with tarfile.open(tmp_path / published.CIFAR10.archive_names[0], "w:gz") as out:
        entry = tarfile.TarInfo("cifar-10-batches-bin/other.bin")
        entry.size = 60 << 20
        out.addfile(entry, io.BytesIO(bytes(entry.size)))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than"):
        published.mnist(root=str(tmp_path / "z"))
    with pytest.raises(UserError, match=r"binary\.tar\.gz is damaged.*more than"):
        published.cifar10(root=str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"junk", gzip.compress(b"junk" * 500, mtime=0)], ids=["empty", "junk", "gzip of junk"])
def test_archives_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / published.CIFAR10.archive_names[1]).write_bytes(content)
    with pytest.raises(UserError, match=r"python\.tar\.gz is damaged"):
        published.cifar10(root=str(tmp_path))


def serve(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[str]:
    import urllib.error
    import urllib.request

    asked = []

    def urlopen(url: str, timeout: float) -> Any:
        asked.append(url)
        name = url.rsplit("/", 1)[1]
        if name not in files:
            raise urllib.error.URLError("Name or service not known")
        response = io.BytesIO(files[name])
        response.length = len(files[name])  # type: ignore[attr-defined]  # as a response of the library has it
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    arrays = write_mnist(tmp_path / "source", compressed=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    sums = {name: hashlib.md5(files[name + ".gz"]).hexdigest() for name in arrays}
    monkeypatch.setattr(published, "MNIST", replace(published.MNIST, md5=sums))
    asked = serve(monkeypatch, files)
    data = published.mnist(download=True)
    assert (data.train.read(range(N))[..., 0] == arrays["train-images-idx3-ubyte"]).all() and len(asked) == 4
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == sorted(files)
    published.mnist(download=True)
    assert len(asked) == 4, "what is there is not fetched again"


def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {})
    with pytest.raises(UserError, match=r"cannot download https://www\.cs\.toronto.*Name or service not known.*data\.root=PATH"):
        published.cifar10(download=True)
    serve(monkeypatch, {"cifar-10-python.tar.gz": b"an error page"})
    with pytest.raises(UserError, match="MD5"):
        published.cifar10(download=True)
    assert list((tmp_path / "cache" / "cifar10").iterdir()) == []


def test_urls_and_sums_are_those_of_torchvision() -> None:
    import torchvision.datasets as reference

    for spec, their in ((published.CIFAR10, reference.CIFAR10), (published.CIFAR100, reference.CIFAR100)):
        assert spec.md5 == their.tgz_md5 and their.url.endswith(f"~kriz/{spec.archive_names[1]}")
    for mnist, theirs in ((published.MNIST, reference.MNIST), (published.FASHION_MNIST, reference.FashionMNIST)):
        assert [(f"{name}.gz", md5) for name, md5 in mnist.md5.items()] == theirs.resources and mnist.mirror in theirs.mirrors
    assert tuple(reference.FashionMNIST.classes) == published.FASHION_CLASSES
    assert len(published.CIFAR100_CLASSES) == 100 and sorted(set(published.CIFAR100_CLASSES)) == published.CIFAR100_CLASSES

"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST: read from where they usually lie, or downloaded on request."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainrun.errors import UserError
from trainrun.parts.datasets import archives
from trainrun.parts.datasets.embedded import in_memory
from trainrun.parts.datasets.pictures import printable
from trainrun.parts.datasets.splits import Data, cache_folder
from trainrun.recipe.registry import part

if TYPE_CHECKING:
    import numpy as np

Root = Annotated[str | None, Field(min_length=1, description="The folder that holds the files; null looks in the usual places.")]
Download = Annotated[bool, Field(description="Fetch the published files if they are not there.")]

_DEBIAN = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}


@dataclass(frozen=True)
class _Cifar:
    name: str
    folders: tuple[str, str]  # of the binary and of the Python version; the archives are called likewise
    archive_names: tuple[str, str]
    train_files: tuple[str, ...]
    test_file: str
    train_records: int  # in each file
    test_records: int
    label_bytes: int
    label_key: str
    md5: str  # of the Python version's archive


CIFAR10 = _Cifar(
    "cifar10",
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    tuple(f"data_batch_{k}" for k in range(1, 6)),
    "test_batch",
    10_000,
    10_000,
    1,
    "labels",
    "c58f30108f718f92721af3b95e74349a",
)
CIFAR100 = _Cifar(
    "cifar100",
    ("cifar-100-binary", "cifar-100-python"),
    ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
    ("train",),
    "test",
    50_000,
    10_000,
    2,
    "fine_labels",
    "eb9058c3a382ffc7106e4002c42a8d85",
)


@dataclass(frozen=True)
class _Mnist:
    name: str
    folders: tuple[str, ...]
    train_records: int
    test_records: int
    mirror: str
    md5: dict[str, str]


MNIST = _Mnist(
    "mnist",
    ("MNIST/raw", "MNIST", "mnist"),
    60_000,
    10_000,
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION_MNIST = _Mnist(
    "fashion_mnist",
    ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
    60_000,
    10_000,
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
    skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905  # a hundred quotes would not read better
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _places(name: str, root: str | None) -> list[str]:
    """The folders to look in: root alone, or the usual ones in order."""
    if root is not None:
        return [os.path.expanduser(root)]
    given = os.environ.get("TRAINRUN_DATA")
    return [*([given] if given else []), "data", str(cache_folder() / name), *([_DEBIAN[name]] if name in _DEBIAN else [])]


def _not_found(name: str, wanted: str, places: list[str]) -> UserError:
    debian = "; on Debian and Ubuntu: apt install dataset-fashion-mnist" if name in _DEBIAN else ""
    shown = ", ".join(printable(os.path.abspath(place)) for place in places)
    return UserError(f"{name}: no {wanted} in {shown}; write data.download=true to fetch it, or data.root=PATH{debian}")


def _download(url: str, folder: str, md5: str) -> None:
    """Fetch a file into a folder; it gets its name only once its MD5 sum is right."""
    import http.client
    import urllib.request

    from tqdm import tqdm

    from trainrun.report.console import no_bars

    name = url.rsplit("/", 1)[1]
    final, partial = os.path.join(folder, name), os.path.join(folder, f".{name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        os.makedirs(folder, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=30) as response,
            open(partial, "wb") as out,
            tqdm(total=response.length, unit="B", unit_scale=True, desc=name, disable=no_bars(), leave=False) as bar,
        ):
            while block := response.read(1 << 18):
                out.write(block)
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != md5:
            raise UserError(f"downloaded {url}, but its MD5 sum is {digest.hexdigest()} instead of {md5}; try again, or another day")
        os.replace(partial, final)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot download {url} to {printable(folder)}: {reason}; fetch the file on a machine with a network, and write data.root=PATH with its folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def _find_cifar(spec: _Cifar, places: list[str]) -> tuple[str, bool] | None:
    """The first folder or archive with the data, and whether it is the binary version."""
    for place in places:
        for base in (place, os.path.join(place, spec.name)):
            for k in range(2):
                first = spec.train_files[0] + (".bin" if k == 0 else "")
                for folder in (os.path.join(base, spec.folders[k]), base):
                    if os.path.isfile(os.path.join(folder, first)):
                        return folder, k == 0
                archive = os.path.join(base, spec.archive_names[k])
                if os.path.isfile(archive):
                    return archive, k == 0
    return None


def _cifar(spec: _Cifar, root: str | None, download: bool) -> tuple[Any, Any]:
    import numpy as np

    places = _places(spec.name, root)
    found = _find_cifar(spec, places)
    if found is None and download:
        target = places[0] if root is not None else str(cache_folder() / spec.name)
        _download(f"https://www.cs.toronto.edu/~kriz/{spec.archive_names[1]}", target, spec.md5)
        found = _find_cifar(spec, [target])
    if found is None:
        raise _not_found(spec.name, f"{' or '.join(spec.folders)}, nor their .tar.gz,", places)
    place, binary = found
    suffix = ".bin" if binary else ""
    records = {f"{file}{suffix}": spec.train_records for file in spec.train_files} | {f"{spec.test_file}{suffix}": spec.test_records}
    packed = os.path.isfile(place)
    contents: dict[str, bytes] = {}
    if packed:
        # The Python version also holds file names and labels, and written by Python 3 it takes half as much again.
        contents = archives.read_members(place, {file: count * 6400 + 4096 for file, count in records.items()})
    # One file at a time into its place, so that no more than the data set itself is ever held.
    pictures = np.empty((sum(records.values()), 32, 32, 3), np.uint8)
    labels = np.empty(len(pictures), np.int64)
    done = 0
    for file, count in records.items():
        path, rows = os.path.join(place, file), slice(done, done + count)
        data = contents.pop(file) if packed else archives.read_bytes(path)
        if binary:
            pictures[rows], labels[rows] = archives.cifar_binary(path, data, count, spec.label_bytes)
        else:
            pictures[rows], labels[rows] = archives.cifar_python(path, data, count, spec.label_key)
        _check_labels(path, labels[rows], 10 if spec.label_bytes == 1 else 100)
        done += count
    test = len(pictures) - spec.test_records
    return in_memory(pictures[:test], labels[:test]), in_memory(pictures[test:], labels[test:])


def _check_labels(path: str, labels: np.ndarray, classes: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise archives.damaged(path, f"a label is outside 0..{classes - 1}")


def _find_mnist(spec: _Mnist, places: list[str], flat: bool) -> str | None:
    """The first folder with the four files. Files that lie in a place itself count only where it can hold no other data set."""
    own = {str(cache_folder() / spec.name), _DEBIAN.get(spec.name)}
    for place in places:
        below = [os.path.join(place, folder) for folder in spec.folders]
        for folder in [place, os.path.join(place, "raw"), *below] if flat or place in own else below:
            if any(os.path.isfile(os.path.join(folder, f"train-images-idx3-ubyte{suffix}")) for suffix in ("", ".gz")):
                return folder
    return None


def _mnist(spec: _Mnist, root: str | None, download: bool) -> tuple[Any, Any]:
    places = _places(spec.name, root)
    folder = _find_mnist(spec, places, root is not None)
    if folder is None and download:
        folder = places[0] if root is not None else str(cache_folder() / spec.name)
        for file in reversed(spec.md5):  # the file that counts as "it is there" comes last
            _download(f"{spec.mirror}{file}.gz", folder, spec.md5[file])
    if folder is None:
        raise _not_found(spec.name, "train-images-idx3-ubyte or its .gz (there, or in " + ", ".join(spec.folders) + ")", places)

    def side(prefix: str, count: int) -> Any:
        arrays = []
        for file, shape in ((f"{prefix}-images-idx3-ubyte", (count, 28, 28)), (f"{prefix}-labels-idx1-ubyte", (count,))):
            plain = os.path.join(folder, file)
            path = plain if os.path.isfile(plain) else plain + ".gz"
            arrays.append(archives.read_idx(path, shape))
        _check_labels(path, arrays[1], 10)
        return in_memory(arrays[0][..., None], arrays[1])

    return side("train", spec.train_records), side("t10k", spec.test_records)


@part("data", shape=lambda options: (32, 32, 3), pictures=lambda options: 50_000)
def cifar10(*, root: Root = None, download: Download = False) -> Data:
    """CIFAR-10: 50,000 + 10,000 colour pictures, 32 x 32 pixels, 10 classes (Krizhevsky 2009).

    Read from $TRAINRUN_DATA, ./data or the cache folder, in this order: cifar-10-batches-bin, its .tar.gz,
    cifar-10-batches-py, its .tar.gz, there or in a folder cifar10. The pickles of the Python version are read without
    running anything. The published test set is the validation set; pictures are uint8 [32, 32, 3].
    """
    train, test = _cifar(CIFAR10, root, download)
    return Data(train, test, CIFAR10_CLASSES, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


@part("data", shape=lambda options: (32, 32, 3), pictures=lambda options: 50_000)
def cifar100(*, root: Root = None, download: Download = False) -> Data:
    """CIFAR-100: 50,000 + 10,000 colour pictures, 32 x 32 pixels, 100 classes (Krizhevsky 2009), the fine labels.

    Read like cifar10, from cifar-100-binary, cifar-100-python or their .tar.gz, there or in a folder cifar100.
    """
    train, test = _cifar(CIFAR100, root, download)
    return Data(train, test, tuple(CIFAR100_CLASSES), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


@part("data", shape=lambda options: (28, 28, 1), pictures=lambda options: 60_000)
def mnist(*, root: Root = None, download: Download = False) -> Data:
    """MNIST: 60,000 + 10,000 handwritten digits, grey, 28 x 28 pixels (LeCun, Cortes, Burges 1998).

    Read from $TRAINRUN_DATA, ./data or the cache folder, in this order: the four idx files, gzipped or not, in MNIST/raw
    (torchvision's layout), MNIST or mnist, or in `root` itself. The published test set is the validation set; pictures
    are uint8 [28, 28, 1].
    """
    train, test = _mnist(MNIST, root, download)
    return Data(train, test, tuple("0123456789"), mean=(0.1307,), std=(0.3081,))


@part("data", shape=lambda options: (28, 28, 1), pictures=lambda options: 60_000)
def fashion_mnist(*, root: Root = None, download: Download = False) -> Data:
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing, grey, 28 x 28 pixels (Zalando 2017, MIT licence).

    Read like mnist, from FashionMNIST/raw, FashionMNIST, fashion-mnist or fashion_mnist, and last from
    /usr/share/datasets/fashion-mnist, where Debian's package dataset-fashion-mnist puts it.
    """
    train, test = _mnist(FASHION_MNIST, root, download)
    return Data(train, test, FASHION_CLASSES, mean=(0.2860,), std=(0.3530,))

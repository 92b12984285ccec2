"""What the known data sets consist of: their files, checksums, usual folders and addresses.

Checksums are of the *decompressed* files, so a copy may be plain, gzip or xz. MNIST and CIFAR-10 were hashed here from
copies whose MD5 is the published one; of the others only published sums are known. Those of Fashion-MNIST and SVHN were
each found in at least two independent places that agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from linfb.datasets.cifar import parse_batch, parse_names
from linfb.datasets.idx import parse_idx
from linfb.datasets.matlab import parse_svhn

__all__ = ["SOURCES", "Download", "Source"]


@dataclass(frozen=True)
class Download:
    """A file to fetch: its name, its checksum as "algorithm:hexadecimal" and the addresses to try in order."""

    file: str
    checksum: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A data set kept in files.

    Parameters
    ----------
    folders : tuple of str
        Where the files usually lie below the root, in the order in which they are looked for; downloads go to the
        second.
    editions : mapping from name to (mapping from file to checksum)
        The known contents; every edition has the same files.
    limits : mapping from file to int
        Largest plausible size of the decompressed file in bytes.
    downloads : tuple of Download
        What to fetch; for an archive its only entry.
    archive_folder : str or None
        The folder inside the tar archive, if the download is one.
    parse : callable
        (file name, content) -> what `assemble` needs of it.
    assemble : callable
        (mapping from file name to parsed content) -> (train images, train labels, test images, test labels, names).
    """

    folders: tuple[str, ...]
    editions: Mapping[str, Mapping[str, str]]
    limits: Mapping[str, int]
    downloads: tuple[Download, ...]
    archive_folder: str | None
    parse: Callable[[str, bytes], Any]
    assemble: Callable[[Mapping[str, Any]], tuple]

    @property
    def archive(self) -> str | None:
        """Name of the tar archive, if the data set is distributed as one."""
        return None if self.archive_folder is None else self.downloads[0].file

    def expected(self, file: str) -> dict[str, str]:
        """Return the checksum of `file` in each edition."""
        return {edition: checksums[file] for edition, checksums in self.editions.items()}


_DIGITS = tuple(map(str, range(10)))


def _mnist_like(
    name: str,
    folders: tuple[str, ...],
    checksums: Mapping[str, tuple[str, str]],
    addresses: tuple[str, ...],
    class_names: tuple[str, ...],
) -> Source:
    """Return a source of MNIST's files: by file the checksums of the compressed original and of its content."""

    def assemble(parts: Mapping[str, np.ndarray]) -> tuple:
        train, test = parts["train-images-idx3-ubyte"], parts["t10k-images-idx3-ubyte"]
        labels = [parts[f"{part}-labels-idx1-ubyte"].astype(np.int64) for part in ("train", "t10k")]
        return train[..., None], labels[0], test[..., None], labels[1], class_names

    return Source(
        folders=folders,
        editions={name: {file: content for file, (_, content) in checksums.items()}},
        limits={file: 64 * 2**20 if "images" in file else 2**17 for file in checksums},
        downloads=tuple(
            Download(f"{file}.gz", packed, tuple(f"{base}{file}.gz" for base in addresses))
            for file, (packed, _) in checksums.items()
        ),
        archive_folder=None,
        parse=lambda file, content: parse_idx(content, 3 if "images" in file else 1),
        assemble=assemble,
    )


_MNIST_CHECKSUMS = {
    "train-images-idx3-ubyte": (
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_MNIST_ADDRESSES = (  # two mirrors, then the authors' own page, which often refuses
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
MNIST = _mnist_like("mnist", (".", "mnist", "MNIST", "MNIST/raw", "raw"), _MNIST_CHECKSUMS, _MNIST_ADDRESSES, _DIGITS)

_FASHION_CHECKSUMS = {
    "train-images-idx3-ubyte": (
        "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
    ),
    "train-labels-idx1-ubyte": (
        "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "md5:9018921c3c673c538a1fc5bad174d6f9",
    ),
    "t10k-images-idx3-ubyte": (
        "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "md5:8181f5470baa50b63fa0f6fddb340f0a",
    ),
    "t10k-labels-idx1-ubyte": (
        "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "md5:15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_FASHION_ADDRESSES = (  # the authors' repository, then their server, which knows no https
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
FASHION_MNIST = _mnist_like(
    "fashion-mnist",
    # the files are named as those of MNIST, so that the folders of the name go before the root itself
    ("FashionMNIST/raw", "fashion-mnist", "FashionMNIST", "fashion_mnist", ".", "raw"),
    _FASHION_CHECKSUMS,
    _FASHION_ADDRESSES,
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def _parse_cifar10(file: str, content: bytes) -> Any:
    if file == "batches.meta":
        return parse_names(content, "label_names", 10)
    return parse_batch(content, ("labels", 10))


def _assemble_cifar10(parts: Mapping[str, Any]) -> tuple:
    batches = [parts[f"data_batch_{i}"] for i in range(1, 6)]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return images, labels, *parts["test_batch"], parts["batches.meta"]


_CIFAR10_SHA256 = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
}
CIFAR10 = Source(
    folders=(".", "cifar-10", "cifar-10/cifar-10-batches-py", "cifar-10-batches-py"),
    editions={"cifar10": {file: f"sha256:{value}" for file, value in _CIFAR10_SHA256.items()}},
    limits=dict.fromkeys(_CIFAR10_SHA256, 32 * 2**20),
    downloads=(
        Download(
            "cifar-10-python.tar.gz",
            "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        ),
    ),
    archive_folder="cifar-10-batches-py",
    parse=_parse_cifar10,
    assemble=_assemble_cifar10,
)


def _parse_cifar100(file: str, content: bytes) -> Any:
    if file == "meta":
        return parse_names(content, "fine_label_names", 100)
    return parse_batch(content, ("fine_labels", 100), (("coarse_labels", 20),))


CIFAR100 = Source(
    folders=(
        *(".", "cifar-100", "cifar-100/cifar-100-python", "cifar-100-python"),
        *("cifar-100/cifar-100-python-subset", "cifar-100-python-subset"),
    ),
    editions={
        "cifar100": {
            "train": "md5:16019d7e3df5f24257cddd939b257f8d",
            "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "sha256:a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
        },
        "cifar100-subset": {  # the first 160 training and 40 test images of each class
            "train": "sha256:740e3aa32115afd91af4a1afab641da4e6fc5770c6c0e219735dc2ff27ae82aa",
            "test": "sha256:175aacb5e36122d89947ff63a83a7c525e480b69804aaeba69f3732517806401",
            "meta": "sha256:a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
        },
    },
    limits={"train": 160 * 2**20, "test": 32 * 2**20, "meta": 2**16},
    downloads=(
        Download(
            "cifar-100-python.tar.gz",
            "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        ),
    ),
    archive_folder="cifar-100-python",
    parse=_parse_cifar100,
    assemble=lambda parts: (*parts["train"], *parts["test"], parts["meta"]),
)

_SVHN_SHA256 = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}
_SVHN_ADDRESS = "ufldl.stanford.edu/housenumbers/"
SVHN = Source(
    folders=(".", "svhn", "SVHN"),
    editions={"svhn": {file: f"sha256:{value}" for file, value in _SVHN_SHA256.items()}},
    limits={"train_32x32.mat": 192 * 2**20, "test_32x32.mat": 64 * 2**20},
    downloads=tuple(
        Download(file, f"sha256:{value}", tuple(f"{scheme}://{_SVHN_ADDRESS}{file}" for scheme in ("https", "http")))
        for file, value in _SVHN_SHA256.items()
    ),
    archive_folder=None,
    parse=lambda file, content: parse_svhn(content),
    assemble=lambda parts: (*parts["train_32x32.mat"], *parts["test_32x32.mat"], _DIGITS),
)

SOURCES: Mapping[str, Source] = {
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
}
"""By the names that :func:`linfb.datasets.load_dataset` takes.

:meta hide-value:
"""

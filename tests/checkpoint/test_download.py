import hashlib
import threading

import pytest
import torch

from dinat_common import download
from mask2former.checkpoint import Checkpointer, CheckpointError, DownloadError, fetch

from .test_checkpoint import Model, same
from .web import Site, serve

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DINAT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "BLOCK", 1000)
    return tmp_path / "cache"


@pytest.fixture
def site():
    with serve(Site(model=CONTENT)) as running:
        yield running


def test_a_file_is_downloaded_once_and_its_checksum_shown(site, cache, caplog, capsys):
    with caplog.at_level("INFO"):
        path = fetch(f"{site.url}/some/model.pth")
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache) and path.name == "model.pth"
    assert SHA256 in caplog.text
    assert "model.pth: 100%" in capsys.readouterr().err
    assert fetch(f"{site.url}/some/model.pth") == path
    assert site.requests == [None]
    assert {p.name for p in path.parent.iterdir()} <= {"model.pth", "model.pth.sha256", "model.pth.lock"}


def test_files_of_one_name_stay_apart(site):
    other = fetch(f"{site.url}/b/model.pth")
    site.files["model"] = b"other"
    assert fetch(f"{site.url}/a/model.pth").read_bytes() == b"other"
    assert other.read_bytes() == CONTENT


def test_broken_transfers_continue_where_they_ended(site):
    site.cuts = [1000, 3000]
    assert fetch(f"{site.url}/model.pth").read_bytes() == CONTENT
    assert site.requests == [None, "bytes=1000-", "bytes=4000-"]


def test_what_an_earlier_call_left_is_continued(site):
    site.cuts = [2500, 1, 1, 1]
    with pytest.raises(DownloadError, match=r"model\.pth: received 2503 of 10240 bytes; .*part is kept"):
        fetch(f"{site.url}/model.pth")
    site.requests.clear()
    assert fetch(f"{site.url}/model.pth").read_bytes() == CONTENT
    assert site.requests == ["bytes=2503-"]


def test_a_download_that_was_complete_but_not_yet_named_so(site, cache):
    path = fetch(f"{site.url}/model.pth")
    path.with_name("model.pth.sha256").unlink()
    path.rename(path.with_name("model.pth.part"))
    path.with_name("model.pth.state").write_text('{"validator": "\\"1\\"", "bytes": 10240}')
    assert fetch(f"{site.url}/model.pth").read_bytes() == CONTENT
    assert site.requests[1:] == ["bytes=10239-"]


@pytest.mark.parametrize("change", ["tag", "no tag", "no ranges", "state"])
def test_a_part_that_can_not_be_continued_is_replaced(site, cache, change):
    if change == "no tag":
        site.tag = None
    site.cuts = [3000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(f"{site.url}/model.pth")
    if change == "tag":
        site.files["model"], site.tag = CONTENT[::-1], '"2"'
    if change == "state":
        next(cache.rglob("*.state")).write_text("{")
    site.ranges = change != "no ranges"
    assert fetch(f"{site.url}/model.pth").read_bytes() == site.files["model"]


def test_the_expected_checksum_is_checked(site, cache):
    wrong = "0" * 64
    with pytest.raises(DownloadError, match=rf"sha256 {SHA256}, expected {wrong}"):
        fetch(f"{site.url}/model.pth#sha256={wrong}")
    assert not list(cache.rglob("model.pth")) and not list(cache.rglob("*.part"))
    path = fetch(f"{site.url}/model.pth#sha256={SHA256.upper()}")
    assert path.read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=rf"expected {wrong}; delete the file"):
        fetch(f"{site.url}/model.pth#sha256={wrong}")
    assert fetch(f"{site.url}/model.pth") == path, "the fragment is no part of the address"


def test_a_damaged_copy_is_downloaded_again(site, caplog):
    path = fetch(f"{site.url}/model.pth")
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(f"{site.url}/model.pth").read_bytes() == CONTENT
    assert "has changed since it was downloaded" in caplog.text


def test_processes_that_want_the_same_file_download_it_once(site):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(f"{site.url}/model.pth"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert site.requests == [None]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("detectron2://ImageNetPretrained/R-50.pkl", "begins with http"),
        ("file:///etc/model.pth", "begins with http"),
        ("{site}/model.pth#sha1=abc", "64 hexadecimal digits"),
        ("{site}/", "name of a weight file"),
        ("{site}/index.html", "name of a weight file"),
        ("{site}/..%2F..%2F.pth", "name of a weight file"),
        ("{site}/absent.pth", "the server answered 404"),
        ("http://127.0.0.1:9/model.pth", "no connection"),
    ],
)
def test_what_can_not_be_had_is_explained(site, address, message):
    with pytest.raises(DownloadError, match=message):
        fetch(address.format(site=site.url))


def test_a_server_in_trouble_is_asked_again(site):
    site.status = 503
    with pytest.raises(DownloadError, match="503"):
        fetch(f"{site.url}/model.pth")
    assert len(site.requests) == 4


def test_model_weights_may_be_a_url(site, tmp_path):
    torch.manual_seed(1)
    weights = Model().state_dict()
    torch.save({"model": weights, "iteration": 3}, tmp_path / "w.pth")
    site.files["w"] = (tmp_path / "w.pth").read_bytes()
    model = Model()
    assert Checkpointer(model).load(f"{site.url}/w.pth", checkpointables=[]) == {"iteration": 3}
    assert same(model.state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS: http.*absent\.pth: the server answered 404"):
        Checkpointer(model).load(f"{site.url}/absent.pth")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    assert download.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DINAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download.cache_folder() == tmp_path / "xdg" / "dinat"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "dinat"

"""Pictures that requests name: which are read, within which limits, and who waits for them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time

import numpy as np
import pytest
from servers import free_port
from web_server import WebServer

from easyrec_mm.embedding.image_model import PictureEmbedder
from easyrec_mm.errors import UserError
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.serving import picture_source
from easyrec_mm.serving.picture_source import PictureSource
from easyrec_mm.serving.release import ServiceOptions, Source
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store


@pytest.fixture
def web():
    server = WebServer()
    yield server
    server.stop()


@pytest.fixture
def inside_server():
    server = WebServer()
    yield server
    server.stop()


def read(paths, root="", hosts=(), timeout_s=10.0):
    """What a source reads of paths, one after the other."""

    async def contents():
        source = PictureSource(str(root), hosts, timeout_s)
        try:
            return [await source.read(path) for path in paths]
        finally:
            await source.close()

    return asyncio.run(contents())


def test_the_reason_is_logged_at_most_once_a_second(tmp_path, caplog, monkeypatch):
    (tmp_path / "empty.jpg").write_bytes(b"")
    clock = iter([10.0, 10.5, 11.5])
    paths = ["none.jpg", "empty.jpg", "../a.jpg"]

    async def lines():
        source = PictureSource(str(tmp_path), (), 10.0)
        for path in paths:
            now = next(clock)
            monkeypatch.setattr(picture_source.time, "monotonic", lambda now=now: now)
            assert await source.read(path) is None
        return [record.getMessage() for record in caplog.records]

    first, last = asyncio.run(lines())
    place = f"'{tmp_path}/none.jpg'"
    assert first.startswith("a request's picture 'none.jpg' is left out: it cannot be read: ")
    assert first.endswith(f"No such file or directory: {place}")
    assert last.startswith(
        "a request's picture '../a.jpg' is left out: it is neither below --image_root nor of --image"
    )
    assert last.endswith("; 1 more were left out since the last line")


# --- Files


def test_files_below_the_root_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_source, "MAX_PICTURE_BYTES", 100)
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    for path in (root / "a" / "good.jpg", tmp_path / "secret.jpg", tmp_path / "root2" / "b.jpg"):
        path.write_bytes(path.name.encode())
    (root / "inner.jpg").symlink_to(root / "a" / "good.jpg")
    (root / "outer.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "large.jpg").write_bytes(bytes(101))
    (root / "empty.jpg").write_bytes(b"")
    os.mkfifo(root / "pipe.jpg")
    allowed = ["a/good.jpg", "a/../a/good.jpg", "inner.jpg", str(root / "a" / "good.jpg"), f"file://{root}/a/good.jpg"]
    assert read(allowed, root) == [b"good.jpg"] * len(allowed)
    refused = ["../secret.jpg", "a/../../secret.jpg", "outer.jpg", "folder/secret.jpg", str(tmp_path / "secret.jpg")]
    refused += [f"file://{tmp_path}/secret.jpg", f"{root}2/b.jpg", "../root2/b.jpg", "/etc/passwd", "/dev/zero"]
    refused += ["large.jpg", "empty.jpg", "pipe.jpg", "a", "", "none.jpg", "a\0b", "x" * 5000, "s3://bucket/a.jpg"]
    assert read(refused, root) == [None] * len(refused)
    monkeypatch.chdir(root)
    assert read([*allowed, *refused], hosts=["https://images.example.com"]) == [None] * len([*allowed, *refused])


# --- Web servers


def test_only_allowed_hosts_are_asked(web, inside_server):
    web.add("/a.jpg")
    inside_server.add("/secret")
    port = inside_server.url.rpartition(":")[2]
    allowed = [f"{web.url}/a.jpg", f"{web.url.upper().replace('HTTP', 'http')}/a.jpg"]
    assert read(allowed, hosts=[web.url]) == [b"picture"] * 2
    refused = [f"{inside_server.url}/secret", f"http://127.0.0.1:{port}@{web.url[7:]}/a.jpg", "http://", "http://[/a"]
    refused += [f"{web.url}@127.0.0.1:{port}/secret", f"{web.url}#@127.0.0.1:{port}/secret", "ftp://127.0.0.1/a"]
    refused += [f"https{web.url[4:]}/a.jpg", f"{web.url}\\@127.0.0.1:{port}/secret", "http://169.254.169.254/latest"]
    read(refused, hosts=[web.url])
    assert inside_server.asked == []


def test_redirects_are_followed_within_the_allowed_hosts(web, inside_server):
    inside_server.add("/secret")
    web.add("/good.jpg")
    web.add("/moved", b"", 302, location="/good.jpg")
    web.add("/away", b"", 301, location=f"{inside_server.url}/secret")
    web.add("/file", b"", 302, location="file:///etc/passwd")
    web.add("/loop", b"", 302, location="/loop")
    web.add("/nowhere", b"", 302)
    paths = [f"{web.url}{path}" for path in ("/moved", "/away", "/file", "/loop", "/nowhere", "/none")]
    assert read(paths, hosts=[web.url]) == [b"picture", None, None, None, None, None]
    assert inside_server.asked == []
    assert read(paths[1:2], hosts=[web.url, inside_server.url]) == [b"picture"]


def test_a_root_on_a_web_server(web, inside_server):
    web.add("/pictures/a.jpg")
    web.add("/secret")
    web.add("/pictures/up", b"", 302, location="/secret")
    paths = [
        "a.jpg",
        f"{web.url}/pictures/a.jpg",
        "../secret",
        "%2e%2e/secret",
        "%252e%252e/secret",
        f"{web.url}/secret",
    ]
    paths += ["up", f"{inside_server.url}/a.jpg", "/etc/passwd"]
    assert read(paths, f"{web.url}/pictures") == [b"picture"] * 2 + [None] * 7
    assert not {"/secret", "/pictures/../secret"} & set(web.asked)
    assert inside_server.asked == []


def test_limits_of_bytes_and_time(web, monkeypatch):
    monkeypatch.setattr(picture_source, "MAX_PICTURE_BYTES", 1000)
    web.add("/fits", bytes(1000))
    web.add("/large", bytes(1001))
    web.add("/bomb", bytes(500), **{"content-encoding": "gzip"})
    web.add_endless("/endless")
    paths = [f"{web.url}/{name}" for name in ("fits", "large", "endless", "bomb")]
    assert read(paths, hosts=[web.url]) == [bytes(1000), None, None, bytes(500)]
    never = threading.Event()
    web.add_waiting("/waits", never, b"")
    assert read([f"{web.url}/waits"], hosts=[web.url], timeout_s=0.3) == [None]
    never.set()


def test_a_host_that_cannot_be_reached_is_left_alone_for_a_while(web, monkeypatch):
    now_s = [time.monotonic()]
    monkeypatch.setattr(picture_source.time, "monotonic", lambda: now_s[0])
    web.add("/a.jpg")
    dead = f"http://127.0.0.1:{free_port()}"

    async def contents():
        source = PictureSource("", [web.url, dead], 10.0)
        first = [await source.read(f"{dead}/a.jpg"), await source.read(f"{web.url}/a.jpg")]
        reached = []
        source_fetch = source.fetch
        monkeypatch.setattr(source, "fetch", lambda url: reached.append(str(url)) or source_fetch(url))
        await source.read(f"{dead}/b.jpg")
        now_s[0] += 5.1
        await source.read(f"{dead}/c.jpg")
        await source.close()
        return first, reached

    assert asyncio.run(contents()) == ([None, b"picture"], [f"{dead}/c.jpg"])


@pytest.mark.parametrize("host", ["images.example.com", "https://", "https://a/b", "https://user@a", "https://a:b"])
def test_hosts_that_are_none(host):
    shown = hide_secrets(host).replace("*", r"\*")
    with pytest.raises(UserError, match=f"--image_hosts {shown}: .*as in https://images.example.com or s3://bucket"):
        PictureSource("", [host], 1.0)


def test_pictures_of_a_bucket(s3, bucket):
    s3.put(f"{bucket}/pictures/a.jpg", b"picture")
    s3.put(f"{bucket}/secret", b"secret")
    paths = ["a.jpg", f"{bucket}/pictures/a.jpg", "../secret", f"{bucket}/secret", "none.jpg"]
    assert read(paths, f"{bucket}/pictures") == [b"picture"] * 2 + [None] * 3
    assert read([f"{bucket}/secret"], hosts=[bucket]) == [b"secret"]


# --- Requests


def serve(place, load_embedder, **options):
    options = ServiceOptions(f"{place}/rec", missing_vector="compute", **options)
    return Service(options, open_store(f"lmdb://{place}/store"), load_embedder)


@pytest.fixture(scope="module")
def embedder(exported):
    return PictureEmbedder(str(exported.folder / "image"))


@pytest.mark.slow
def test_others_are_answered_while_a_picture_is_waited_for(exported, embedder, serving_place, samples, web):
    """The candidates beside it take their vectors, it takes the mean, and later requests find it."""
    key = samples[0][0]["img_path"]
    content = (exported.data / key).read_bytes()
    may_answer = threading.Event()
    web.add_waiting("/slow.jpg", may_answer, content)
    web.add("/good.jpg", content)
    options = {"image_hosts": (web.url,)}
    impatient = serve(serving_place, lambda fingerprint: embedder, picture_timeout_s=3.0, **options)

    def request(*keys):
        return {"instances": [{**samples[0][i], "img_path": key} for i, key in enumerate(keys)]}

    answer = impatient.answer(request(f"{web.url}/slow.jpg", f"{web.url}/good.jpg", key, f"{web.url}/none.jpg"))
    assert answer.sources.tolist() == [Source.MEAN, Source.COMPUTED, Source.STORE, Source.MEAN]
    assert np.isfinite(answer.outputs["probs_click"]).all()

    patient = serve(serving_place, lambda fingerprint: embedder, picture_timeout_s=60.0, **options)
    slow = patient.find_vectors(patient.read(request(f"{web.url}/slow.jpg")))
    for _ in range(3):
        assert patient.answer(request(f"{web.url}/good.jpg")).sources.tolist() == [Source.COMPUTED]
        assert patient.answer(request(key)).sources.tolist() == [Source.STORE]
    assert not slow.computing.done()
    may_answer.set()
    slow.complete()
    assert slow.sources.tolist() == [Source.COMPUTED]


def test_a_picture_that_comes_late_is_there_for_later_requests(exported, embedder, serving_place, samples, web):
    key = samples[0][0]["img_path"]
    may_answer = threading.Event()
    web.add_waiting("/late.jpg", may_answer, (exported.data / key).read_bytes())
    hasty = serve(serving_place, lambda fingerprint: embedder, picture_timeout_s=0.1, image_hosts=(web.url,))
    request = {"instances": [{**samples[0][0], "img_path": f"{web.url}/late.jpg"}]}
    assert [hasty.answer(request).sources.tolist() for _ in range(3)] == [[Source.MEAN]] * 3
    may_answer.set()
    until_s = time.monotonic() + 30
    while hasty.answer(request).sources.tolist() != [Source.COMPUTED]:
        assert time.monotonic() < until_s
    assert web.asked == ["/late.jpg"]


def test_places_that_are_down_do_not_fail_a_request(embedder, serving_place, samples):
    """Neither a web server nor a bucket nor a missing folder; each takes the mean."""
    dead = f"http://127.0.0.1:{free_port()}"
    options = {"image_hosts": (dead, "s3://no-such-bucket"), "image_root": f"{serving_place}/none"}
    service = serve(serving_place, lambda fingerprint: embedder, picture_timeout_s=2.0, **options)
    keys = [f"{dead}/a.jpg", "s3://no-such-bucket/a.jpg", "a.jpg", "../rec/manifest.json"]
    answer = service.answer({"instances": [{**samples[0][0], "img_path": key} for key in keys]})
    assert answer.sources.tolist() == [Source.MEAN] * 4


def test_pictures_that_are_none(exported, embedder, serving_place, samples, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    shutil.copy(exported.data / samples[0][0]["img_path"], root / "good.jpg")
    (root / "text.jpg").write_text("no picture")
    (root / "cut.jpg").write_bytes((root / "good.jpg").read_bytes()[:200])
    service = serve(serving_place, lambda fingerprint: embedder, image_root=str(root), picture_timeout_s=60.0)
    instances = [{**samples[0][0], "img_path": key} for key in ("text.jpg", "good.jpg", "cut.jpg")]
    assert service.answer({"instances": instances}).sources.tolist() == [Source.MEAN, Source.COMPUTED, Source.MEAN]

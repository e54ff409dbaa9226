"""The server as operators meet it: reloading, several processes, processes that are killed, remote stores."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from flow_helpers import embed
from serve_process import Running, asked, running, wait_for

from easyrec_mm.store import open_store

# --- Reloading


@pytest.mark.slow
def test_reloading_under_load(exported, earlier_export, serving_place, samples, tmp_path_factory):
    """New vectors, a new model and bad ones while requests run: none fails, and each answer is of one release."""
    folder = tmp_path_factory.mktemp("reload")
    shutil.copytree(serving_place / "rec", folder / "rec")
    shutil.copytree(serving_place / "store", folder / "store")
    body = {"instances": samples[0]}
    with running(folder / "rec", f"lmdb://{folder}/store") as server:
        with asked(server, body) as replies:
            (folder / "rec" / "2").mkdir()
            shutil.copy(exported.folder / "rec" / "manifest.json", folder / "rec" / "2")  # a half-written export
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="refused"}') == 1)
            shutil.rmtree(folder / "rec" / "2")
            embed(exported, f"lmdb://{folder}/store", earlier_export)
            shutil.copytree(earlier_export / "rec", folder / "rec" / "3.part")
            (folder / "rec" / "3.part").rename(folder / "rec" / "3")
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="taken"}') == 1)
            time.sleep(0.3)
            shutil.rmtree(folder / "rec" / "3")  # back
            wait_for(lambda: server.metric('easyrec_mm_reloads_total{outcome="taken"}') == 2)
        answers = {}
        for status, answer in replies:
            assert status == 200
            answers.setdefault(answer["model"]["generation"], []).append(answer["predictions"])
        assert answers.keys() == {1, 2}
        for of_one in answers.values():
            assert all(predictions == of_one[0] for predictions in of_one)
        assert answers[1][0] != answers[2][0]
        messages_logged = [(line["message"], line["level"]) for line in server.logs()]
        assert [m for m, level in messages_logged if level == "INFO"] == ["serving", "reloaded", "reloaded"]
        assert any(m.startswith("a new release is refused, the old one serves on") for m, _ in messages_logged)
        assert server.end() == 0


# --- Processes


@pytest.mark.slow
def test_several_processes(serving_place, samples):
    """They count together; one that is killed or ends is replaced; all end with the first."""
    with running(serving_place / "rec", f"lmdb://{serving_place}/store", "--workers", 2) as server:
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == 3)
        for _ in range(40):
            assert server.predict(samples[0][:2])[0] == 200
        assert server.metric("easyrec_mm_candidates_total") == 80
        labels = next(line for line in server.logs() if line["message"] == "serving")
        release = "easyrec_mm_release{" + ",".join(
            f'{name}="{labels[name]}"' for name in ("checkpoint", "generation", "image_tower", "step")
        )
        assert server.metric(release + "}") == 3
        workers = {line["process"] for line in server.logs()} - {server.process.pid}
        os.kill(min(workers), signal.SIGKILL)
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == 4)
        assert server.predict(samples[0][:2])[0] == 200
        assert server.metric(release + "}") == 3
        workers = {line["process"] for line in server.logs()} - {server.process.pid}
        os.kill(min(filter(is_running, workers)), signal.SIGTERM)
        while not any("has ended with status 0" in line["message"] for line in server.logs()):
            assert server.predict(samples[0][:2])[0] in (200, 503)
        wait_for(lambda: sum(line["message"] == "serving" for line in server.logs()) == 5)
        workers = {line["process"] for line in server.logs()} - {server.process.pid}
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not any(is_running(worker) for worker in workers))
    server.process.poll()


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_killed_at_any_moment(serving_place, samples):
    """While it starts or answers; what it reads is whole afterwards, and the next one takes its place."""
    for wait_s in (0.3, 1.0):
        server = Running(serving_place / "rec", f"lmdb://{serving_place}/store")
        time.sleep(wait_s)
        server.end(signal.SIGKILL)
    with running(serving_place / "rec", f"lmdb://{serving_place}/store") as server:
        asking = threading.Thread(target=lambda: [server.predict(samples[0]) for _ in range(1000)], daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda arguments: None)  # the last one is not answered
            asking.start()
            wait_for(lambda: server.metric('easyrec_mm_requests_total{outcome="ok"}') > 2)
            server.end(signal.SIGKILL)
            asking.join()
    with running(serving_place / "rec", f"lmdb://{serving_place}/store") as server:
        assert server.predict(samples[0])[0] == 200


# --- Remote stores


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_store_that_goes_and_comes_back(exported, serving_place, samples, servers, name):
    """Its loss is answered in bounded time, flagged or refused as asked for; its return needs no restart."""
    remote = servers(name)
    option = {"redis": "prefix", "postgres": "table"}[name]
    uri = f"{remote.uri}?{option}=served"
    embed(exported, uri)
    instances = samples[0][:3]
    with (
        running(serving_place / "rec", uri) as mean,
        running(serving_place / "rec", uri, "--missing_vector", "error") as strict,
    ):

        def sources(server):
            status, answer = server.predict(instances, timeout=8)
            return [p["img_emb_source"] for p in answer["predictions"]] if status == 200 else (status, answer["error"])

        assert sources(mean) == sources(strict) == ["store"] * 3
        with remote.frozen():  # it does not answer, and keeps its connections
            assert sources(mean) == ["mean"] * 3
            assert mean.request("GET", "/v2/health/live")[0] == 200
        wait_for(lambda: sources(mean) == ["store"] * 3)
        remote.stop()
        try:
            for _ in range(5):
                assert sources(mean) == ["mean"] * 3
                status, problem = sources(strict)
                assert status == 503
                assert name in problem or "the store" in problem
            assert mean.request("GET", "/v2/health/live")[0] == 200
        finally:
            remote.start()
        wait_for(lambda: sources(mean) == sources(strict) == ["store"] * 3)
        store = open_store(uri, writable=True)
        store.complete(store.begin("another tower", 4, "float32"))
        assert store.prune() == ([], {1: "is being read"})
        store.close()
        assert strict.metric('easyrec_mm_vector_misses_total{filled="error"}') >= 15

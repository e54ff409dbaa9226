"""TF_CONFIG, and workers that meet before they train."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from google.protobuf import text_format
from servers import free_port

from easyrec_mm.api.workers import join_workers
from easyrec_mm.config import changes
from easyrec_mm.distribution.cluster import Cluster, meet, read_cluster
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def read(value):
    return read_cluster({"TF_CONFIG": value if isinstance(value, str) else json.dumps(value)})


def test_clusters_of_workers():
    workers = ["a:1", "b:2"]
    assert read("") is None
    assert read({"cluster": {"worker": workers}, "task": {"type": "worker", "index": 1}}) == Cluster(("a:1", "b:2"), 1)
    with_chief = {"chief": ["c:3"], "worker": workers}
    assert read({"cluster": with_chief, "task": {"type": "chief", "index": 0}}) == Cluster(("c:3", "a:1", "b:2"), 0)
    assert read({"cluster": with_chief, "task": {"type": "worker", "index": 0}}).number == 1
    assert read({"cluster": {"worker": workers}, "task": {"type": "worker", "index": "1"}}).number == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "TF_CONFIG is not JSON: .*; give it as {"),
        ("[" * 100_000, "TF_CONFIG is not JSON: maximum recursion depth exceeded"),
        ("[1]", "TF_CONFIG has no 'cluster' and 'task'"),
        ({"cluster": {"worker": ["a:1"]}}, "TF_CONFIG has no 'cluster' and 'task'"),
        ({"cluster": {"worker": "a:1"}, "task": {"type": "worker"}}, r"cluster\.worker is not a list of addresses"),
        ("null", "TF_CONFIG has no 'cluster' and 'task'"),
        ({"cluster": {"worker": {"0": "a:1"}}, "task": {"type": "worker"}}, r"cluster\.worker is not a list of"),
        ({"cluster": {}, "task": {"type": "worker", "index": 0}}, "the task is 'worker 0', but the cluster has none"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"index": [0]}},
            r"the task is 'None \[0\]', but the cluster has worker 0",
        ),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}, "the task is 'worker -1', but"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}, "the task is 'worker x', but"),
        ({"cluster": {"worker": ["a"]}, "task": {"type": "worker"}}, "'a' is not an address; give host:port"),
        ({"cluster": {"worker": ["a:70000"]}, "task": {"type": "worker"}}, "'a:70000' is not an address"),
        ({"cluster": {"worker": ["a..b:1"]}, "task": {"type": "worker"}}, "'a..b:1' is not an address"),
        ({"cluster": {"worker": ["grpc://a:1"]}, "task": {"type": "worker"}}, "'grpc://a:1' is not an address"),
        ({"cluster": {"worker": ["a b:1"]}, "task": {"type": "worker"}}, "'a b:1' is not an address"),
        ({"cluster": {"worker": ["a:\u0663"]}, "task": {"type": "worker"}}, "'a:\u0663' is not an address"),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": True}}, "'worker True', but"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker"}}, "two workers have the address a:1"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 2}},
            "the task is 'worker 2', but the cluster has worker 0; give each worker the type and index of its own",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker"}},
            r"task {\"type\": \"worker\"} has no 'index', but the cluster has worker 0, worker 1; give each worker the",
        ),
        (
            {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker"}},
            "parameter servers are not used; list all machines as workers",
        ),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator"}}, "run easyrec-mm eval --watch"),
    ],
)
def test_what_is_no_cluster_is_told(value, message):
    with pytest.raises(ConfigError, match=message):
        read(value)


def meet_all(facts, limit_s=10.0, num=None):
    """Let workers meet, each in a thread; what each of them raised, None for nothing."""
    workers = tuple(f"127.0.0.1:{free_port()}" for _ in range(num or len(facts)))
    errors = [None] * len(facts)

    def run(number):
        try:
            meet(Cluster(workers, number), facts[number], limit_s)
        except UserError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return workers, errors


def test_workers_that_train_the_same_meet():
    facts = {"config": "a\nb", "version": "1"}
    _, errors = meet_all([facts] * 4)
    assert errors == [None] * 4


def test_a_worker_that_differs_is_named_to_all_with_the_difference():
    facts = {"version": "1", "the config": "a: 1\nb: 2\nc: 3"}
    workers, errors = meet_all([facts, facts, {**facts, "the config": "a: 1\nb: 5\nc: 3"}])
    assert set(errors) == {errors[0]}
    assert errors[0].startswith(f"worker 2 ({workers[2]}) differs from worker 0 in the config; start all with the same")
    assert "-b: 2\n  +b: 5" in errors[0]


SECRET_CONFIG = """
  data_config {{ seed: {seed} }}
  feature_config {{
    features {{ input_names: "user" feature_type: IdFeature vocab_file: "users.txt" embedding_dim: 2 }}
    features {{ feature_name: "photo" vector_store: "redis://:{password}@host/0" }}
  }}
"""


@pytest.mark.parametrize(
    ("differs", "name", "lines"),
    [
        ("version", "the versions", ["-keras {keras}", "+keras 0.1"]),
        ("vocabulary", "the vocabularies", ["-feature 'user': users.txt: values with the checksum "]),
        ("config", "the config", ["-  seed: 1", "+  seed: 2"]),
    ],
)
def test_workers_with_other_versions_vocabularies_or_configs(monkeypatch, differs, name, lines):
    """The vocabulary has the same path; passwords are neither compared nor shown."""
    real = importlib.metadata.version

    def is_other(kind):
        return differs == kind and threading.current_thread().name == "1"

    def version(package):
        return "0.1" if package == "keras" and is_other("version") else real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(changes, "read_vocabulary", lambda path: ("a", "c" if is_other("vocabulary") else "b"))
    workers, errors = tuple(f"127.0.0.1:{free_port()}" for _ in range(2)), [None, None]

    def run(number):
        text = SECRET_CONFIG.format(seed=1 + is_other("config"), password=f"secret{number}")
        pipeline = SimpleNamespace(config=text_format.Parse(text, EasyRecConfig()))
        try:
            join_workers(Cluster(workers, number), pipeline, 10.0)
        except UserError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,), name=str(number)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0] == errors[1]
    shown = "\n  ".join([f"{name}; start all with the same (-: worker 0, +: worker 1):", *lines])
    assert errors[0].startswith(f"worker 1 ({workers[1]}) differs from worker 0 in {shown.format(keras=real('keras'))}")
    assert "secret" not in errors[0]


def test_a_worker_that_does_not_come_is_named_in_time():
    started = time.monotonic()
    workers, errors = meet_all([{}, {}], limit_s=1.5, num=3)
    assert errors[0].startswith(f"worker 2 ({workers[2]}) did not arrive within 1.5 s")
    assert errors[1] == errors[0]
    assert time.monotonic() - started < 10


def test_a_first_worker_that_cannot_be_reached():
    workers = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
    with pytest.raises(UserError, match=rf"worker 0 \({workers[0]}\) cannot be reached within 1 s: .*refused"):
        meet(Cluster(workers, 1), {}, 1.0)


def test_a_first_worker_with_the_address_of_this_one_under_another_name():
    port = free_port()
    with pytest.raises(UserError, match=r"worker 0 .* cannot be reached within 1 s: another worker answers there"):
        meet(Cluster((f"localhost:{port}", f"127.0.0.1:{port}"), 1), {}, 1.0)


def test_another_program_at_the_address_of_the_first_worker():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        workers = (f"127.0.0.1:{listener.getsockname()[1]}", f"127.0.0.1:{free_port()}")
        with pytest.raises(
            UserError, match=r"worker 0 .* cannot be reached within 0.4 s: another program answers there"
        ):
            meet(Cluster(workers, 1), {}, 0.4)


@pytest.mark.parametrize("listens", [True, False])
def test_a_worker_whose_address_leads_elsewhere_is_named_to_all(listens):
    """It reaches the first worker, but not the other way round: exchanges would fail only after the model is made."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        wrong = stranger.getsockname()[1] if listens else free_port()
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        told = (*addresses[:2], f"127.0.0.1:{wrong}")
        errors = {}

        def run(number, workers):
            try:
                meet(Cluster(workers, number), {}, 1.5)
            except UserError as error:
                errors[number] = str(error)

        # The third one knows its own address; what the others were told of it is wrong.
        threads = [threading.Thread(target=run, args=(number, told)) for number in (0, 1)]
        threads.append(threading.Thread(target=run, args=(2, tuple(addresses))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors.keys() == {0, 1, 2}
    assert len(set(errors.values())) == 1
    start = f"worker 2 ({told[2]}) has called worker 0, which cannot reach it at this address within 1.5 s: "
    assert errors[0].startswith(start)


def test_names_that_have_their_addresses_later(monkeypatch):
    known, asked = socket.getaddrinfo, []

    def getaddrinfo(host, *arguments, **settings):
        if not host.startswith("host"):
            return known(host, *arguments, **settings)
        asked.append(host)
        if asked.count(host) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known("127.0.0.1", *arguments, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    workers = tuple(f"host{number}.job:{free_port()}" for number in range(2))
    chief = threading.Thread(target=meet, args=(Cluster(workers, 0), {}, 20.0))
    chief.start()
    meet(Cluster(workers, 1), {}, 20.0)
    chief.join()
    assert min(asked.count(host) for host in ("host0.job", "host1.job")) > 2


def test_a_name_without_an_address_is_told():
    workers = (f"127.0.0.1:{free_port()}", "missing.invalid:2222")
    with pytest.raises(UserError, match=r"worker 1 \(missing.invalid:2222\): its name has no address within 0.1 s: "):
        meet(Cluster(workers, 0), {}, 0.1)


def test_an_old_address_that_answers_nothing_is_left_soon(monkeypatch):
    """A name may lead to a machine that has gone, and to the new one a moment later."""
    connect, limits = socket.create_connection, []

    def create_connection(address, timeout):
        limits.append(timeout)
        if len(limits) == 1:
            raise TimeoutError("timed out")
        return connect(address, timeout)

    workers = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
    chief = threading.Thread(target=meet, args=(Cluster(workers, 0), {}, 20.0))
    chief.start()
    monkeypatch.setattr(socket, "create_connection", create_connection)
    meet(Cluster(workers, 1), {}, 1000.0)
    chief.join()
    assert max(limits) <= 5


@pytest.mark.parametrize("number", [0, 1])
def test_a_port_that_is_taken(number):
    with socket.create_server(("", 0)) as taken:
        workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        workers[number] = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"worker {number} .*: its port cannot be opened: Address already in use"):
            meet(Cluster(tuple(workers), number), {}, 1.0)


def test_strangers_do_not_disturb():
    port = free_port()
    workers = (f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    chief = threading.Thread(target=meet, args=(Cluster(workers, 0), {}, 20.0))
    chief.start()
    for content in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"{}\n", b""):
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(content)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    meet(Cluster(workers, 1), {}, 20.0)
    chief.join()

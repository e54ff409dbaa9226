"""Files of buckets and servers: what is tried again, and how failures are told."""

import json
import random
import sys

import boto3
import fsspec
import pytest
from web_server import WebServer

from easyrec_mm.files import Failure, StorageError
from easyrec_mm.files import place as place_module
from easyrec_mm.files.place import Place, place_of


def test_requests_are_tried_again(s3, bucket):
    s3.put(f"{bucket}/x", bytes(10_000))
    place = place_of(bucket)
    place.read(f"{bucket}/x")
    s3.faults.unavailable_share = 0.3
    assert [len(place.read(f"{bucket}/x").data) for _ in range(40)] == [10_000] * 40
    assert s3.faults.num_unavailable > 5


def test_contents_that_break_off_are_not_taken_for_whole(s3, bucket, tmp_path):
    content = random.Random(0).randbytes(50_000)
    s3.put(f"{bucket}/x", content)
    place = place_of(bucket)
    info = place.stat(f"{bucket}/x")
    s3.faults.cut_share = 0.5
    for _ in range(5):
        assert place.read(f"{bucket}/x").data == content
        place.download(info, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


def test_pauses_grow_and_end(monkeypatch):
    pauses = []
    monkeypatch.setattr(place_module.time, "sleep", pauses.append)
    now = iter(range(1000))
    monkeypatch.setattr(place_module.time, "monotonic", lambda: next(now) + sum(pauses))
    place = Place("memory://x")
    calls = []

    def fail(storage):
        calls.append(storage)
        raise StorageError("memory://x/y", "busy", Failure.PASSING)

    with pytest.raises(StorageError, match=r"^memory://x: no answer for .* s: busy; check the network") as caught:
        place.attempt(fail, 60)
    assert caught.value.failure == Failure.PLACE
    assert len(calls) == len(pauses) + 1 > 5
    for i, pause in enumerate(pauses):
        assert 0.5 <= pause / min(0.1 * 2**i, 8.0) <= 1.0


@pytest.mark.parametrize("failure", [Failure.MISSING, Failure.DENIED, Failure.PLACE, Failure.REFUSED])
def test_what_another_try_does_not_mend_is_tried_once(failure):
    calls = []

    def fail(storage):
        calls.append(storage)
        raise StorageError("memory://x/y", "no", failure)

    with pytest.raises(StorageError):
        Place("memory://x").attempt(fail, 60)
    assert len(calls) == 1


def test_a_place_of_which_nothing_can_be_had_is_not_asked_by_everyone(s3):
    name = f"s3://none-{random.randrange(10**9)}"
    place = place_of(name)
    s3.faults.requests.clear()
    for i in range(10):
        with pytest.raises(StorageError, match=f"^{name}: there is no such bucket; check its name$"):
            place.read(f"{name}/{i}")
    assert sum(s3.faults.requests.values()) == 1


def refusal(path, action=lambda place, path: place.read(path)):
    """What is said of a place that was never reached."""
    with pytest.raises(StorageError) as caught:
        action(Place(path), path)
    assert caught.value.failure == Failure.PLACE
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["x", "folder/x*"])
def test_a_bucket_that_does_not_exist(s3, pattern):
    message = refusal(f"s3://nowhere/{pattern}", lambda place, path: place.find(path))
    assert message == "s3://nowhere: there is no such bucket; check its name"


@pytest.mark.parametrize("ask", ["read", "stat", "find", "below"])
def test_wrong_credentials(s3, bucket, ask):
    s3.check_credentials(True)
    s3.faults.requests.clear()
    try:
        message = refusal(f"{bucket}/x", lambda place, path: getattr(place, ask)(path))
        assert set(s3.faults.requests.values()) == {1}  # what will not change is not tried again
    finally:
        s3.check_credentials(False)
    assert message.startswith(f"{bucket}: the credentials are refused (InvalidAccessKeyId: ")


def test_a_secret_key_that_is_wrong_and_a_bucket_that_is_another_s(s3, bucket, monkeypatch):
    iam = boto3.client(
        "iam", endpoint_url=s3.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    policy = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*/open/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=document)
    s3.put(f"{bucket}/open/x", b"content")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    s3.check_credentials(True)
    try:
        message = refusal(f"{bucket}/open/x")
        assert message.startswith(f"{bucket}: the credentials are refused (SignatureDoesNotMatch: ")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        place = Place(bucket)
        assert place.read(f"{bucket}/open/x").data == b"content"
        # A path without a pattern needs no right to list.
        assert [info.size for info in place.find(f"{bucket}/open/x")] == [7]
        for path in (f"{bucket}/closed/x", f"{bucket}/closed/*"):
            with pytest.raises(StorageError, match=r"closed/.: access is denied \(AccessDenied: ") as caught:
                place.find(path)
            assert caught.value.failure == Failure.DENIED
    finally:
        s3.check_credentials(False)


def test_no_credentials(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refusal("s3://bucket/x")
    assert message.startswith("s3://bucket: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refusal("s3://bucket/x") == "s3://bucket: The config profile (nobody) could not be found"


def test_credentials_of_a_profile(s3, bucket, monkeypatch, tmp_path):
    s3.put(f"{bucket}/x", b"content")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile here]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    (tmp_path / "credentials").write_text("[here]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "here")
    assert Place(bucket).read(f"{bucket}/x").data == b"content"


def test_no_settings_of_oss(monkeypatch):
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    assert refusal("oss://bucket/x").startswith("oss://bucket: is not set up; set OSS_ENDPOINT (")


def test_a_server_that_cannot_be_reached(s3, monkeypatch):
    monkeypatch.setattr(place_module, "FIRST_TRY_S", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refusal("s3://bucket/x")
    assert message.startswith("s3://bucket: no answer for ")
    assert "127.0.0.1:9" in message
    assert "\n" not in message


def test_a_server_that_never_answers(s3, monkeypatch):
    # In time, with some left for the start of the process.
    assert place_module.FIRST_TRY_S < place_module.FIRST_WAIT_S <= 20
    monkeypatch.setattr(place_module, "FIRST_WAIT_S", 1.0)
    s3.faults.answers = False
    message = refusal("s3://bucket/x")
    assert message == "s3://bucket: no answer within 1 s; check the network, the endpoint and the credentials"


def test_schemes_that_nobody_knows_or_that_lack_a_library(monkeypatch):
    message = refusal("storage://box/x")
    known = "use s3, oss, gs, hdfs, http or https"
    assert message == f"storage://box: no file system has the scheme 'storage://'; {known}"
    monkeypatch.setitem(sys.modules, "smbclient", None)
    assert refusal("smb://box/x").startswith("smb://box: ")
    monkeypatch.setenv("HADOOP_HOME", "/nowhere")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert refusal("hdfs://box:8020/x").startswith("hdfs://box:8020: cannot be reached: ")


def test_hdfs_is_told_its_address(monkeypatch):
    arguments = {}
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setattr(
        fsspec, "filesystem", lambda scheme, **options: arguments.update(options, scheme=scheme) or filesystem
    )
    Place("hdfs://user@box:8020/x").reached()
    assert arguments == {"scheme": "hdfs", "host": "box", "port": 8020, "user": "user", "use_listings_cache": False}


def test_a_name_that_no_object_can_have(bucket):
    with pytest.raises(StorageError) as caught:
        place_of(bucket).read(f"{bucket}/a/../b")
    assert caught.value.failure == Failure.REFUSED


def test_no_more_is_read_of_a_file_without_end_than_is_wanted():
    server = WebServer()
    try:
        server.add_endless("/x")
        assert place_of(server.url).read(f"{server.url}/x", max_bytes=100_000).data == b"x" * 100_000
        assert server.asked == ["/x"]
    finally:
        server.stop()

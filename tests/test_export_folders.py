"""Exports that are killed while they put their models in place: nothing is lost, and the next one puts things right."""

from __future__ import annotations

import itertools
import json
import os
import signal

import pytest

from easyrec_mm.errors import ExportError, UserError
from easyrec_mm.export import folders
from easyrec_mm.export.folders import ExportFolders, written
from easyrec_mm.files.place import Place
from easyrec_mm.files.replace_folder import exchange

KINDS = ("image", "rec", "total")
BEFORE, AFTER = "2026-01-01T00:00:00", "2026-01-02T00:00:00"


@pytest.fixture
def export_folders(tmp_path):
    """In different folders."""
    return ExportFolders(str(tmp_path / "image"), str(tmp_path / "models" / "rec"), str(tmp_path / "total"))


def write(export_folders, created):
    """Export models that consist of a manifest and a file."""
    with written(export_folders) as new:
        for folder in new.values():
            (folder / "weights").write_text(created)
            manifest = {"created": created, "checkpoint": "model.ckpt-1", "image_tower_fingerprint": "f"}
            (folder / "manifest.json").write_text(json.dumps(manifest))


def created(export_folders):
    """When the models in the three places were created; None for one that is not there."""
    files = [os.path.join(getattr(export_folders, kind), "weights") for kind in KINDS]
    return [open(file).read() if os.path.exists(file) else None for file in files]


def killed(write_all, monkeypatch, can_exchange, last):
    """Run it in a process that is killed after that many renames; return whether it was."""
    process = os.fork()
    if not process:
        steps = itertools.count(1)

        def counted(move):
            def run(*arguments):
                result = move(*arguments) if can_exchange or move is os_rename else False
                if result is not False and next(steps) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return run

        os_rename = os.rename
        monkeypatch.setattr(os, "rename", counted(os.rename))
        monkeypatch.setattr(folders, "exchange", counted(exchange))
        write_all()
        os.kill(os.getpid(), signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("can_exchange", [True, False])
def test_killed_after_each_rename(export_folders, tmp_path, monkeypatch, can_exchange):
    """At each moment all models of one export are there, and the next one puts them in place, also if it fails."""
    num_kills = 0
    for last in itertools.count(1):
        write(export_folders, BEFORE)
        if not killed(lambda: write(export_folders, AFTER), monkeypatch, can_exchange, last):
            break
        num_kills += 1
        if can_exchange:
            assert None not in created(export_folders)
        with pytest.raises(ZeroDivisionError), written(export_folders):
            raise ZeroDivisionError
        assert created(export_folders) in ([BEFORE] * 3, [AFTER] * 3)
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")) == []
    assert num_kills == (3 if can_exchange else 6)
    assert created(export_folders) == [AFTER] * 3


def test_an_export_to_a_bucket_that_was_killed_is_replaced(s3, bucket, monkeypatch):
    export_folders = ExportFolders(*(f"{bucket}/{kind}" for kind in KINDS))
    write(export_folders, BEFORE)
    upload = Place.upload

    def killed_before_the_manifest(place, local, path):
        if path.endswith("/rec/manifest.json"):
            raise KeyboardInterrupt
        upload(place, local, path)

    monkeypatch.setattr(Place, "upload", killed_before_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        write(export_folders, "2026-01-01T12:00:00")
    monkeypatch.setattr(Place, "upload", upload)
    assert "rec/manifest.json" not in s3.keys(f"{bucket}/rec")
    write(export_folders, AFTER)
    assert set(s3.keys(bucket)) == {f"{kind}/{name}" for kind in KINDS for name in ("weights", "manifest.json")}
    assert {s3.get(f"{bucket}/{kind}/weights").decode() for kind in KINDS} == {AFTER}
    s3.put(f"{bucket}/image/other", b"")
    s3.delete(f"{bucket}/image/manifest.json")
    with pytest.raises(ExportError, match="/image: contains files that do not belong to an export"):
        write(export_folders, AFTER)


def test_killed_before_it_was_done(export_folders, monkeypatch):
    """What it has written beside the places is removed."""
    write(export_folders, BEFORE)

    def half():
        with written(export_folders) as new:
            (new["rec"] / "weights").write_text(AFTER)
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed(half, monkeypatch, True, 0)
    with pytest.raises(ZeroDivisionError), written(export_folders):
        raise ZeroDivisionError
    assert created(export_folders) == [BEFORE] * 3
    assert [path for path in os.listdir(os.path.dirname(export_folders.rec)) if path.startswith(".")] == []


def test_a_place_that_cannot_be_written(export_folders, monkeypatch):
    """The other places are as they were."""
    write(export_folders, BEFORE)
    steps = itertools.count(1)

    def failing(first, second):
        if next(steps) == 3:
            raise OSError(5, "Input/output error", str(second))
        return exchange(first, second)

    monkeypatch.setattr(folders, "exchange", failing)
    with pytest.raises(ExportError, match=r"total: cannot be written: Input/output error"):
        write(export_folders, AFTER)
    assert created(export_folders) == [BEFORE] * 3


def test_two_exports_at_once(export_folders, tmp_path):
    write(export_folders, BEFORE)
    process = os.fork()
    if not process:
        with written(export_folders):
            signal.pause()
    try:
        while not (tmp_path / ".total.tmp/new").exists():
            pass
        expected = rf"--img_model_export_dir '{export_folders.image}': is in use by process {process} on .*; wait"
        with pytest.raises(UserError, match=expected):
            write(export_folders, AFTER)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    write(export_folders, AFTER)
    assert created(export_folders) == [AFTER] * 3


def test_places_that_cannot_be_taken(export_folders, tmp_path):
    (tmp_path / "total").mkdir()
    (tmp_path / "total" / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"total: contains files that do not belong to an export"):
        write(export_folders, AFTER)
    (tmp_path / "image").touch()
    with pytest.raises(ExportError, match=r"image: is a file; choose a new folder"):
        write(export_folders, AFTER)
    with pytest.raises(ExportError, match="give each of the three models a folder of its own"):
        write(ExportFolders("a", f"{os.getcwd()}/a", "b"), AFTER)

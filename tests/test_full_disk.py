"""What cannot be written is named: a full disk does not tell which file it was."""

import re

import pytest
from full_disk import files_limited_to
from google.protobuf import text_format

from easyrec_mm.config.pipeline import write_config
from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.evaluation.report import write_result
from easyrec_mm.evaluation.summary import EvalResults
from easyrec_mm.files import put_text
from easyrec_mm.files.lock import locked
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.evaluations import EVAL
from easyrec_mm.runs.progress import MetricsLog

LONG = "x" * 200_000
CONFIG = text_format.Parse('model_dir: "m" data_config {} model_config {}', EasyRecConfig(), allow_unknown_field=True)
CONFIG.train_input_path = LONG
WRITERS = {
    "a page": lambda path: put_text(path, LONG),
    "a config": lambda path: write_config(CONFIG, str(path)),
    "an evaluation": lambda path: write_result(str(path), EvalResults({LONG: 1.0})),
    "metrics": lambda path: MetricsLog(path, path.parent).write_line(EVAL, 1, {LONG: 1.0}),
    "bad records": lambda path: BadRecords(str(path), 1.0).add(1, 0, [BadRecord("group", "f", 1, "line", LONG)]),
}


def test_the_lock_of_a_folder_is_named(tmp_path):
    with (
        files_limited_to(0),
        pytest.raises(OSError, match=f"File too large: '{tmp_path}/.lock'"),
        locked(str(tmp_path), "x"),
    ):
        pass


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_the_file_is_named_and_no_part_of_it_appears(tmp_path, write):
    path = tmp_path / "file"
    with files_limited_to(100_000), pytest.raises(OSError, match="File too large") as error:
        write(path)
    assert re.fullmatch(rf"\[Errno 27\] File too large: '{path}'", str(error.value))
    assert not list(tmp_path.glob("*tmp*"))

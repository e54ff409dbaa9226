"""EasyRec's tools by its flags. tests/test_flow.py trains EasyRec's file by the flags of its train_eval."""

import runpy
import shutil
import sys

import pytest
from flow_helpers import ROOT

from easyrec_mm.cli.main import main


def test_the_config_that_the_training_has_written_comes_first(exported, tmp_path, capsys, monkeypatch):
    """By the tool with EasyRec's flags, and by the command; without checkpoints both are quick to refuse."""
    (tmp_path / "m").mkdir()
    shutil.copy(exported.model_dir / "pipeline.config", tmp_path / "m")
    (tmp_path / "other.config").write_text("model_dir: 'x' nonsense: 1")
    flags = ["--model_dir", str(tmp_path / "m"), "--pipeline_config_path", str(tmp_path / "other.config")]
    flags += [f"--{name}_model_export_dir={tmp_path / name}" for name in ("rec", "total", "img")]
    tool = str(ROOT / "tools" / "export_mm_model.py")
    monkeypatch.setattr(sys, "argv", [tool, *flags, "--checkpoint_path", "", "--asset_files", ""])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(tool, run_name="__main__")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert f"note: {tmp_path}/m/pipeline.config is used, which the training has written, instead of" in error
    assert f"{tmp_path}/m' holds no checkpoint" in error
    (tmp_path / "m" / "pipeline.config").unlink()
    assert main(["export", *flags]) == 1
    assert f"{tmp_path}/other.config:1:16: nonsense: EasyRecConfig has no field 'nonsense'" in capsys.readouterr().err

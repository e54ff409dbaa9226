"""The notebook samples/tour.ipynb runs from top to bottom, and shows what its texts say."""

from __future__ import annotations

import os
import re
import shutil

import nbformat
import pytest
from flow_helpers import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "samples" / "tour.ipynb"
# A smaller shop and fewer epochs, which show less but do the same.
SMALLER = {"num_items=1000": "num_items=300", '"train_config.num_epochs": 10': '"train_config.num_epochs": 3'}


def read():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_no_output_is_committed():
    notebook, cells = read()
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_links_lead_to_pages():
    notebook, _ = read()
    links = [link for cell in notebook.cells for link in re.findall(r"\]\((.*?)\)", cell.source)]
    assert len(links) > 3
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for path in NOTEBOOK.parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # As most tests; see kernels.py.
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    notebook, cells = read()
    for whole, part in SMALLER.items():
        (cell,) = [cell for cell in cells if whole in cell.source]
        cell.source = cell.source.replace(whole, part)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    data = [output.data for output in outputs if "data" in output]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    # Seldom and often clicked, three rows of neighbours, and the ranked candidates.
    assert sum("image/png" in shown for shown in data) == 6
    curves = [shown["application/vnd.plotly.v1+json"] for shown in data if "application/vnd.plotly.v1+json" in shown]
    assert [curve["layout"]["yaxis"]["title"]["text"] for curve in curves] == ["auc_click", "loss"]
    assert "300 items, 300 pictures" in text
    evaluated = [float(value) for value in re.findall(r"^auc_click +([0-9.]+)$", text, re.MULTILINE)]
    assert len(evaluated) == 3
    middle, low, high = map(float, re.search(r"^AUC (\S+), 95 % interval (\S+) to (\S+)$", text, re.MULTILINE).groups())
    assert middle == pytest.approx(max(evaluated), abs=0.005)
    assert low < middle < high
    assert "embedded=300, unchanged=0, bad=0" in text
    assert float(re.search(r"largest difference to the training's predictions: (\S+)", text)[1]) < 1e-5

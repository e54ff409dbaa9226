"""The report of a large evaluation: seconds of each section beyond the models' passes, bytes, and until it can be used.

Data of 200,000 samples with 5,000 pictures of their own to evaluate, and 5,000 other pictures in the training data; the
model is a small one, trained for a few steps. The page is then opened in Chromium, if it is installed: after how
many seconds tabs and plots can be used.

    python tools/bench/report.py [--groups 5000] [--group_size 40] [--image_size 64] [--output report.html]
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

from easyrec_mm.cli.main import main as command


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--groups", type=int, default=5000)
    flags.add_argument("--group_size", type=int, default=40)
    flags.add_argument("--image_size", type=int, default=64)
    flags.add_argument("--output", type=Path, default=None, help="keep the page there")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_dir = trained(folder, options.groups, options.group_size, options.image_size)
        page = folder / "report.html"
        figures = made(model_dir, page)
        figures |= opened(page)
        if options.output:
            shutil.copy(page, options.output)
    workload.report("report", {"groups": options.groups, "samples": options.groups * options.group_size, **figures})


def trained(folder: Path, num_groups: int, group_size: int, image_size: int) -> Path:
    """Make the data, and train a small model for 20 steps; its model_dir."""
    evaluation = workload.write_data(folder / "eval", num_groups, group_size, image_size)
    training = workload.write_data(folder / "train", num_groups, 2, image_size, seed=1)
    text = workload.config_text(training, str(folder / "m"), 64, image_size, num_steps=20)
    config = folder / "bench.config"
    metrics = "auc {} } metrics_set { log_loss {} } metrics_set { normalized_entropy {} } metrics_set { calibration {}"
    text += f'eval_input_path: "{evaluation}"\neval_config {{ metrics_set {{ {metrics} }} }}\n'
    config.write_text(text, encoding="utf-8")
    settings = ["--set=eval_config.num_examples=1000", "--set=train_config.log_step_count_steps=1"]
    if command(["train", "--pipeline_config", str(config), *settings]):
        raise SystemExit("the training failed")
    return folder / "m"


def made(model_dir: Path, page: Path) -> dict[str, Any]:
    """Make the page; the seconds of its sections, its bytes, and the memory of this process."""
    from easyrec_mm.files import put_text
    from easyrec_mm.report.page import make_sections
    from easyrec_mm.report.page import page as render
    from easyrec_mm.report.report import ReportOptions, opened

    options = ReportOptions(str(model_dir), output=str(page), set=("eval_config.num_examples=0",))
    start, start_of_process = time.perf_counter(), time.process_time()
    with opened(options) as context:
        sections = make_sections(context)
        rendering = time.perf_counter()
        put_text(str(page), render(context, sections))
        rendered = time.perf_counter()
        passes = context.model_seconds
    figures: dict[str, Any] = {f"section {one.section.name}, s": one.seconds for one in sections}
    return figures | {
        "rendering, s": rendered - rendering,
        "models' passes, s": passes,
        "beyond the models' passes, s": rendered - start - passes,
        "processor time of all, s": time.process_time() - start_of_process,
        "page, MB": page.stat().st_size / 1e6,
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def opened(page: Path) -> dict[str, Any]:
    """Open the page in Chromium; seconds until its tabs and plots can be used, and until a click shows another tab."""
    path = shutil.which("chromium")
    if path is None:
        return {"interactive": "chromium is not installed; scripts/services installs it"}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        interactive = tab.evaluate("performance.getEntriesByName('interactive')[0].startTime") / 1000
        tab.wait_for_function("window.Plotly")
        plots = tab.evaluate("performance.getEntriesByName('plots')[0].startTime") / 1000
        start = time.perf_counter()
        tab.get_by_role("tab", name="ROC and PR").click()
        tab.wait_for_selector("#panel-curves figure[data-drawn]")
        drawn = time.perf_counter() - start
        browser.close()
    return {
        "tabs can be used after, s": interactive,
        "plots can be drawn after, s": plots,
        "a click has drawn a tab's plots after, s": drawn,
    }


if __name__ == "__main__":
    main()

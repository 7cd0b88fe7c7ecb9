"""The report of real runs in a browser: every chart drawn, no error, readable in a wide window and on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anew.cli.main import main
from evidence.browser import MISSING, browser, drawn, show

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"
CHARTS = {
    "loss",
    "rate",
    "norm",
    "scale",
    "rescaled",
    "seconds",
    "speed",
    "memory",
    "split",
    "placement-0",
    "projection",
}
#: For each chart: its accessible name, how many marks have one, and the sizes of its texts in CSS pixels.
LOOK = """
return Object.fromEntries([...document.querySelectorAll(".drawing")].map(figure => [figure.id.replace("chart-", ""), {
  name: figure.getAttribute("role") == "graphics-document" && figure.getAttribute("aria-label"),
  marks: figure.querySelectorAll("svg [role=graphics-symbol]:not([aria-hidden])").length,
  texts: [...figure.querySelectorAll("svg text")].filter(text => text.textContent)
    .map(text => parseFloat(getComputedStyle(text).fontSize)),
  cut: [...figure.querySelectorAll("svg text")].filter(text => text.textContent &&
    text.getBoundingClientRect().right > figure.querySelector("svg").getBoundingClientRect().right + 1)
    .map(text => text.textContent),
  beyond: figure.querySelector("svg").getBoundingClientRect().right - figure.getBoundingClientRect().right,
}]));
"""
#: The lowest contrast (WCAG 2) of a text with what it stands on, and the smallest text, outside the charts.
READ = """
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const linear = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
function ground(element) {
  const color = numbers(getComputedStyle(element).backgroundColor);
  return color[3] !== 0 ? color : ground(element.parentElement);
}
function contrast(element) {
  const [a, b] = [numbers(getComputedStyle(element).color), ground(element)].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
const texts = [...document.querySelectorAll("h1, h2, h3, p, th, td, figcaption, blockquote, summary, .badge")]
  .filter(element => element.textContent.trim() && element.offsetParent);
return {
  contrast: Math.min(...texts.map(contrast)),
  size: Math.min(...texts.map(element => parseFloat(getComputedStyle(element).fontSize))),
  wide: document.documentElement.scrollWidth,
};
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs of a small model on the emulated engine."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    (folder / "small.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 288, **sizes}))
    (folder / "text.txt").write_text(TEXT * 40)
    words = f"train --preset {folder}/small.json --data {folder}/text.txt --seq-len 32 --batch-size 2 --steps 6"
    for name, rate in (("slow", "0.001"), ("fast", "0.01")):
        flags = f"--val-every 2 --device emulator --lr {rate} --out {folder / name}"
        assert main([*words.split(), *flags.split()]) == 0
    return [folder / "slow", folder / "fast"]


def test_a_run_leaves_its_report(runs):
    page = (runs[0] / "report.html").read_text()
    assert len(page.encode()) < 2e6
    about = json.loads((runs[0] / "run.json").read_text())
    assert [(part["where"], part["count"]) for part in about["parts"]] == [
        ("host", 1),  # embedding
        ("engine", 2),
        ("host", 1),  # norm
        ("engine", 1),  # head and loss
    ]
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    samples = {r["iteration"]: r["sample"] for r in map(json.loads, lines) if r["sample"]}
    assert list(samples) == [0, 2, 4, 6]
    assert all(0 < json.loads(line)["device_seconds"] <= json.loads(line)["seconds"] for line in lines[1:])
    assert {"saving", "samples", "validation", "projection"} < about["seconds"].keys()
    projected = about["projection"]
    assert (projected["rows"], projected["tokens"]) == (2, 32)
    assert {"m1", "m4", "m5"} < {row["chip"] for row in projected["chips"]}


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(runs, tmp_path, dark):
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "both.html")]) == 0
    with browser(dark=dark) as driver:
        for page, charts in ((runs[0] / "report.html", CHARTS), (tmp_path / "both.html", CHARTS | {"placement-1"})):
            for width in (1280, 390):
                show(driver, page, width)
                assert drawn(driver) == len(charts)
                assert driver.get_log("browser") == []
                found = driver.execute_script(LOOK)
                assert found.keys() == charts
                for name, chart in found.items():
                    assert chart["name"], name
                    assert chart["marks"] > 0, name
                    assert min(chart["texts"]) >= 12, name
                    assert chart["beyond"] <= 1, name
                    assert not chart["cut"], name
                read = driver.execute_script(READ)
                assert read["contrast"] >= 4.5
                assert read["size"] >= 14
                assert read["wide"] <= width

"""The report of a run: what is on the page, how large it is, and what is said of runs that cannot be read."""

import dataclasses
import json
import re

import pytest

from anew.cli.main import main
from anew.report import read_run, write_report
from anew.report.charts import charts, split_of_time
from anew.report.points import POINTS, step_points, validation_points
from anew.report.run import Run
from anew.train.metrics import Record

ABOUT = {
    "command": "anew train --data '<b>x</b>'",
    "status": "finished",
    "config": {"name": "tiny", "data": "x.txt"},
    "versions": {"anew": "0.1.0"},
    "machine": {"cpus": 2},
    "parameters": 1000,
    "parts": [
        {"name": "model.embed", "kind": "Embedding", "count": 1, "where": "host", "parameters": 400},
        {"name": "model.layers.0 … 3", "kind": "Layer", "count": 4, "where": "engine", "parameters": 600},
    ],
    "seconds": {"total": 10.0, "training": 7.0, "validation": 1.0, "saving": 0.5},
    "statistics": {
        "device": "emulator",
        "emulated": True,
        "chip": "m4",
        "numerics": "fast",
        "host_operations": [
            {
                "kind": "fallback",
                "operation": "erfinv",
                "shape": [2],
                "region": "region 1 forward",
                "rule": "no such op",
            },
            {
                "kind": "boundary",
                "operation": "embedding",
                "shape": [2],
                "region": "region 1 forward",
                "rule": "by design",
            },
        ],
    },
}


def record(iteration, **changed):
    fresh = Record(
        iteration, 5.0 - iteration / 1e6, None, 1e-3, 1.0, 0.5, 100.0, iteration * 50, 1.0, 0, 0.5, device_seconds=0.4
    )
    return dataclasses.replace(fresh, **changed)


def untrained(**changed):
    return record(0, train_loss=None, seconds=None, learning_rate=None, grad_norm=None, device_seconds=None, **changed)


def leave(folder, steps=4, about=ABOUT):
    folder.mkdir()
    records = [untrained(val_loss=6.0, sample="once </script> upon")]
    records += [record(n, val_loss=5.0 if n % 2 == 0 else None, rescaled=n // 3) for n in range(1, steps + 1)]
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in records))
    return folder


def visible(page):
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)


def test_the_page_says_what_was_run_and_needs_no_network(tmp_path, capsys):
    run = leave(tmp_path / "mine")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    shown = visible(page)
    for text in (
        "emulated engine: no Neural Engine computed this; chip m4, numerics fast",
        "6.000 → 5.000",
        "once &lt;/script&gt; upon",
        "erfinv [2] in region 1 forward: no such op",
        "&lt;b&gt;x&lt;/b&gt;",
        "nothing is projected: that is done when a run has ended well",
    ):
        assert text in shown
    assert "by design" not in shown
    assert not re.search(r"<(?:link|img|iframe)\b", shown)
    assert page.count("<script>") == page.count("</script>") == 2
    assert "default-src 'none'" in page
    assert not [p for p in run.iterdir() if p.name.endswith(".partial")]


def test_a_projection_is_marked_as_one(tmp_path):
    rows = [{"chip": "m4", "seconds": 0.0123, "low": 0.0111, "high": 0.0157, "joules": 0.0456}]
    projected = {"compiled_for": "m3", "rows": 4, "tokens": 128, "chips": rows, "extrapolated": ["guesses"]}
    run = leave(tmp_path / "mine", about=ABOUT | {"projection": projected})
    write_report([run], tmp_path / "r.html")
    shown = visible((tmp_path / "r.html").read_text())
    assert "<strong>Projected</strong>, not measured" in shown
    assert "4 x 128 tokens" in shown
    assert "No measurement stands behind: guesses." in shown
    assert "as compiled for m3" in shown
    assert "12.3 ms" in shown
    assert "11.1 to 15.7 ms" in shown
    assert f"{4 * 128 / 0.0123:,.0f}" in shown
    assert "0.046 J" in shown
    assert any(chart.id == "chart-projection" for chart in charts([read_run(run)]))


def test_a_run_without_a_projection_says_why(tmp_path):
    refused = leave(tmp_path / "refused", about=ABOUT | {"projection": {"reason": "its loss is its own"}})
    write_report([refused, leave(tmp_path / "stopped")], tmp_path / "r.html")
    shown = visible((tmp_path / "r.html").read_text())
    assert "refused: nothing is projected: its loss is its own." in shown
    assert "stopped: nothing is projected: that is done when a run has ended well." in shown


def test_many_long_runs_fit_into_two_megabytes(tmp_path):
    runs = [leave(tmp_path / f"run{n}", steps=5000) for n in range(4)]
    write_report(runs, tmp_path / "all.html")
    page = (tmp_path / "all.html").read_text()
    assert len(page.encode()) < 2e6
    assert "A point is the mean of up to 17 steps" in page
    assert all(f">{run.name}</th>" in page for run in runs)


def test_points_are_means_and_sums_of_the_steps_they_stand_for():
    records = [untrained(val_loss=9.0)]
    records += [record(n, train_loss=float(n), rescaled=n, val_loss=float(n)) for n in range(1, 2 * POINTS + 1)]
    run = Run("r", None, {}, records)
    points = step_points([run])
    assert len(points) == POINTS
    assert points[1] | {"step": 4, "loss": 3.5, "rescaled": 2, "device": 0.4, "host": 0.1} == points[1]
    assert points[-1]["step"] == 2 * POINTS
    validated = validation_points([run])
    assert len(validated) <= POINTS
    assert validated[-1]["step"] == 2 * POINTS


def test_the_split_of_time_adds_up():
    run = Run("r", None, ABOUT, [untrained(), record(1, device_seconds=4.0), record(2, device_seconds=2.0)])
    split = split_of_time(run)
    assert split["programs on the device"] == 6.0
    assert split["host, in steps"] == 1.0
    assert sum(split.values()) == pytest.approx(10.0)


def test_a_first_step_that_compiles_does_not_flatten_the_time_of_the_others():
    run = Run("r", None, ABOUT, [untrained(), record(1, seconds=30.0), *(record(n) for n in range(2, 8))])
    drawn = {chart.id: chart for chart in charts([run])}
    shown = drawn["chart-seconds"].spec["encoding"]["y"]["scale"]["domain"]
    assert shown == pytest.approx([0, 1.1 * 0.5])
    assert "up to 30 s" in drawn["chart-seconds"].about
    assert "there were none" in drawn["chart-rescaled"].about
    even = next(c for c in charts([Run("r", None, ABOUT, run.records[2:])]) if c.id == "chart-seconds")
    assert even.spec["encoding"]["y"]["scale"]["domain"] == [0, 0.5]
    assert "beyond" not in even.about


def test_a_run_that_was_killed_before_a_step_has_a_report(tmp_path):
    about = {key: ABOUT[key] for key in ("command", "config", "versions", "machine")} | {"status": "running"}
    run = leave(tmp_path / "mine", steps=0, about=about)
    assert main(["report", str(run)]) == 0
    assert "not known: the run has not ended" in (run / "report.html").read_text()


def said(capsys, *argv):
    assert main(["report", *map(str, argv)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_is_no_run_is_said_in_a_sentence(tmp_path, capsys):
    nothing = tmp_path / "nothing"
    expected = f"anew: error: {nothing} holds no run.json: give the output folder of anew train or anew finetune"
    assert said(capsys, nothing) == expected
    nothing.mkdir()
    (nothing / "run.json").write_text("[]")
    assert said(capsys, nothing).startswith(f"anew: error: {nothing / 'run.json'} is no record of a run")
    (nothing / "run.json").write_text("{")
    assert said(capsys, nothing).startswith(f"anew: error: cannot read {nothing / 'run.json'}: ")


@pytest.mark.parametrize("broken", ['{"iteration": 3', '{"iteration": 3}', "7"])
def test_a_broken_record_is_named_by_file_and_line(tmp_path, capsys, broken):
    run = leave(tmp_path / "mine", steps=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(broken + "\n")
    assert said(capsys, run).startswith(f"anew: error: {run / 'metrics.jsonl'}:3 is no record of a run: ")


def test_further_errors_name_what_is_wrong(tmp_path, capsys):
    run = leave(tmp_path / "mine")
    assert said(capsys, run, run) == f"anew: error: {run} is given twice: give each run once"
    missing = tmp_path / "no" / "r.html"
    assert said(capsys, run, "--out", missing) == f"anew: error: cannot write {missing}: No such file or directory"
    (run / "metrics.jsonl").unlink()
    assert said(capsys, run).startswith(f"anew: error: cannot read {run / 'metrics.jsonl'}: ")


def test_a_comparison_leaves_each_run_its_own_report(tmp_path, monkeypatch, capsys):
    runs = [leave(tmp_path / name) for name in ("mine", "yours")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert "mine, yours: anew report" in (tmp_path / "report.html").read_text()
    assert not any((run / "report.html").exists() for run in runs)


def test_open_shows_the_page(tmp_path, monkeypatch, capsys):
    run = leave(tmp_path / "mine")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or bool(opened[1:]))
    assert "no browser was found" in said(capsys, run, "--open")
    assert main(["report", str(run), "--open"]) == 0
    assert opened == [(run / "report.html").resolve().as_uri()] * 2

"""The report's page: what is added up from logs, and the file that the command writes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from page_kit import HOSTILE, trial, tuned, workload, write_log

from tvmsep.contracts import InputError
from tvmsep.contracts.errors import TvmsepError
from tvmsep.report import html, sources
from tvmsep.report.curves import MAX_POINTS, curve
from tvmsep.report.page import compose
from tvmsep.report.sources import kernel_counts, read_sources
from tvmsep.report.story import tell
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

ZEN4 = load_target("x86-zen4")
SHIPPED = Path(__file__).parents[1] / "logs" / "x86-zen4" / "mobilenet_v2.jsonl"


def other_config(w: object, **fields: object) -> dict[str, int | str]:
    """A config that is not the default."""
    first = trial(w, 0)  # type: ignore[arg-type]
    space = TEMPLATES[first.template].space(first.workload, ZEN4, 1).configs()
    return dict(next(c for c in space if dict(c) != first.config))


def test_before_and_after_are_taken_from_the_same_turns() -> None:
    w = workload(64)
    best = other_config(w)
    log = [
        trial(w, 0, times_s=(1e-4,)),
        trial(w, 1, times_s=(9e-5,), config=best),
        # In the network, in turn: twice as fast there, and the default slower by a quarter.
        trial(w, 5, times_s=(5e-5,), phase="network"),
        trial(w, 5, times_s=(4e-5,), phase="network", config=best),
        # Later, in a slow minute, the winner alone.
        trial(w, 9, times_s=(6e-5,), phase="network", config=best),
    ]
    (task,) = tell(log, target=ZEN4).tasks
    assert task.inside and task.best_s == pytest.approx(6e-5)
    assert task.before_s == pytest.approx(6e-5 * 5 / 4)
    (alone,) = tell(log[:2], target=ZEN4).tasks
    assert not alone.inside and alone.before_s == pytest.approx(1e-4)
    assert alone.best_s == pytest.approx(9e-5)
    (unknown,) = tell(log[1:2], target=ZEN4).tasks
    assert unknown.before_s is None


def test_the_network_is_its_tasks_as_often_as_it_runs_them() -> None:
    a, b = workload(64), workload(32, op="depthwise")
    log = [trial(a, 0, times_s=(1e-4,)), trial(b, 1, times_s=(2e-4,))]
    (once,) = tell(log, target=ZEN4).networks
    assert not once.counted and once.after_s == pytest.approx(3e-4)
    (counted,) = tell(log, target=ZEN4, counts={1: {(a.key, 1): 5, (b.key, 1): 1}}).networks
    assert counted.counted and counted.after_s == pytest.approx(7e-4)
    (left,) = tell(log, target=ZEN4, counts={1: {(b.key, 1): 2}}).networks
    assert left.after_s == pytest.approx(4e-4)
    (short,) = tell(log[:1], target=ZEN4, counts={1: {(a.key, 1): 5, (b.key, 1): 1}}).networks
    assert short.after_s is None and short.missing == 1


def test_a_curve_has_only_the_steps_and_leaves_pauses_out() -> None:
    a, b = workload(64), workload(32)
    log = [
        trial(a, 0, times_s=(1e-4,)),
        trial(b, 2, times_s=(1e-4,)),
        trial(a, 3, times_s=(2e-4,)),
        trial(a, 100_003, times_s=(5e-5,)),
        trial(a, 100_004, times_s=(), failure="crash"),
        trial(a, 100_005, times_s=(1e-6,), phase="network"),
    ]
    used = {log[0].task_key: 2, log[1].task_key: 1}
    found = curve([(t.task_key, t) for t in log], used)
    assert found.trials == (2, 4, 5)
    assert found.best_s == pytest.approx((3e-4, 2e-4, 2e-4))
    assert found.wall_s == pytest.approx((2.0, 3.0, 4.0))
    falling = [trial(a, i, times_s=(1.0 / (i + 1),)) for i in range(5 * MAX_POINTS)]
    thin = curve([("a", t) for t in falling], {"a": 1})
    assert len(thin.trials) == MAX_POINTS
    assert (thin.trials[0], thin.trials[-1]) == (1, len(falling))


def test_failures_and_knobs_are_counted() -> None:
    w = workload(64)
    best = other_config(w)
    log = [
        trial(w, 0, times_s=(2e-4,)),
        trial(w, 1, times_s=(1e-4,), config=best),
        trial(w, 2, times_s=(), failure="crash", detail="signal 11"),
        trial(w, 3, times_s=(), failure="crash", detail="signal 11"),
    ]
    story = tell(log, target=ZEN4)
    (failure,) = story.failures
    assert (failure.failure, failure.count, failure.details) == ("crash", 2, ("signal 11",))
    (knobs,) = story.knobs
    cells = {(k, v): (wins, row[0]) for k, v, wins, row in knobs.rows}
    for knob, value in best.items():
        assert cells[knob, str(value)] == (1, 1.0)
    for knob, value in log[0].config.items():
        if best.get(knob, 0) != value:
            assert cells[knob, str(value)] == (0, pytest.approx(0.5))


def test_before_may_come_from_another_place_of_the_same_code() -> None:
    w = workload(64)
    elsewhere, best = msgspec.structs.replace(w, in_split="channels"), other_config(w)
    log = [
        trial(w, 0, times_s=(4e-4,), phase="network"),
        trial(w, 0, times_s=(2e-4,), phase="network", config=best),
        trial(elsewhere, 1, times_s=(1e-4,), phase="network", config=best),
    ]
    (task,) = tell(log, target=ZEN4).tasks
    assert task.best_s == pytest.approx(1e-4) and task.before_s == pytest.approx(2e-4)
    (task,) = tell(log[1:], target=ZEN4).tasks
    assert task.before_s is None


def test_the_shipped_log_as_a_story() -> None:
    read = read_sources([SHIPPED])
    story = tell(read.trials, target=read.target)
    lines = SHIPPED.read_text().count("\n")
    assert story.trials == lines > 500 and story.failed == 0 and story.measured
    assert all(t.before_s is not None and math.isfinite(t.best_s) for t in story.tasks)
    for network in story.networks:
        assert network.before_s is not None and network.after_s is not None
        assert 0 < network.after_s < network.before_s


def test_counts_come_from_the_relax_text() -> None:
    from graph_kit import Net, defaults, plan_of

    from tvmsep.compiler import emit, parts
    from tvmsep.frontends import load_model

    net = Net()
    x = net.input(1, 16, 8, 8)
    w = net.noise(16, 16, 1, 1)
    for _ in range(3):
        x = net.op("Relu", net.op("Conv", x, w))
    plan = plan_of(load_model(net.proto(net.op("Softmax", x, axis=1))), ZEN4, 1)
    module = emit(plan, ZEN4, defaults(plan, ZEN4))
    counts = kernel_counts(module.script(show_meta=False))
    assert sorted(counts.values()) == [1, 1, 3]
    ours = [p.workload.key for p in parts(module) if p.workload]
    assert counts == {(key, 1): ours.count(key) for key in ours}


class Outline(HTMLParser):
    """What the page's elements are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def page_of(*logs: Path, **more: object) -> str:
    return html.render(compose(read_sources([*logs], **more), ["tvmsep", "report"]))  # type: ignore[arg-type]


def test_the_page_loads_nothing_and_takes_no_orders_from_a_log(tmp_path: Path) -> None:
    text = page_of(write_log(tmp_path / "a.jsonl", tuned(8, 400)))
    outline = Outline()
    outline.feed(text)
    for tag, attrs in outline.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    assert "connect-src 'none'" in text
    assert HOSTILE not in text and "&lt;/script&gt;" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data.group(1))["failures"][0]["details"] == [HOSTILE]


def test_ten_thousand_trials_stay_small(tmp_path: Path) -> None:
    small = page_of(write_log(tmp_path / "small.jsonl", tuned(60, 600)))
    large = page_of(write_log(tmp_path / "large.jsonl", tuned(60, 10_000)))
    assert len(large) < 3_500_000
    assert len(large) - len(small) < 500_000


def test_a_log_of_no_board_is_said_to_be_one(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "a.jsonl", [msgspec.structs.replace(t, board="null") for t in tuned(4, 20)]
    )
    assert "Nothing here was measured" in page_of(log)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvmsep.cli", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_verb_writes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = run(SHIPPED, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {out} (") and out.read_bytes()[:15] == b"<!doctype html>"
    assert f"report {SHIPPED} -o {out}" in out.read_text()
    assert run(SHIPPED, "-o", out).returncode == 0  # over an earlier page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.jsonl"], "missing.jsonl"),
        (["{log}", "-o", "{log}"], "another name"),
        (["{log}", "-o", "{text}"], "no HTML page"),
        (["{log}", "-o", "{dir}"], "a folder"),
        (["{empty}"], "holds no trial"),
        (["{log}", "--profile", "{text}"], "no profile"),
        (["{log}", "--peers", "{text}"], "no times of engines"),
        (["{log}", "--bundle", "{text}"], "not a tvmsep bundle"),
        (["{log}", "{other}"], "one target"),
        (["{log}", "--live", "-o", "x.html"], "--live"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    log = write_log(tmp_path / "a.jsonl", tuned(2, 4))
    moved = [msgspec.structs.replace(t, target="other") for t in tuned(2, 4)]
    places = {
        "log": log, "dir": tmp_path, "empty": write_log(tmp_path / "e.jsonl", []),
        "text": tmp_path / "t.txt", "other": write_log(tmp_path / "o.jsonl", moved),
    }  # fmt: skip
    places["text"].write_text("some text\n")
    done = run(*(w.format(**places) for w in words))
    assert done.returncode == 2 and not done.stdout, done
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "e.jsonl", "o.jsonl", "t.txt"]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tvmsep\[report\]"):
        html.check_extra()


def test_the_library_in_the_pages_is_the_published_one() -> None:
    folder = html.TEMPLATES.parent / "plotly"
    digest = hashlib.sha256((folder / "plotly-cartesian.min.js").read_bytes()).hexdigest()
    said = (folder / "README.md").read_text()
    assert digest in said and html.plotly()[1] in said
    assert "Plotly Technologies" in (folder / "LICENSE").read_text()


def test_peers_of_a_benchmark(tmp_path: Path) -> None:
    results = [
        {"engine": "onnxruntime", "threads": 1, "lowest_s": 0.0007, "failure": None},
        {"engine": "broken", "threads": 1, "failure": {"kind": "x"}},
    ]
    peers = tmp_path / "bench.json"
    peers.write_text(json.dumps({"networks": [{"spec": "a", "results": results}]}))
    w = workload(64)
    log = write_log(tmp_path / "a.jsonl", [trial(w, 0, times_s=(0.00035,))])
    page = compose(read_sources([log], peers=peers), ["tvmsep"])
    rows = {r.name: r.ratio for r in page.networks}
    assert rows["onnxruntime"] == pytest.approx(2.0) and "broken" not in rows


def test_a_growing_log_may_be_missing(tmp_path: Path) -> None:
    page = compose(read_sources([tmp_path / "later.jsonl"], growing=True), ["tvmsep"])
    assert page.story.trials == 0 and "Waiting" in page.subtitle
    assert "Nothing has been measured yet" in html.render(page, poll_s=5)
    with pytest.raises(TvmsepError):
        sources.read_sources([tmp_path / "later.jsonl"])

"""What `make bench` computes of its runs: turns, medians, ratios, the table, the README, the pictures."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benches import capacity, plots, readme, results, runs, table
from benches.apps import handler
from benches.results import Results, figure
from benches.servers import RIVAL_MAKERS, RIVALS, Server, WrongError, pinned_version
from benches.workloads import WORKLOADS, Workload
from realtime.testing import TestApp

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def run(workload: str, server: str, number: int = 1, **figures: Any) -> dict[str, Any]:
    return {"round": number, "workload": workload, "server": server, "figures": figures}


def results_of(*rounds: dict[str, Any], pinned: bool = True) -> Results:
    machine = {"cpu": "A & B <fast>", "cores": 2, "pinned": pinned, "system": "Linux 6"}
    servers = {"ours": {"title": "this server"}, "bun": {"title": "Bun"}, "ws": {"title": "ws (Node)"}}
    document = {"date": "2026-11-05T07:08:09Z", "machine": machine, "engine_profile": "dist", "servers": servers}
    return Results(document | {"rounds": rounds})


def w1(server: str, cpu: float, number: int = 1) -> dict[str, Any]:
    busy = 0.9 if server == "ours" else 0.6
    return run("w1", server, number, server_cpu_us_per_delivery=cpu, generator_cpu_share=busy)


def rate(server: str, offered: int, p50: float, p99: float) -> dict[str, Any]:
    return run(f"w6-{offered}", server, latency_us={"p50": p50, "p99": p99})


def test_a_figure_is_found_by_its_path_and_missing_ones_are_none() -> None:
    figures = {"latency_us": {"p99": 3}, "cycles": [{"rss": 1}, {"rss": 2}]}
    assert figure(figures, "latency_us.p99") == 3.0
    assert figure(figures, "cycles.1.rss") == 2.0
    assert figure(figures, "cycles.9.rss") is None
    assert figure(figures, "lost") is None


def test_ratios_are_of_medians_over_all_rounds() -> None:
    found = results_of(
        *(w1("ours", cpu, number) for number, cpu in enumerate((9.0, 2.0, 1.0), 1)),
        *(w1("bun", cpu, number) for number, cpu in enumerate((4.0, 5.0, 1.0), 1)),
    )
    assert found.median("w1", "ours", "server_cpu_us_per_delivery") == 2.0
    assert found.ratio("w1", "server_cpu_us_per_delivery") == 0.5
    assert found.ratio("w1b", "server_cpu_us_per_delivery") is None
    assert found.ratio("w1", "server_cpu_us_per_delivery", "ws") is None
    assert found.ratio("w1", "server_cpu_us_per_delivery", "bun", beside="w1") == 1.0
    assert found.rounds_each("ours") == 3


def test_the_table_has_a_line_for_each_figure_and_the_ratio_to_bun() -> None:
    workload = Workload("w1", "W1", (), (("CPU, µs", "server_cpu_us_per_delivery"), ("p99, µs", "latency_us.p99")))
    head, *rest = table.lines(results_of(w1("ours", 1.234), w1("bun", 2.468), w1("ws", 1234.4)), [workload])
    assert head.split() == ["workload", "figure", "ours", "bun", "ws", "ours/bun"]
    assert [line.split() for line in rest] == [["W1", "CPU,", "µs", "1.23", "2.47", "1,234", "0.50"]]


def test_servers_take_turns_and_a_slow_rival_runs_in_the_first_round_alone() -> None:
    def server(name: str, rounds: int | None) -> Server:
        return Server(name, name, (), ROOT, rounds=rounds)

    servers = (server("ours", None), server("bun", None), server("ws", 1))
    plan = runs.Plan(Path("load"), servers, [Workload("w1", "W1", (), (), None)], rounds=2)
    found = [(number, asked.name) for number, _, asked in plan.turns()]
    assert found == [(1, "ours"), (1, "bun"), (1, "ws"), (2, "bun"), (2, "ours")]


def test_only_servers_that_compress_are_asked_for_compressed_frames() -> None:
    workload = Workload("w5", "W5", (), (), None, compressed=True)
    assert workload.asks(Server("bun", "Bun", (), ROOT, compresses=True))
    assert not workload.asks(Server("picows", "picows", (), ROOT))


def test_a_load_that_finds_a_fault_makes_the_run_wrong_in_its_own_words() -> None:
    workload, server = Workload("w1", "W1", (), ()), Server("bun", "Bun", (), ROOT)
    for code, told, reason in (
        (1, "lost 2\nWRONG: 2 lost\nWRONG: 1 doubled", "W1 against bun: 2 lost; 1 doubled"),
        (2, "--speed: unknown\nusage: …\nexit: …", "W1 against bun: --speed: unknown"),
    ):
        says = f"import sys; sys.stderr.write({told!r}); sys.exit({code})"
        with pytest.raises(WrongError, match=re.escape(reason)):
            runs.loaded([sys.executable, "-c", says], workload, server)


def test_a_server_that_crashes_is_a_wrong_run_and_the_next_one_is_measured_all_the_same() -> None:
    says = "import sys; print('out of luck'); sys.exit(3)"
    crash = Server("ours", "this server", (sys.executable, "-c", says), ROOT)
    workloads = [Workload(name, name, (), (), None, users=1) for name in ("w1", "w2")]
    measured, wrong = runs.measure(runs.Plan(Path("load"), (crash,), workloads, rounds=1))
    assert measured == []
    assert len(wrong) == 2
    assert all("exit code 3" in sentence and "out of luck" in sentence for sentence in wrong)


def test_workloads_have_names_of_their_own() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    shown = {row.workload for row in readme.ROWS} | {panel.workload for panel in (*plots.CPU, *plots.MEMORY)}
    assert shown <= {workload.name for workload in WORKLOADS}, "the README shows a workload that nothing runs"


def test_a_file_that_was_written_is_read_again(tmp_path: Path) -> None:
    plan = runs.Plan(Path("load"), (Server("ours", "this server", (), ROOT),), ())
    document = results.document(plan, [w1("ours", 1.0)], ["1 lost"], engine_profile="dist")
    path = results.write(document, tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}\.json", path.name)
    assert results.read(path).document == document


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_its_results_file_says(page: Path) -> None:
    found = readme.BLOCK.search(page.read_text("utf-8"))
    assert found is not None
    named = Path(found["file"])
    told = results.read(ROOT / named)
    assert found[0] == readme.marked(named, "\n".join(readme.PAGES[page](told, named))), (
        f"run python -m benches.run --readme {named}; no figure is written by hand"
    )


def test_the_pictures_are_those_of_the_readmes_results_file() -> None:
    found = readme.BLOCK.search(readme.README.read_text("utf-8"))
    assert found is not None
    pictures = plots.all_pictures(results.read(ROOT / found["file"]))
    assert {path.name for path in plots.IMAGES.glob("bench-*.svg")} == set(pictures)
    for name, picture in pictures.items():
        assert (plots.IMAGES / name).read_text("utf-8") == str(picture)
        assert name in found[0]


def test_capacity_multiplies_what_was_held() -> None:
    connect = {"pss_bytes_per_connection": 1_000, "rss_after_bytes": 50, "server_cpu_us_per_connection": 20}
    memory = [{"rss_bytes": 0}, {"rss_bytes": 180_050}]
    figures: dict[str, Any] = {"connections": 18_000, "held_seconds": 600, "server_cpu_ms_per_second": 36}
    held = run("w4b", "ours", connect=connect, memory=memory, socket_bytes_per_connection=3_800, **figures)
    told = "\n".join(capacity.lines(results_of(held), Path("x.json")))
    for row in (
        "| the same at the end of the time | +10 B |",
        "| memory of the processes | 1.0 GB |",
        "| memory of the kernel | 3.8 GB |",
        "| heartbeats | 2.00 cores |",
        "| 10,000 of them coming back a second | 0.20 cores |",
    ):
        assert row in told
    assert list(capacity.lines(results_of(w1("ours", 1.0)), Path("x.json"))) == []


def test_the_readme_says_where_there_were_not_two_cores() -> None:
    block = "\n".join(readme.lines(results_of(w1("ours", 1.0), w1("bun", 2.0), pinned=False), Path("x.json")))
    assert "NOT TWO CORES" in block
    assert "busy for 60% to 90% of its core" in block
    assert "| one channel of 1,000, one event at a time: CPU per delivery | 1.00 µs | 2.00 µs | 0.50 |" in block


def test_a_figure_that_only_ours_has_leaves_the_other_cells_empty() -> None:
    block = "\n".join(readme.main_table(results_of(run("w7", "ours", messages_per_s=25_000))))
    assert "messages a second | 25,000 | | |" in block


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1774, "µs", "0.177 µs"),
        (2.6, "µs", "2.60 µs"),
        (58.9, "µs", "58.9 µs"),
        (2_130, "µs", "2.13 ms"),
        (1270, "B", "1,270 B"),
    ],
)
def test_figures_are_written_with_the_digits_that_count(value: float, unit: str, text: str) -> None:
    assert readme.written(value, unit) == text


def test_pictures_are_well_formed_and_label_what_they_show() -> None:
    rounds = [w1("ours", 2.0), w1("bun", 3.0), w1("ws", 30.0)]
    rounds += [rate(server, offered, 50.0, 900.0) for server in ("ours", "bun") for offered in (10_000, 60_000)]
    pictures = plots.all_pictures(results_of(*rounds))
    assert set(pictures) == {"bench-cpu.svg", "bench-latency.svg"}
    for picture in pictures.values():
        root = ET.fromstring(str(picture))  # noqa: S314 -- our own text
        words = [element.text for element in root.iter(f"{SVG}text")]
        assert {"this server", "Bun"} <= set(words)
        assert any("A & B <fast>" in (text or "") for text in words)
        assert "prefers-color-scheme: dark" in str(picture)
    assert "30" in [element.text for element in ET.fromstring(str(pictures["bench-cpu.svg"])).iter(f"{SVG}text")]  # noqa: S314


def test_a_bar_far_beyond_buns_is_cut_and_says_its_figure() -> None:
    picture = plots.all_pictures(results_of(w1("ours", 2.0), w1("bun", 3.0), w1("ws", 30.0)))["bench-cpu.svg"]
    root = ET.fromstring(str(picture))  # noqa: S314 -- our own text
    bars = {bar.get("class"): float(bar.get("width", 0)) for bar in root.iter(f"{SVG}rect") if bar.get("y")}
    assert bars["bar-other"] == pytest.approx(plots.CUT_AT * bars["bar-bun"], rel=0.01)
    assert len([line for line in root.iter(f"{SVG}polyline") if line.get("class") == "cut"]) == 1


async def test_the_handler_of_the_benchmarks_publishes_what_the_relay_would() -> None:
    async with TestApp(handler.app) as test:
        rights = {"bench:*": ["subscribe", "publish"]}
        one = await test.connect("u1", grants=rights)
        await one.command("subscribe", channel="bench:0")
        data = {"channel": "bench:0", "event": "bench", "data": {"s": 1, "t": 2, "p": "x"}}
        frames = []
        for command in ("publish", "say"):
            await one.send(command, **data)
            frames.append(await one.expect("bench", s=1, t=2, p="x"))
        relayed, handled = frames
        assert handled == relayed


def test_every_rival_has_a_folder_with_pinned_versions_and_no_address_of_a_registry() -> None:
    # What the kernel costs alone is told by a program of the workspace, which has the workspace's lock file.
    for name in RIVAL_MAKERS.keys() - {"bare", "bare-loop"}:
        folder = RIVALS / name
        files = (folder / file for file in ("package-lock.json", "requirements.txt", "go.sum"))
        locks = [path for path in files if path.exists()]
        assert len(locks) == 1, folder
        assert "//" not in locks[0].read_text("utf-8"), f"{locks[0]}: take the addresses out"
    assert pinned_version("granian", "starlette") is not None

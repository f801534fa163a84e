"""What `ncu --csv` prints, read from samples written by hand in its documented formats."""

from __future__ import annotations

import pytest

from pft_bench.insight.counters import ncu
from pft_bench.insight.counters.chips import CHIPS
from pft_bench.insight.counters.counted import CountedLaunch
from pft_bench.insight.counters.emulate import Work
from pft_bench.insight.counters.model import predict

LONG = """\
==PROF== Connected to process 77 (/usr/bin/python3)
==PROF== Profiling "sddmm_resident" - 0: 0%....50%....100% - 3 passes
"ID","Process ID","Kernel Name","Block Size","Grid Size","CC","Metric Name","Metric Unit","Metric Value"
"0","77","sddmm_resident","(512, 1, 1)","(240, 1, 1)","9.0","gpu__time_duration.sum","nsecond","1,250,000"
"0","77","sddmm_resident","(512, 1, 1)","(240, 1, 1)","9.0","l1tex__data_pipe_lsu_wavefronts_mem_shared.sum","","1,000"
"0","77","sddmm_resident","(512, 1, 1)","(240, 1, 1)","9.0","lts__t_sectors_op_read.sum","sector","10"
"0","77","sddmm_resident","(512, 1, 1)","(240, 1, 1)","9.0","lts__t_sectors_op_write.sum","sector","2"
"0","77","sddmm_resident","(512, 1, 1)","(240, 1, 1)","9.0","smsp__inst_executed_pipe_xu.sum","inst","n/a"
"1","77","attention_backward_dense_kernel","(256, 1, 1)","(240, 1, 1)","9.0","smsp__inst_executed.sum","inst","7"
==PROF== Disconnected from process 77
"""
WIDE = """==PROF== Connected to process 77
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","dram__bytes_write.sum"
"","","us","Kbyte","byte"
"0","void pft::cuda::(anonymous namespace)::spmm_resident<float, __half>(pft::SpmmArgs<float>)","12.5","2","500"
"""
NOTHING = {"fma": 0, "exp": 0, "log": 0, "convert": 0}


def launch(kernel: str, **summed: int) -> CountedLaunch:
    return CountedLaunch(
        kernel, "float32", 1, 1, 512, 16, 1024, 10, 0, 0, 100, 0, 50, 4,
        ops=NOTHING, summed={"requests": 10} | NOTHING | summed,
    )  # fmt: skip


def test_a_metric_a_line() -> None:
    first, second = ncu.parse(LONG)
    assert first.kernel == "sddmm_resident"
    assert first.counts == {"seconds": 1.25e-3, "wavefronts": 1000.0, "l2_bytes": 12 * 32.0}
    assert second == ncu.Profiled("attention_backward_dense", {"issue": 7.0})


def test_a_launch_a_line_with_units_below_the_head() -> None:
    (one,) = ncu.parse(WIDE)
    assert one.kernel == "spmm_resident"
    assert one.counts == {"seconds": pytest.approx(12.5e-6), "dram_bytes": 2500.0}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - no permission", "no table: ==ERROR== ERR_NVGPUCTRPERM"),
        ("", "no table: nothing"),
        ('"ID","Metric Name"\n"0","x"\n', "no column Kernel Name"),
    ],
)
def test_what_is_no_table_is_one_clear_line(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ncu.parse(text)


def test_the_command_asks_for_every_metric() -> None:
    made = ncu.command("ncu", ["python", "x.py"])
    asked = made[made.index("--metrics") + 1].split(",")
    assert set(asked) == {name for names in ncu.METRICS.values() for name in names}
    assert made[-2:] == ["python", "x.py"]
    assert "--csv" in made


def test_counted_and_profiled_stand_beside_each_other() -> None:
    work, chip = Work("sddmm", 10, 1, 64, 40, 16, 16, "float32"), CHIPS["h100"]
    mine = launch("sddmm_resident", wavefronts=50)
    theirs = [ncu.Profiled("sddmm_resident", {"wavefronts": 600.0, "seconds": 2e-6})]
    rows = ncu.beside([(work, mine, predict(work, mine, chip))], theirs)
    by_name = {row[2]: row for row in rows}
    assert by_name["wavefronts"][3:] == ("500", "600", "1.200")
    assert by_name["seconds"][4] == "0.002 ms"
    keys = launch("attention_backward_dense_keys")
    ncu.beside([(work, keys, predict(work, keys, chip))], [ncu.Profiled("attention_backward_dense", {})])
    with pytest.raises(
        ValueError, match="launches must be the same, counted sddmm_resident, profiled spmm_resident"
    ):
        ncu.beside([(work, mine, predict(work, mine, chip))], [ncu.Profiled("spmm_resident", {})])

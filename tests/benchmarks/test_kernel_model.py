"""The arithmetic of the model of kernel times, on made-up launches. Real kernels' times are not tested."""

import pytest

from benchmarks.kernels import times as kernel_times
from benchmarks.kernels.loads import loaded, streaming
from benchmarks.kernels.times import DRAM, GAP_US, L2, MULTIPROCESSORS, Work, chain_us, copy_us, issue_cycles, launch_us

MB = 10**6


def us(**fields):
    """The time of a launch that finds nothing in L2."""
    work = Work(**{"read": {}, "written": {}, "programs": MULTIPROCESSORS, **fields})
    return launch_us(work, sum(work.read.values()))


def test_an_empty_launch_costs_its_gap_and_a_wait():
    assert GAP_US < us() < GAP_US + 1


def test_tiny_joins_take_as_many_gaps_as_launches():
    one = Work({"x": 1000}, {"y": 1000})
    assert sum(chain_us([one] * 3)) == pytest.approx(3 * GAP_US, abs=2)
    assert launch_us(one, 1000) == pytest.approx(us(), abs=0.5)


def test_more_bytes_take_longer_and_large_tensors_are_bound_by_memory():
    small, large = (us(read={"x": n * MB}, written={"y": n * MB}) for n in (10, 1000))
    assert us() < small < large
    assert large == pytest.approx(2000 * MB / DRAM * 1e6, rel=0.01)
    assert copy_us(2000 * MB) == pytest.approx(large, rel=1e-6)


def test_what_was_just_moved_is_found_in_l2_as_far_as_it_fits():
    def second(size):
        return chain_us([Work({"x": size}, {}), Work({"x": size}, {})])[1]

    fits, misses = 10 * MB, 1000 * MB
    assert second(fits) < us(read={"x": fits})
    assert second(fits) == pytest.approx(launch_us(Work({"x": fits}, {}), 0))
    assert second(misses) == pytest.approx(us(read={"x": misses}), rel=0.05)
    assert second(misses) > misses / L2 * 1e6


def test_what_another_tensor_pushed_out_is_not_found():
    x, other = Work({"x": 10 * MB}, {}), Work({"other": 1000 * MB}, {})
    assert chain_us([x, other, x])[2] > chain_us([x, x])[1]


def test_a_written_tensor_is_found_too():
    assert chain_us([Work({}, {"x": 10 * MB}), Work({"x": 10 * MB}, {})])[1] < us(read={"x": 10 * MB})


def test_instructions_are_those_of_the_busiest_multiprocessor():
    def cycles(programs, warps=8, registers=32):
        return issue_cycles(Work({}, {}, programs, warps, registers, instructions=1000))

    assert cycles(1) == cycles(MULTIPROCESSORS) < cycles(MULTIPROCESSORS + 1)
    assert cycles(100 * MULTIPROCESSORS) == pytest.approx(100 * 8 * 1000 / kernel_times.ISSUED)
    # Few warps issue fewer instructions, as when registers leave room for only one program.
    assert cycles(100 * MULTIPROCESSORS, registers=255) > cycles(100 * MULTIPROCESSORS)
    assert us(instructions=10**6) > us(instructions=10**5) > us()


def test_waits_for_memory_add_up_within_a_program_and_over_its_successors():
    full = kernel_times.WARPS // 4 * MULTIPROCESSORS
    assert us(read={"x": 1}, waits=100) > us(read={"x": 1}, waits=2) > us(read={"x": 1})
    assert us(read={"x": 1}, programs=2 * full) > us(read={"x": 1}, programs=full) == us(read={"x": 1})


def test_matrix_products_bound_a_launch():
    assert us(product_cycles=10**6) == pytest.approx(10**6 / kernel_times.CLOCK * 1e6, rel=0.01)


SASS = [
    "LDG.E R1, [R2] ;",  # an outer loop of 7, with loops of 2 and 3 in it
    "LDG.E.64 R4, [R2] ;",
    "@P0 BRA `(.L_1) ;",
    "@!P1 LDG.E.128 R8, desc[UR4][R2.64] ;",
    "STG.E.128 desc[UR4][R6.64], R8 ;",
    "@P0 BRA `(.L_2) ;",
    "@P0 BRA `(.L_0) ;",
    "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ;",  # a loop of 2
    "@P0 BRA `(.L_3) ;",
    "IADD3 R1, R1, 1 ;",  # a loop that loads nothing
]


def test_loops_over_activations():
    outer, merging, normalising, staged, counting = (
        range(0, 7), range(1, 3), range(3, 6), range(7, 9), range(9, 10),
    )  # fmt: skip
    loops = [outer, merging, normalising, staged, counting]
    assert [loaded(SASS, loop) for loop in loops] == [28, 8, 16, 16, 0]
    assert streaming(SASS, loops, storing=False) == [merging, normalising, staged]
    assert streaming(SASS, loops, storing=True) == [normalising]

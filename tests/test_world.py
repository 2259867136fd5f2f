"""The world: devices, memory and what processes agree on, each against something that knows it independently."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainrun.errors import TrainrunError, UserError
from trainrun.world import World, enter, free_memory, native_bf16

CPU = torch.device("cpu")
GIB = 2**30
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["trainrun.world", "torch._dynamo"])  # the latter by torch.nn.parallel


def _member(rank: int, size: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    work(*args)


def codes(count: int, work: Callable[..., None], *args: Any) -> list[int | None]:
    """Exit codes of `count` processes that do `work` where torchrun would have started them; this one holds the store, as it would."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [server.Process(target=_member, args=(rank, count, store.port, work, args)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


def _entered(work: Callable[[World], None]) -> None:
    with enter() as world:
        work(world)


def together(work: Callable[[World], None]) -> None:
    """`work`, with its assertions, in a world of three."""
    assert codes(3, _entered, work) == [0, 0, 0]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="asks Linux about an x86 processor")
def test_native_bf16_is_what_the_processor_says() -> None:
    (flags,) = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")}
    assert native_bf16(CPU) == any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16"))


def machine(root: Path, groups: str, mounts: str, available: int = 64 * GIB, **files: str) -> Path:
    """A /proc and /sys as the kernel would show them; `files` are those of control groups, with __ for a slash."""
    for name, text in {
        "proc/meminfo": f"MemTotal:       {128 * GIB // 1024} kB\nMemAvailable:   {available // 1024} kB\nHugePages_Total:       0\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": f"22 1 0:20 / / rw - ext4 /dev/root rw\n{mounts}\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 22 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def group(folder: str, limit: str, used: int, inactive: int = 0, active: int = 0) -> dict[str, str]:
    """The files of a version 2 group."""
    stat = f"anon {used - inactive - active}\nfile {inactive + active}\ninactive_file {inactive}\nactive_file {active}\n"
    return {f"{folder}memory.max": f"{limit}\n", f"{folder}memory.current": f"{used}\n", f"{folder}memory.stat": stat}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param("0::/\n", V2, {}, 64, id="no limit anywhere"),
        pytest.param("0::/\n", V2, group("", str(8 * GIB), 3 * GIB), 5, id="a container sees its own group as the root"),
        pytest.param("0::/job/step\n", V2, group("job/step/", str(8 * GIB), 3 * GIB) | group("job/", "max", 9 * GIB), 5, id="nested"),
        pytest.param("0::/job/step\n", V2, group("job/step/", "max", GIB) | group("job/", str(4 * GIB), 3 * GIB), 1, id="limited above"),
        pytest.param("0::/job\n", V2, group("other/", str(GIB), GIB) | group("job/", "max", GIB), 64, id="another's limit"),
        pytest.param("0::/\n", V2, group("", str(8 * GIB), 8 * GIB, 4 * GIB, 2 * GIB), 6, id="cached files give way"),
        pytest.param("0::/\n", V2, group("", str(8 * GIB), 9 * GIB), 0, id="over the limit"),
        pytest.param("0::/\n", V2, group("", str(512 * GIB), GIB), 64, id="more than the machine has"),
        pytest.param("0::/../..\n", V2, group("", str(8 * GIB), 3 * GIB), 5, id="a path outside what is mounted"),
        pytest.param(
            "5:cpu:/job\n4:cpuset,memory:/job\n0::/\n",
            V1,
            {
                "memory/job/memory.limit_in_bytes": f"{6 * GIB}\n",
                "memory/job/memory.usage_in_bytes": f"{5 * GIB}\n",
                "memory/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": f"{40 * GIB}\n",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            2,
            id="version 1",
        ),
        pytest.param(
            "4:memory:/docker/abc\n",
            V1.replace(" / /sys", " /docker/abc /sys"),
            {
                "memory/memory.limit_in_bytes": f"{6 * GIB}\n",
                "memory/memory.usage_in_bytes": f"{5 * GIB}\n",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            1,
            id="version 1, told as the host sees it",
        ),
    ],
)
def test_free_memory_is_what_the_tightest_group_leaves(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], expected: int
) -> None:
    assert free_memory(CPU, machine(tmp_path, groups, mounts, **files)) == expected * GIB


def test_free_memory_of_this_machine_is_at_most_its_memory() -> None:
    assert 0 < free_memory(CPU) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 32, 33])
def test_shares_are_the_batch_in_its_order_and_even(size: int, count: int) -> None:
    ids = torch.randperm(count)
    shares = [World(CPU, rank, size).share(ids) for rank in range(size)]
    assert torch.equal(torch.cat(shares), ids)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_world_of_one_changes_nothing() -> None:
    world, model = World(CPU), torch.nn.Linear(2, 2)
    assert world.wrap(model) is model
    assert world.any(True, False) == (True, False)
    assert world.tell(3) == world.first(lambda: 3) == 3
    assert world.sum(torch.tensor([2.0])).tolist() == [2.0]
    world.align_buffers(model)


def _agrees(world: World) -> None:
    rank = world.rank
    assert world.main == (rank == 0)
    assert world.any(rank == 2, False, True, rank == 0) == (True, False, True, True)
    assert world.tell({"rank": rank}) == {"rank": 0}
    values = torch.tensor([rank + 0.25, 1e16 * (rank == 1)], dtype=torch.float64)
    assert world.sum(values) is values
    assert values.tolist() == [3.75, 1e16]
    calls = []
    assert world.first(lambda: calls.append(rank) or rank + 5) == 5
    assert calls == ([0] if rank == 0 else [])

    def refuse() -> None:
        raise UserError("no room").then("make some")

    with pytest.raises(UserError, match="^no room; next: make some$") as caught:
        try:
            world.first(refuse)
        except UserError as error:
            raise UserError(error.line) from None
    assert caught.value.exit_code == 2


def test_processes_agree() -> None:
    together(_agrees)


def _aligned(world: World) -> None:
    model = torch.nn.Module()
    for name, buffer in {
        "mean": torch.full((3,), float(world.rank)),
        "batches": torch.tensor(world.rank),
        "mask": torch.tensor([world.rank > 0, False]),
        "maps": torch.full((2, 3, 4, 5), float(world.rank)).contiguous(memory_format=torch.channels_last),
        "turned": torch.full((4, 3), float(world.rank)).t(),
    }.items():
        model.register_buffer(name, buffer)
    world.align_buffers(model)
    assert all(not buffer.any() for buffer in model.buffers())


def test_aligned_buffers_are_the_first_ones() -> None:
    together(_aligned)


def _averages(world: World) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4)).double()
    images, labels = torch.randn(11, 6, dtype=torch.float64), torch.randint(4, (11,))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    whole = [p.grad for p in model.parameters()]
    model.zero_grad()
    wrapped = world.wrap(model)
    assert [p.grad for p in model.parameters()] == [None] * 4
    ids = world.share(torch.arange(11))  # 4, 4 and 3
    for _ in range(2):
        (torch.nn.functional.cross_entropy(wrapped(images[ids]), labels[ids], reduction="sum") * world.size / 11).backward()
        for parameter, expected in zip(model.parameters(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, expected)
        wrapped.zero_grad()


def test_the_gradient_of_uneven_shares_is_that_of_the_whole_batch() -> None:
    together(_averages)


def _layout_never_changes(world: World) -> None:
    # Numbers whose sum depends on the order in which it is taken, so that another layout of the buckets shows in the bits.
    torch.manual_seed(world.rank)
    model = torch.nn.Sequential(*(torch.nn.Linear(40, 40) for _ in range(6)))
    images, sums = torch.randn(8, 40), []
    wrapped = world.wrap(model)
    for _ in range(3):
        wrapped(images).sum().backward()
        sums.append([p.grad.clone() for p in model.parameters()])
        wrapped.zero_grad()
    assert all(torch.equal(a, b) for later in sums[1:] for a, b in zip(sums[0], later, strict=True))


def test_gradients_are_summed_in_one_order_from_the_first_step_on() -> None:
    together(_layout_never_changes)


def _one_is_killed(world: World) -> None:
    world.any(True)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        world.any(False)


def _notes_the_loss(note: Path) -> None:
    try:
        _entered(_one_is_killed)
    except TrainrunError as error:
        note.write_text(f"{error.exit_code}: {error}")


def test_the_death_of_another_process_ends_this_one_with_a_reason(tmp_path: Path) -> None:
    assert codes(2, _notes_the_loss, tmp_path / "note") == [0, -signal.SIGKILL]
    assert (tmp_path / "note").read_text().startswith("1: another process of this run has ended")


def _refused(folder: Path, same: bool) -> None:
    rank = os.environ["RANK"]
    try:
        with enter() as world:
            world.any(True)
            raise UserError("no room" if same else f"no room in {rank}")
    except UserError as error:
        (folder / rank).write_text(f"{error}, {error.told}")


@pytest.mark.parametrize("same", [True, False])
def test_what_all_processes_say_is_marked_as_told_in_all_but_one(tmp_path: Path, same: bool) -> None:
    assert codes(2, _refused, tmp_path, same) == [0, 0]
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert said == (["no room, False", "no room, True"] if same else ["no room in 0, False", "no room in 1, False"])

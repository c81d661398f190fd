"""The device tree, read back with the library's own parser, and with dtc where that is installed."""

import shutil
import subprocess
from typing import Any

import fdt
import pytest

from pmuvisor.board.fdt import MAX_BOOTARGS, virt_device_tree

MEMORY = 256 << 20


def parse(**arguments: Any) -> Any:
    settings: dict[str, Any] = {"memory_bytes": MEMORY, "cpus": 1, **arguments}
    return fdt.parse_dtb(virt_device_tree(**settings))


def value(tree: Any, path: str, name: str) -> list[int] | list[str]:
    return list(tree.get_property(name, path).data)


def test_the_root_is_qemus_virt() -> None:
    tree = parse()
    assert value(tree, "/", "compatible") == ["linux,dummy-virt"]
    assert value(tree, "/", "#address-cells") == [2]
    assert value(tree, "/", "#size-cells") == [2]


def test_memory_of_more_than_4_gib_has_its_high_cell() -> None:
    assert value(parse(memory_bytes=5 << 30), "/memory@40000000", "reg") == [0, 0x4000_0000, 1, 0x4000_0000]


def test_each_cpu_has_its_affinity_and_is_started_by_psci() -> None:
    tree = parse(cpus=8, cpu_compatible="arm,cortex-a72")
    for cpu in range(8):
        path = f"/cpus/cpu@{cpu}"
        assert value(tree, path, "reg") == [cpu]
        assert value(tree, path, "device_type") == ["cpu"]
        assert value(tree, path, "enable-method") == ["psci"]
        assert value(tree, path, "compatible") == ["arm,cortex-a72"]
    assert not tree.exist_node("/cpus/cpu@8")


def test_interrupt_controller_covers_all_redistributors() -> None:
    tree = parse(cpus=4)
    path = "/intc@8000000"
    assert value(tree, path, "compatible") == ["arm,gic-v3"]
    assert value(tree, path, "reg") == [0, 0x0800_0000, 0, 0x10000, 0, 0x080A_0000, 0, 0x80000]
    assert value(tree, path, "#interrupt-cells") == [3]
    assert value(tree, "/", "interrupt-parent") == value(tree, path, "phandle")
    assert tree.exist_property("interrupt-controller", path)


def test_timers_are_secure_physical_virtual_and_hypervisor() -> None:
    assert value(parse(), "/timer", "interrupts") == [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]


def test_firmware_is_called_by_hvc() -> None:
    tree = parse()
    assert value(tree, "/psci", "method") == ["hvc"]
    assert value(tree, "/psci", "compatible") == ["arm,psci-1.0", "arm,psci-0.2"]


def test_the_uart_is_the_console() -> None:
    tree = parse()
    path = "/pl011@9000000"
    assert value(tree, "/aliases", "serial0") == [path]
    assert value(tree, "/chosen", "stdout-path") == [path]
    assert value(tree, path, "compatible") == ["arm,pl011", "arm,primecell"]
    assert value(tree, path, "reg") == [0, 0x0900_0000, 0, 0x1000]
    assert value(tree, path, "interrupts") == [0, 1, 4]
    assert value(tree, path, "clock-names") == ["uartclk", "apb_pclk"]
    assert value(tree, path, "clocks") == value(tree, "/apb-pclk", "phandle") * 2


def test_there_is_a_second_uart_where_qemu_has_one() -> None:
    tree = parse()
    path = "/pl011@9040000"
    assert value(tree, "/aliases", "serial1") == [path]
    assert value(tree, path, "reg") == [0, 0x0904_0000, 0, 0x1000]
    assert value(tree, path, "interrupts") == [0, 8, 4]
    assert value(tree, path, "compatible") == ["arm,pl011", "arm,primecell"]


def test_the_pmu_is_announced_on_request() -> None:
    assert value(parse(pmu=True), "/pmu", "interrupts") == [1, 7, 4]
    assert value(parse(pmu=True), "/pmu", "compatible") == ["arm,armv8-pmuv3"]
    assert not parse(pmu=False).exist_node("/pmu")


def test_spe_is_announced_on_request() -> None:
    """Linux's bindings, perf/spe-pmu.yaml. PMBIRQ is PPI 5, which is INTID 21."""
    assert value(parse(spe=True), "/spe-pmu", "compatible") == ["arm,statistical-profiling-extension-v1"]
    assert value(parse(spe=True), "/spe-pmu", "interrupts") == [1, 5, 4]
    assert not parse().exist_node("/spe-pmu")


def test_chosen_has_command_line_and_ram_disk_if_there_are_any() -> None:
    tree = parse(bootargs='console=ttyAMA0 x="a b"', initrd=(0x4800_0000, 0x1_4800_1234))
    assert value(tree, "/chosen", "bootargs") == ['console=ttyAMA0 x="a b"']
    assert value(tree, "/chosen", "linux,initrd-start") == [0, 0x4800_0000]
    assert value(tree, "/chosen", "linux,initrd-end") == [1, 0x4800_1234]
    bare = parse()
    assert not bare.exist_property("bootargs", "/chosen")
    assert not bare.exist_property("linux,initrd-start", "/chosen")


def test_the_same_machine_gives_the_same_bytes_and_the_same_seed() -> None:
    first = virt_device_tree(MEMORY, 2, "quiet")
    assert first == virt_device_tree(MEMORY, 2, "quiet")
    assert b"rng-seed" in first
    assert b"kaslr-seed" not in first


@pytest.mark.parametrize("bootargs", ["caf\u00e9", "a\nb", "a\0b", "x" * (MAX_BOOTARGS + 1)])
def test_command_lines_that_linux_could_not_read(bootargs: str) -> None:
    with pytest.raises(ValueError, match="command line"):
        virt_device_tree(MEMORY, 1, bootargs)


def test_the_longest_command_line_fits() -> None:
    assert value(parse(bootargs="x" * 2047), "/chosen", "bootargs") == ["x" * 2047]


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_dtc_has_nothing_to_say() -> None:
    blob = virt_device_tree(MEMORY, 2, "quiet", (0x4800_0000, 0x4900_0000), spe=True)
    done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", "-"], input=blob, capture_output=True, check=True)
    assert done.stderr == b""

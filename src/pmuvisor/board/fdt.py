"""The device tree that the board gives to its guests.

For: describing exactly the devices of `memmap`, in the nodes and properties that Linux's bindings name, so that a
kernel made for QEMU's `virt` machine finds them. Not for: editing a tree that somebody else wrote. The rng-seed is a
constant and there is no kaslr-seed: the same machine gives the same bytes.

The rules are those of the Devicetree Specification, of Linux's Documentation/devicetree/bindings and of its
Documentation/arch/arm64/booting.
"""

from typing import Any, Final

import fdt

from pmuvisor.board import memmap

MAX_BOOTARGS: Final = 2047
"""The longest command line, in bytes, that Linux for arm64 reads without cutting it."""

_GIC_PHANDLE: Final = 1
_CLOCK_PHANDLE: Final = 2
_PPI: Final = 1
_SPI: Final = 0
_LEVEL_HIGH: Final = 4
_UART_CLOCK_HZ: Final = 24_000_000
_RNG_SEED: Final = tuple(int.from_bytes(b"pmuvisor"[i : i + 4], "big") for i in (0, 4)) * 4
"""32 bytes that are always the same. Without a seed Linux's generator is not ready when user space starts, and every
system call, which asks it for a stack offset, then costs ten thousand instructions more than on any real machine."""
_UARTS: Final = ((memmap.UART_BASE, memmap.UART_INTID), (memmap.UART1_BASE, memmap.UART1_INTID))
"""Their addresses and INTIDs, in the order of their aliases, by which Linux numbers them: ttyAMA0, ttyAMA1."""

_Property = tuple[str | int, ...]
"""A property: its name, then its value as strings or as 32-bit cells; no value is a boolean property."""


def virt_device_tree(
    memory_bytes: int,
    cpus: int,
    bootargs: str = "",
    initrd: tuple[int, int] | None = None,
    pmu: bool = True,
    cpu_compatible: str = "arm,armv8",
    spe: bool = False,
) -> bytes:
    """The flattened tree of a machine of `cpus` CPUs and `memory_bytes` of RAM, deterministic.

    `initrd` is (first address, end address), the end not included. `pmu` says whether a PMUv3 is announced, `spe`
    whether the Statistical Profiling Extension is, and `cpu_compatible` what the CPU nodes say that they are. Raises
    ValueError for a command line that is not printable ASCII of at most `MAX_BOOTARGS` bytes.
    """
    if not (bootargs.isascii() and bootargs.isprintable()):
        raise ValueError("the kernel command line must be printable ASCII, on one line")
    if len(bootargs) > MAX_BOOTARGS:
        raise ValueError(f"the kernel command line has {len(bootargs)} bytes, Linux reads at most {MAX_BOOTARGS}")
    root = _node(
        "/",
        ("compatible", "linux,dummy-virt"),
        ("model", "linux,dummy-virt"),
        ("#address-cells", 2),
        ("#size-cells", 2),
        ("interrupt-parent", _GIC_PHANDLE),
    )
    root.append(_node("aliases", *((f"serial{n}", f"/{_uart_name(base)}") for n, (base, _) in enumerate(_UARTS))))
    root.append(_chosen(bootargs, initrd))
    root.append(
        _node(
            f"memory@{memmap.RAM_BASE:x}",
            ("device_type", "memory"),
            ("reg", *_cells(memmap.RAM_BASE, memory_bytes)),
        )
    )
    root.append(_cpus(cpus, cpu_compatible))
    root.append(_node("psci", ("compatible", "arm,psci-1.0", "arm,psci-0.2"), ("method", "hvc")))
    root.append(_timer())
    if pmu:
        root.append(_node("pmu", ("compatible", "arm,armv8-pmuv3"), ("interrupts", *_ppi(memmap.PMU_INTID))))
    if spe:
        compatible = "arm,statistical-profiling-extension-v1"
        root.append(_node("spe-pmu", ("compatible", compatible), ("interrupts", *_ppi(memmap.SPE_INTID))))
    root.append(_gic(cpus))
    root.append(_clock())
    for base, intid in _UARTS:
        root.append(_uart(base, intid))
    tree = fdt.FDT()
    tree.root = root
    return bytes(tree.to_dtb(version=17))


def _cells(*values: int) -> list[int]:
    """64-bit values as pairs of 32-bit cells."""
    return [half for value in values for half in (value >> 32, value & 0xFFFF_FFFF)]


def _ppi(intid: int) -> tuple[int, int, int]:
    return _PPI, intid - memmap.PPI_FIRST, _LEVEL_HIGH


def _node(name: str, *properties: _Property) -> Any:
    node = fdt.Node(name)
    for label, *values in properties:
        if not values:
            node.append(fdt.Property(label))
        elif isinstance(values[0], str):
            node.append(fdt.PropStrings(label, *values))
        else:
            node.append(fdt.PropWords(label, *values))
    return node


def _chosen(bootargs: str, initrd: tuple[int, int] | None) -> Any:
    properties: list[_Property] = [("stdout-path", f"/{_uart_name(memmap.UART_BASE)}")]
    if bootargs:
        properties.append(("bootargs", bootargs))
    if initrd is not None:
        properties.append(("linux,initrd-start", *_cells(initrd[0])))
        properties.append(("linux,initrd-end", *_cells(initrd[1])))
    properties.append(("rng-seed", *_RNG_SEED))
    return _node("chosen", *properties)


def _cpus(count: int, compatible: str) -> Any:
    parent = _node("cpus", ("#address-cells", 1), ("#size-cells", 0))
    for cpu in range(count):
        mpidr = memmap.cpu_mpidr(cpu)
        parent.append(
            _node(
                f"cpu@{mpidr:x}",
                ("device_type", "cpu"),
                ("compatible", compatible),
                ("reg", mpidr),
                ("enable-method", "psci"),
            )
        )
    return parent


def _timer() -> Any:
    interrupts = [
        cell
        for intid in (
            memmap.SECURE_PHYS_TIMER_INTID,
            memmap.PHYS_TIMER_INTID,
            memmap.VIRT_TIMER_INTID,
            memmap.HYP_PHYS_TIMER_INTID,
        )
        for cell in _ppi(intid)
    ]
    return _node("timer", ("compatible", "arm,armv8-timer"), ("always-on",), ("interrupts", *interrupts))


def _gic(cpus: int) -> Any:
    redistributors = memmap.GICR_SIZE_PER_CPU * cpus
    return _node(
        f"intc@{memmap.GICD_BASE:x}",
        ("compatible", "arm,gic-v3"),
        ("interrupt-controller",),
        ("#interrupt-cells", 3),
        ("#address-cells", 0),
        ("reg", *_cells(memmap.GICD_BASE, memmap.GICD_SIZE, memmap.GICR_BASE, redistributors)),
        ("phandle", _GIC_PHANDLE),
    )


def _clock() -> Any:
    return _node(
        "apb-pclk",
        ("compatible", "fixed-clock"),
        ("#clock-cells", 0),
        ("clock-frequency", _UART_CLOCK_HZ),
        ("clock-output-names", "clk24mhz"),
        ("phandle", _CLOCK_PHANDLE),
    )


def _uart_name(base: int) -> str:
    return f"pl011@{base:x}"


def _uart(base: int, intid: int) -> Any:
    return _node(
        _uart_name(base),
        ("compatible", "arm,pl011", "arm,primecell"),
        ("reg", *_cells(base, memmap.UART_SIZE)),
        ("interrupts", _SPI, intid - memmap.SPI_FIRST, _LEVEL_HIGH),
        ("clocks", _CLOCK_PHANDLE, _CLOCK_PHANDLE),
        ("clock-names", "uartclk", "apb_pclk"),
    )

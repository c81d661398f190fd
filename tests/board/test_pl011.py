"""The UART, as a driver sees it through the registers of DDI 0183."""

from hypothesis import given
from hypothesis import strategies as st

from pmuvisor.board.pl011 import Pl011

DR, RSR, FR, IBRD, FBRD, LCR_H, CR, IFLS = 0x00, 0x04, 0x18, 0x24, 0x28, 0x2C, 0x30, 0x34
IMSC, RIS, MIS, ICR, DMACR = 0x38, 0x3C, 0x40, 0x44, 0x48
TXFE, RXFF, TXFF, RXFE, BUSY = 0x80, 0x40, 0x20, 0x10, 0x08
RX, TX, RT = 0x10, 0x20, 0x40
FEN = 0x10


class Console:
    def __init__(self, backlog: int = 65536) -> None:
        self.sent = b""
        self.levels: list[bool] = []
        self.uart = Pl011(self.send, self.levels.append, backlog)
        self.uart.write(LCR_H, 4, 0x70)  # 8 bits, FIFOs enabled

    def send(self, data: bytes) -> None:
        self.sent += data

    def drain(self) -> bytes:
        """What a polling driver would read."""
        data = bytearray()
        while not self.uart.read(FR, 4) & RXFE:
            data.append(self.uart.read(DR, 4))
        return bytes(data)


def test_reset_values() -> None:
    uart = Pl011(lambda data: None)
    expected = {FR: TXFE | RXFE, CR: 0x300, IFLS: 0x12, IMSC: 0, RIS: 0, MIS: 0, LCR_H: 0, IBRD: 0, DMACR: 0, RSR: 0}
    assert {offset: uart.read(offset, 4) for offset in expected} == expected
    assert uart.irq is False


def test_peripheral_identification_has_16_deep_fifos() -> None:
    uart = Pl011(lambda data: None)
    assert [uart.read(0xFE0 + 4 * n, 4) for n in range(4)] == [0x11, 0x10, 0x14, 0x00]
    assert [uart.read(0xFF0 + 4 * n, 4) for n in range(4)] == [0x0D, 0xF0, 0x05, 0xB1]


def test_written_bytes_leave_at_once_and_in_order() -> None:
    console = Console()
    for byte in b"hello\xff":
        assert not console.uart.read(FR, 4) & (TXFF | BUSY)
        console.uart.write(DR, 1, byte)
    console.uart.write(DR, 4, 0x141)
    assert console.sent == b"hello\xffA"


def test_transmit_interrupt_comes_after_a_byte_and_is_cleared_by_the_guest() -> None:
    console = Console()
    console.uart.write(IMSC, 4, TX)
    assert not console.uart.irq  # unmasking alone is no transition of the FIFO
    console.uart.write(DR, 1, 0x41)
    assert console.uart.read(RIS, 4) == TX
    assert console.uart.irq
    console.uart.write(ICR, 4, TX)
    assert not console.uart.irq
    assert console.levels == [True, False]


def test_masked_status_is_what_the_line_shows() -> None:
    console = Console()
    console.uart.write(DR, 1, 0x41)
    assert (console.uart.read(RIS, 4), console.uart.read(MIS, 4), console.uart.irq) == (TX, 0, False)
    console.uart.write(IMSC, 4, TX)
    assert (console.uart.read(MIS, 4), console.uart.irq) == (TX, True)
    console.uart.write(IMSC, 4, 0)
    assert (console.uart.read(RIS, 4), console.uart.irq) == (TX, False)


def test_a_few_bytes_raise_the_timeout_interrupt_until_they_are_read() -> None:
    console = Console()
    console.uart.write(IMSC, 4, RX | RT)
    assert console.uart.receive(b"ab") == 2
    assert console.uart.read(RIS, 4) == RT
    assert console.uart.irq
    console.uart.write(ICR, 4, RT)
    assert console.uart.irq  # there is still something to read, and time does not pass
    assert console.drain() == b"ab"
    assert console.uart.read(RIS, 4) == 0
    assert not console.uart.irq


def test_the_receive_interrupt_comes_at_the_trigger_level_and_goes_below_it() -> None:
    console = Console()  # the level is half of the FIFO after reset: 8
    console.uart.receive(b"1234567")
    assert console.uart.read(RIS, 4) == RT
    console.uart.receive(b"8")
    assert console.uart.read(RIS, 4) == RX
    console.uart.read(DR, 4)
    assert console.uart.read(RIS, 4) == RT


def test_a_cleared_receive_interrupt_leaves_the_timeout_to_tell_of_the_rest() -> None:
    console = Console()
    console.uart.receive(b"12345678")
    console.uart.write(ICR, 4, RX)
    assert console.uart.read(RIS, 4) == RT
    console.uart.receive(b"9")
    assert console.uart.read(RIS, 4) == RX


def test_trigger_levels_follow_ifls() -> None:
    for field, level in enumerate((2, 4, 8, 12, 14)):
        console = Console()
        console.uart.write(IFLS, 4, field << 3)
        console.uart.receive(bytes(level - 1))
        assert console.uart.read(RIS, 4) == RT
        console.uart.receive(b"x")
        assert console.uart.read(RIS, 4) == RX


def test_input_beyond_the_fifo_waits_and_follows_in_order() -> None:
    console = Console()
    data = bytes(range(256)) * 10
    assert console.uart.receive(data) == len(data)
    assert console.uart.read(FR, 4) & RXFF
    assert console.uart.waiting == len(data)
    assert console.drain() == data
    assert console.uart.waiting == 0


def test_input_beyond_the_backlog_is_left_to_the_sender() -> None:
    console = Console(backlog=10)
    data = bytes(range(100))
    taken = console.uart.receive(data)
    assert taken == 16 + 10
    assert console.uart.receive(data[taken:]) == 0
    console.uart.read(DR, 4)
    assert console.uart.receive(data[taken:]) == 1
    assert console.drain() == data[1:27]


def test_without_fifos_one_byte_at_a_time_is_held() -> None:
    console = Console()
    console.uart.receive(b"abc")
    console.uart.write(LCR_H, 4, 0x60)
    assert console.uart.read(FR, 4) & RXFF
    console.uart.write(LCR_H, 4, 0x70)
    console.uart.write(LCR_H, 4, 0x60)
    assert console.drain() == b"abc"
    console.uart.receive(b"d")
    assert console.uart.read(RIS, 4) == RX


def test_reading_without_input_gives_zero() -> None:
    assert Console().uart.read(DR, 4) == 0


def test_registers_keep_only_the_bits_that_they_have() -> None:
    uart = Console().uart
    expected = {IBRD: 0xFFFF, FBRD: 0x3F, LCR_H: 0xFF, CR: 0xFF87, IFLS: 0x3F, IMSC: 0x7FF, DMACR: 0x7}
    for offset, mask in expected.items():
        uart.write(offset, 4, 0xFFFF_FFFF)
        assert uart.read(offset, 4) == mask


def test_read_only_registers_ignore_writes() -> None:
    uart = Console().uart
    for offset in (FR, RIS, MIS, 0xFE0, 0xFFC, RSR):
        before = uart.read(offset, 4)
        uart.write(offset, 4, 0xFFFF_FFFF)
        assert uart.read(offset, 4) == before


ACCESS = st.tuples(
    st.one_of(st.integers(0, 0x60), st.integers(0, 0xFFF)), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)
)


@given(st.lists(st.one_of(ACCESS, st.binary(max_size=40)), max_size=40))
def test_no_access_raises_and_the_line_is_always_the_masked_status(
    steps: list[tuple[int, int, int] | bytes],
) -> None:
    console = Console(backlog=32)
    for step in steps:
        if isinstance(step, bytes):
            console.uart.receive(step)
        else:
            offset, size, value = step
            console.uart.write(offset, size, value)
            assert 0 <= console.uart.read(offset, size) < 1 << 8 * size
        assert console.uart.irq == bool(console.uart.read(MIS, 4))
        assert (console.levels[-1] if console.levels else False) == console.uart.irq


@given(st.lists(st.one_of(st.binary(max_size=30), st.integers(1, 20), st.sampled_from([0x60, 0x70])), max_size=30))
def test_every_byte_taken_is_read_once_and_in_order(steps: list[bytes | int]) -> None:
    console = Console(backlog=24)
    given_in, read_out = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            given_in += step[: console.uart.receive(step)]
        elif step in (0x60, 0x70):
            console.uart.write(LCR_H, 4, step)
        else:
            for _ in range(step):
                if not console.uart.read(FR, 4) & RXFE:
                    read_out.append(console.uart.read(DR, 4))
    assert bytes(read_out) + console.drain() == bytes(given_in)


def test_listening_says_whether_input_would_interrupt() -> None:
    uart = Pl011(lambda data: None)
    assert not uart.listening
    uart.write(0x38, 4, 1 << 6)
    assert uart.listening
    uart.write(0x38, 4, 1 << 5)
    assert not uart.listening

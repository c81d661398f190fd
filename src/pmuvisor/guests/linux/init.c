/*
 * init: the only program of pmuvisor's Linux guest. It runs as PID 1, has perf_event_open count, sample and multiplex
 * loops whose length it knows, prints what came back beside what should have, and powers off.
 *
 * No libc, so that it is small and that what it counts is its own: between "start" and "stop" a thread executes nothing
 * but the few instructions of counted_loop(). It fails soft: what the kernel lacks is printed with its errno.
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

#define LOOP_INSTRUCTIONS 2000000UL     /* of counted_loop(1000000) */
/* counted_loop() outside its loop, from ENABLE's return to DISABLE's svc inclusive: one before, three after. */
#define LOOP_EDGES 4UL
#define SAMPLE_PERIOD 100000UL
#define SAMPLES_EXPECTED (LOOP_INSTRUCTIONS / SAMPLE_PERIOD)
#define SYSTEM_CALLS 1000
#define MULTIPLEXED_EVENTS 16
#define MULTIPLEXED_ITERATIONS 30000000UL       /* 60 ms at 1 ns an instruction: 15 ticks of 4 ms to rotate at */

/* ---- System calls ---- */
static s64 system_call(s64 number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    register u64 x8 asm("x8") = number;
    register u64 x0 asm("x0") = a;
    register u64 x1 asm("x1") = b;
    register u64 x2 asm("x2") = c;
    register u64 x3 asm("x3") = d;
    register u64 x4 asm("x4") = e;
    register u64 x5 asm("x5") = f;
    asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
    return x0;
}

#define SYS6(n, a, b, c, d, e, f) \
    system_call(__NR_##n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e), (u64)(f))
#define SYS5(n, a, b, c, d, e) SYS6(n, a, b, c, d, e, 0)
#define SYS4(n, a, b, c, d) SYS6(n, a, b, c, d, 0, 0)
#define SYS3(n, a, b, c) SYS6(n, a, b, c, 0, 0, 0)
#define SYS2(n, a, b) SYS6(n, a, b, 0, 0, 0, 0)
#define SYS1(n, a) SYS6(n, a, 0, 0, 0, 0, 0)
#define SYS0(n) SYS6(n, 0, 0, 0, 0, 0, 0)

/* The compiler may ask for these two by name (and is told not to see them in these loops). */
void *memset(void *to, int byte, u64 length)
{
    for (u8 *p = to; length--; p++)
        *p = byte;
    return to;
}

void *memcpy(void *to, const void *from, u64 length)
{
    u8 *p = to;

    for (const u8 *q = from; length--;)
        *p++ = *q++;
    return to;
}

/* ---- Text ---- */
static int starts_with(const char *s, const char *prefix)
{
    while (*prefix)
        if (*s++ != *prefix++)
            return 0;
    return 1;
}

static const char *find(const char *s, const char *part)
{
    for (; *s; s++)
        if (starts_with(s, part))
            return s;
    return 0;
}

/* Output collects in one line, so that the kernel's own messages do not cut it in two. */
static char line[512];
static u32 line_length;

static void flush(void)
{
    SYS3(write, 1, line, line_length);
    line_length = 0;
}

static void put_char(char c)
{
    line[line_length++] = c;
    if (c == '\n' || line_length == sizeof(line))
        flush();
}

static void put(const char *s)
{
    while (*s)
        put_char(*s++);
}

static void put_number(u64 value)
{
    char digits[21];
    u32 n = sizeof(digits) - 1;

    digits[n] = 0;
    do {
        digits[--n] = '0' + value % 10;
        value /= 10;
    } while (value);
    put(digits + n);
}

static void put_hex(u64 value)
{
    int shift = 60;

    while (shift && !(value >> shift))
        shift -= 4;
    put("0x");
    for (; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[(value >> shift) & 15]);
}

static void put_difference(u64 is, u64 expected)
{
    put(is < expected ? "-" : "+");
    put_number(is < expected ? expected - is : is - expected);
}

/* "init: <what>: errno N": what failed is said, and the rest goes on. */
static void complain(const char *what, s64 result)
{
    put("init: ");
    put(what);
    put(": errno ");
    put_number(-result);
    put("\n");
}

static u64 read_file(const char *path, char *buffer, u64 size)
{
    s64 file = SYS4(openat, AT_FDCWD, path, O_RDONLY, 0);
    u64 length = 0;

    if (file < 0) {
        complain(path, file);
    } else {
        s64 n;
        /* /proc gives a piece at a time. */
        while (length < size - 1 && (n = SYS3(read, file, buffer + length, size - 1 - length)) > 0)
            length += n;
        SYS1(close, file);
    }
    buffer[length] = 0;
    return length;
}

/* ---- Events ---- */
/*
 * The first version of struct perf_event_attr, which every kernel takes: the header's own grows from version to
 * version, and this program's bytes with it.
 */
struct event {
    u32 type, size;
    u64 config, period, sample_type, read_format, flags;
    u32 wakeup_events, breakpoint_type;
    u64 config1;
};
_Static_assert(sizeof(struct event) == PERF_ATTR_SIZE_VER0, "the kernel's first layout");

#define DISABLED        (1UL << 0)
#define EXCLUDE_USER    (1UL << 4)
#define EXCLUDE_KERNEL  (1UL << 5)
#define EXCLUDE_HV      (1UL << 6)
#define USER_ONLY       (EXCLUDE_KERNEL | EXCLUDE_HV)
#define KERNEL_ONLY     (EXCLUDE_USER | EXCLUDE_HV)

/* An event of this thread, on whatever CPU it runs. */
static s64 open_event(u64 config, u64 flags, u64 period, u64 read_format)
{
    struct event event = {
        .type = PERF_TYPE_HARDWARE,
        .size = sizeof(event),
        .config = config,
        .flags = DISABLED | flags,
        .period = period,
        .sample_type = period ? PERF_SAMPLE_IP : 0,
        .read_format = read_format,
    };
    s64 file = SYS5(perf_event_open, &event, 0, -1, -1, 0);

    if (file < 0)
        complain("perf_event_open", file);
    return file;
}

static u64 read_count(s64 file)
{
    u64 count = 0;
    s64 result = SYS3(read, file, &count, sizeof(count));

    if (result < 0)
        complain("read of an event", result);
    return count;
}

/*
 * Enables the event, runs 2 * iterations instructions, disables it, in one piece of assembly, so that the count is
 * known by hand: after ENABLE returns to EL0 there are 1 nop, the loop, 2 movs and the svc of DISABLE.
 *
 * The nop is for sampling: with it, the 100,000th, 200,000th, ... instruction counted is always the subs of an
 * iteration. An interrupt is taken before the next instruction: every sample has its address at counted_loop_start + 4.
 * Without the nop the last sample would fall behind the loop, on its very last instruction.
 */
static void __attribute__((noinline)) counted_loop(s64 file, u64 iterations)
{
    register u64 x8 asm("x8") = __NR_ioctl;
    register u64 x0 asm("x0") = file;
    register u64 x1 asm("x1") = PERF_EVENT_IOC_ENABLE;
    register u64 x2 asm("x2") = 0;
    register u64 x3 asm("x3") = file;
    register u64 x4 asm("x4") = PERF_EVENT_IOC_DISABLE;

    asm volatile("svc #0\n\t"
                 "nop\n"
                 "counted_loop_start:\n\t"
                 "subs %[n], %[n], #1\n\t"
                 "b.ne counted_loop_start\n\t"
                 "mov x0, x3\n\t"
                 "mov x1, x4\n\t"
                 "svc #0"
                 : "+r"(x0), "+r"(x1), [n] "+r"(iterations)
                 : "r"(x8), "r"(x2), "r"(x3), "r"(x4)
                 : "memory", "cc");
}

extern const char counted_loop_start[];

static void count_instructions(void)
{
    s64 file = open_event(PERF_COUNT_HW_INSTRUCTIONS, USER_ONLY, 0, 0);
    u64 first = 0, same = 1;

    if (file < 0)
        return;
    for (u32 round = 0; round < 3; round++) {
        SYS3(ioctl, file, PERF_EVENT_IOC_RESET, 0);
        counted_loop(file, LOOP_INSTRUCTIONS / 2);
        u64 count = read_count(file);
        put("init:   round ");
        put_number(round + 1);
        put(": instructions ");
        put_number(count);
        put(" expected ");
        put_number(LOOP_INSTRUCTIONS + LOOP_EDGES);
        if (count == LOOP_INSTRUCTIONS + LOOP_EDGES) {
            put(" exact\n");
        } else {
            put(" difference ");
            put_difference(count, LOOP_INSTRUCTIONS + LOOP_EDGES);
            put("\n");
        }
        if (!round)
            first = count;
        same &= count == first;
    }
    put(same ? "init:   same in every round\n" : "init:   not the same in every round\n");
    SYS1(close, file);
}

/* For information: there is no number to expect. */
static void count_cycles_and_kernel(void)
{
    s64 file = open_event(PERF_COUNT_HW_CPU_CYCLES, USER_ONLY, 0, 0);

    if (file >= 0) {
        counted_loop(file, LOOP_INSTRUCTIONS / 2);
        put("init:   cycles of the same loop ");
        put_number(read_count(file));
        put("\n");
        SYS1(close, file);
    }
    file = open_event(PERF_COUNT_HW_INSTRUCTIONS, KERNEL_ONLY, 0, 0);
    if (file >= 0) {
        SYS3(ioctl, file, PERF_EVENT_IOC_ENABLE, 0);
        for (u32 i = 0; i < SYSTEM_CALLS; i++)
            SYS0(getppid);
        SYS3(ioctl, file, PERF_EVENT_IOC_DISABLE, 0);
        put("init:   kernel instructions of 1000 system calls ");
        put_number(read_count(file));
        put("\n");
        SYS1(close, file);
    }
}

/* ---- Sampling ---- */
/* 17 small pages are the one control page and 2^n data pages in each of Linux's page sizes: 1+16, 1+4 and 1+1. */
#define RING_BYTES (17 * 4096)
#define PLACES 8

struct samples {
    u64 total, lost, places;
    u64 address[PLACES], times[PLACES];
};

static void add_sample(struct samples *samples, u64 address)
{
    u64 i = 0;

    samples->total++;
    while (i < samples->places && samples->address[i] != address)
        i++;
    if (i == PLACES)
        return;
    samples->address[i] = address;
    samples->times[i]++;
    if (i == samples->places)
        samples->places++;
}

/* The event is disabled and the ring far larger than its records: nothing is being written, nothing has wrapped. */
static void parse_ring(const struct perf_event_mmap_page *ring, struct samples *samples)
{
    const u8 *data = (const u8 *)ring + ring->data_offset;
    u64 at = 0;

    while (at < ring->data_head) {
        const struct perf_event_header *record = (const void *)(data + at);
        if (!record->size)
            return;
        if (record->type == PERF_RECORD_SAMPLE)
            add_sample(samples, *(const u64 *)(record + 1));
        else if (record->type == PERF_RECORD_LOST)
            samples->lost += ((const u64 *)(record + 1))[1];
        at += record->size;
    }
}

static void report_samples(const struct samples *samples)
{
    put("init:   samples ");
    put_number(samples->total);
    put(" expected ");
    put_number(SAMPLES_EXPECTED);
    put(", lost ");
    put_number(samples->lost);
    put(", distinct addresses ");
    put_number(samples->places);
    put("\n");
    for (u64 i = 0; i < samples->places; i++) {
        u64 offset = samples->address[i] - (u64)counted_loop_start;
        put("init:     ");
        put_number(samples->times[i]);
        put(" at ");
        put(offset < 8 ? "loop+" : "");
        put_hex(offset < 8 ? offset : samples->address[i]);
        put("\n");
    }
    if (samples->total == SAMPLES_EXPECTED && samples->places == 1 &&
        samples->address[0] == (u64)counted_loop_start + 4)
        put("init:   every sample on its instruction\n");
    else
        put("init:   samples are not on their instruction\n");
}

static void sample_instructions(void)
{
    struct samples samples;
    s64 file = open_event(PERF_COUNT_HW_INSTRUCTIONS, USER_ONLY, SAMPLE_PERIOD, 0);

    if (file < 0)
        return;
    s64 ring = SYS6(mmap, 0, RING_BYTES, 3 /* read, write */, 1 /* shared */, file, 0);
    if (ring < 0 && ring > -4096) {
        complain("mmap of the sample ring", ring);
    } else {
        memset(&samples, 0, sizeof(samples));
        counted_loop(file, LOOP_INSTRUCTIONS / 2);
        parse_ring((const void *)ring, &samples);
        report_samples(&samples);
        SYS2(munmap, ring, RING_BYTES);
    }
    SYS1(close, file);
}

/* ---- Multiplexing ---- */
struct reading {
    u64 count, enabled, running;
};

/* Returns whether the event shared its counter. */
static int report_multiplexed(u32 index, s64 file, int print)
{
    struct reading r = {0, 0, 0};
    s64 result = SYS3(read, file, &r, sizeof(r));

    if (result < 0)
        complain("read of a multiplexed event", result);
    if (!print)
        return r.running < r.enabled;
    put("init:   event ");
    put_number(index);
    put(": count ");
    put_number(r.count);
    put(" enabled ");
    put_number(r.enabled);
    put(" ns running ");
    put_number(r.running);
    put(" ns");
    if (r.running) {
        /* count * enabled / running in 64 bits: 60 million * 60 million is well within them */
        u64 estimate = r.count * r.enabled / r.running;
        put(" scaled ");
        put_number(estimate);
        put(" true ");
        put_number(2 * MULTIPLEXED_ITERATIONS);
        put(" error ");
        put_difference(estimate, 2 * MULTIPLEXED_ITERATIONS);
    }
    put("\n");
    return r.running < r.enabled;
}

/* More events than counters, each its own leader: the kernel takes turns with them at its tick. */
static void multiplex(void)
{
    s64 files[MULTIPLEXED_EVENTS];
    u32 opened = 0, shared = 0;

    while (opened < MULTIPLEXED_EVENTS) {
        files[opened] = open_event(PERF_COUNT_HW_INSTRUCTIONS, USER_ONLY, 0,
                                   PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING);
        if (files[opened] < 0)
            break;
        opened++;
    }
    put("init: multiplexing ");
    put_number(opened);
    put(" events over a loop of ");
    put_number(2 * MULTIPLEXED_ITERATIONS);
    put(" instructions\n");
    SYS1(prctl, 32 /* PR_TASK_PERF_EVENTS_ENABLE */);
    u64 n = MULTIPLEXED_ITERATIONS;
    asm volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(n) : : "cc");
    SYS1(prctl, 31 /* PR_TASK_PERF_EVENTS_DISABLE */);
    for (u32 i = 0; i < opened; i++) {
        shared += report_multiplexed(i, files[i], i % 5 == 0);
        SYS1(close, files[i]);
    }
    put(shared ? "init:   multiplexed: " : "init:   not multiplexed: ");
    put_number(shared);
    put(" events did not run all the time\n");
}

/* ---- The machine ---- */
static char text[65536];

static void describe_kernel(void)
{
    char name[6][65];
    s64 result = SYS1(uname, name);

    if (result < 0) {
        complain("uname", result);
    } else {
        put("init: kernel release ");
        put(name[2]);
        put("\n");
    }
}

/* The devices that perf knows, one entry after the other. */
static void describe_pmu(void)
{
    const char *path = "/sys/bus/event_source/devices";
    s64 directory = SYS4(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    s64 length;
    u32 found = 0;

    if (directory < 0) {
        complain(path, directory);
        return;
    }
    while ((length = SYS3(getdents64, directory, text, sizeof(text))) > 0)
        /* a linux_dirent64: inode and offset of 8 bytes, 2 bytes of record length, 1 of type, the name */
        for (s64 at = 0; at < length; at += *(const unsigned short *)(text + at + 16)) {
            const char *name = text + at + 19;
            if (!starts_with(name, "armv8_"))
                continue;
            put("init: PMU ");
            put(name);
            put("\n");
            found++;
        }
    SYS1(close, directory);
    if (!found)
        put("init: no PMU below /sys/bus/event_source/devices\n");
}

static int run_on(u64 cpu)
{
    u64 mask[16];

    memset(mask, 0, sizeof(mask));
    mask[cpu / 64] = 1UL << cpu % 64;
    return SYS3(sched_setaffinity, 0, sizeof(mask), mask) >= 0;
}

static void test_every_cpu(void)
{
    u64 allowed[16];
    u64 cpus = 0;

    memset(allowed, 0, sizeof(allowed));
    s64 result = SYS3(sched_getaffinity, 0, sizeof(allowed), allowed);
    if (result < 0)
        complain("sched_getaffinity", result);
    for (u64 cpu = 0; cpu < 1024; cpu++)
        cpus += allowed[cpu / 64] >> cpu % 64 & 1;
    put("init: CPUs online ");
    put_number(cpus);
    put("\n");
    for (u64 cpu = 0; cpu < 1024; cpu++) {
        if (!(allowed[cpu / 64] >> cpu % 64 & 1) || !run_on(cpu))
            continue;
        put("init: cpu ");
        put_number(cpu);
        put(": counting a loop of 2000000 instructions at EL0\n");
        count_instructions();
        count_cycles_and_kernel();
        put("init: cpu ");
        put_number(cpu);
        put(": sampling it every 100000 instructions\n");
        sample_instructions();
    }
    SYS3(sched_setaffinity, 0, sizeof(allowed), allowed);
}

static void report_interrupts(void)
{
    u32 found = 0;

    read_file("/proc/interrupts", text, sizeof(text));
    for (char *start = text; *start;) {
        char *end = start;
        while (*end && *end != '\n')
            end++;
        char last = *end;
        *end = 0;
        if (find(start, "arm-pmu")) {
            put("init: interrupts ");
            put(start);
            put("\n");
            found++;
        }
        start = last ? end + 1 : end;
    }
    if (!found)
        put("init: interrupts: no line with arm-pmu\n");
}

static void mount(const char *type, const char *path)
{
    SYS3(mkdirat, AT_FDCWD, path, 0755);
    s64 result = SYS5(mount, type, path, type, 0, 0);

    /* the kernel may have mounted /dev itself */
    if (result < 0 && result != -EBUSY)
        complain(path, result);
}

static void open_console(void)
{
    s64 console = SYS4(openat, AT_FDCWD, "/dev/console", O_RDWR, 0);

    /* Without one there is nobody to tell. */
    for (u32 i = 0; i < 3 && console >= 0; i++)
        if (console != i)
            SYS3(dup3, console, i, 0);
}

static void __attribute__((noreturn)) leave(int failed)
{
    if (failed)
        SYS1(exit, 1);          /* for PID 1 that is a kernel panic */
    put("init: power off\n");
    SYS0(sync);
    complain("power off", SYS4(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0));
    for (;;)
        SYS1(exit, 1);
}

void __attribute__((noreturn)) _start(void)
{
    static char words[4096];

    mount("devtmpfs", "/dev");
    open_console();
    mount("proc", "/proc");
    mount("sysfs", "/sys");
    put("init: pmuvisor's Linux guest\n");
    read_file("/proc/cmdline", words, sizeof(words));
    describe_kernel();
    describe_pmu();
    test_every_cpu();
    if (find(words, "pmuvisor.quick"))
        put("init: multiplexing skipped: pmuvisor.quick\n");
    else
        multiplex();
    report_interrupts();
    leave(find(words, "pmuvisor.panic") != 0);
}

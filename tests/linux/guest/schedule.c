/*
 * init of the guest of test_against_linux.py: has the kernel do the scenarios of /scenarios with perf_event_open, and
 * prints what each event says in the end. The lines, all numbers decimal:
 *
 *   s                                        a scenario begins: nothing is open
 *   o config flags leader cpu config1        opens the next event (raw); leader is an event's number or -1; cpu -1 is
 *                                            this task on every CPU, else all of that CPU
 *   e event, d event, c event                enables, disables, closes it
 *   r us, z us                               runs, sleeps for so many microseconds
 *   p                                        reads every event and closes it; the scenario is over
 *
 * Of each scenario it prints "scenario", and of each event "event <errno of the open> <what read returned> <count>
 * <enabled> <running>", or "closed". One in which the kernel kept the CPU for itself for a while is done again.
 *
 * Times are on a grid: a scenario begins START_NS after a multiple of the multiplexing interval, on which the kernel's
 * timer rotates, and each "r" and "z" ends when the sum of the times before it is over.
 */
#define _start init_that_counts         /* the rest of the guest's init is what a test needs as well */
#include "init.c"
#undef _start

#define EVENTS 32
#define START_NS 500000UL
#define IDLE_INTERVALS 4
#define LATE_NS 300000UL                /* the longest that one system call of a scenario takes, and more */
#define TRIES 20

enum { UNUSED, OPEN, FAILED, CLOSED };

#define NO_FILE (-2L)                   /* as a group's leader, none that can be: -1 is none wanted */

static struct {
    s64 file, error;
    int state;
    s64 got;
    struct reading reading;
} events[EVENTS];
static u32 opened;
static u64 interval_ns, now_ns;         /* now_ns: when the step is over */
static u64 seen_ns;                     /* when the clock was looked at last */
static int late;                        /* The kernel kept the CPU for itself meanwhile. */

static u64 monotonic_ns(void)
{
    u64 time[2];

    SYS2(clock_gettime, 1 /* CLOCK_MONOTONIC */, time);
    return time[0] * 1000000000UL + time[1];
}

static u64 look_at_clock(void)
{
    u64 ns = monotonic_ns();

    late |= ns > seen_ns + LATE_NS;
    seen_ns = ns;
    return ns;
}

static void run_until(u64 ns)
{
    while (look_at_clock() < ns)
        for (u32 i = 0; i < 500; i++)
            asm volatile("nop");
}

static void sleep_until(u64 ns)
{
    u64 time[2] = {ns / 1000000000UL, ns % 1000000000UL};

    SYS4(clock_nanosleep, 1 /* CLOCK_MONOTONIC */, 1 /* absolute */, time, 0);
    seen_ns = ns;
    look_at_clock();
}

static s64 number(const char **at)
{
    u64 value = 0;
    int negative;

    while (**at == ' ')
        (*at)++;
    negative = **at == '-';
    for (*at += negative; **at >= '0' && **at <= '9'; (*at)++)
        value = value * 10 + **at - '0';
    return negative ? -(s64)value : (s64)value;
}

static void begin(void)
{
    memset(events, 0, sizeof(events));
    opened = 0;
    /* Asleep first, so that what the kernel has put off is not done in the scenario. */
    now_ns = (monotonic_ns() / interval_ns + IDLE_INTERVALS) * interval_ns;
    late = 0;
    sleep_until(now_ns - interval_ns);
    run_until(now_ns += START_NS);
}

static void open_next(const char **at)
{
    u64 config = number(at), flags = number(at);
    s64 leader = number(at), cpu = number(at);
    struct event event = {
        .type = PERF_TYPE_RAW,
        .size = sizeof(event),
        .config = config,
        .flags = flags,
        .read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING,
        .config1 = number(at),
    };
    s64 group = leader < 0 ? -1 : events[leader].file;

    s64 file = SYS5(perf_event_open, &event, cpu < 0 ? 0 : -1, cpu, group, 0);
    events[opened].file = file < 0 ? NO_FILE : file;
    events[opened].error = file < 0 ? -file : 0;
    events[opened].state = file < 0 ? FAILED : OPEN;
    opened++;
}

static void on_event(char what, u64 i)
{
    if (events[i].state != OPEN)
        return;
    if (what == 'e')
        SYS3(ioctl, events[i].file, PERF_EVENT_IOC_ENABLE, 0);
    if (what == 'd')
        SYS3(ioctl, events[i].file, PERF_EVENT_IOC_DISABLE, 0);
    if (what == 'c') {
        SYS1(close, events[i].file);
        events[i].file = NO_FILE;
        events[i].state = CLOSED;
    }
}

static void read_and_close(void)
{
    for (u32 i = 0; i < opened; i++)
        if (events[i].state == OPEN)
            events[i].got = SYS3(read, events[i].file, &events[i].reading, sizeof(struct reading));
    look_at_clock();
    for (u32 i = 0; i < opened; i++)
        if (events[i].state == OPEN)
            SYS1(close, events[i].file);
}

static void report(void)
{
    put("scenario\n");
    for (u32 i = 0; i < opened; i++) {
        if (events[i].state == CLOSED) {
            put("closed\n");
            continue;
        }
        u64 values[5] = {events[i].error, events[i].got, events[i].reading.count, events[i].reading.enabled,
                         events[i].reading.running};
        put("event");
        for (u32 v = 0; v < 5; v++) {
            put(" ");
            put_number(values[v]);
        }
        put("\n");
    }
}

static void do_line(const char *at)
{
    char what = *at++;

    if (what == 's')
        begin();
    else if (what == 'o')
        open_next(&at);
    else if (what == 'p')
        read_and_close();
    else if (what == 'r')
        run_until(now_ns += 1000 * number(&at));
    else if (what == 'z')
        sleep_until(now_ns += 1000 * number(&at));
    else
        on_event(what, number(&at));
    look_at_clock();
}

/* Does the lines up to a "p"; returns what follows. */
static const char *do_scenario(const char *at)
{
    char what;

    do {
        what = *at;
        do_line(at);
        while (*at++ != '\n')
            ;
    } while (what != 'p');
    return at;
}

/*
 * Before all of the kernel's threads that would take turns with it: what a context switch does to the events of a task
 * is for the scenarios to say.
 */
static void be_first(void)
{
    u32 priority = 50;
    s64 result = SYS3(sched_setscheduler, 0, 1 /* SCHED_FIFO */, &priority);

    if (result < 0)
        complain("sched_setscheduler", result);
}

static u64 mux_interval_ms(void)
{
    static char text[32];
    const char *at = text;

    read_file("/sys/bus/event_source/devices/armv8_pmuv3/perf_event_mux_interval_ms", text, sizeof(text));
    if (!*text)         /* the name since Linux 6.2 */
        read_file("/sys/bus/event_source/devices/armv8_pmuv3_0/perf_event_mux_interval_ms", text, sizeof(text));
    return number(&at);
}

void __attribute__((noreturn)) _start(void)
{
    static char scenarios[1 << 18];
    u64 interval_ms;

    mount("devtmpfs", "/dev");
    open_console();
    mount("sysfs", "/sys");
    read_file("/scenarios", scenarios, sizeof(scenarios));
    interval_ms = mux_interval_ms();
    interval_ns = 1000000 * interval_ms;
    be_first();
    describe_kernel();
    put("interval ");
    put_number(interval_ms);
    put("\n");
    for (const char *at = scenarios, *next; *at && interval_ns; at = next) {
        u32 tries = 0;
        do
            next = do_scenario(at);
        while (late && ++tries < TRIES);
        report();
    }
    leave(0);
}

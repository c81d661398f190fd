/*
 * session: runs the command of pmuvisor's Linux guest in a session of its own, waits for it, and ends as it did: with its
 * exit status, or 128 + n where signal n ended it.
 *
 *     session PROGRAM         a person is at the terminal: the program has it
 *     session -n PROGRAM      nobody is: the program has a socket, and this program copies between that and the terminal
 *
 * Standard input and output are the terminal, which becomes the session's own: by it come Ctrl-C and job control. This
 * program leads the session, not the command: when a leader ends its terminal is hung up, with what is still to be sent.
 *
 * A socket, since a terminal has programs draw screens, colour and wait for keys, and into a pipe perf record writes its
 * samples, and perf report reads them from one. It also is at its end for all who read it once it is. Output is copied
 * up to where the program ends: what that leaves behind cannot keep the guest from ending. No libc, so that it is small.
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/signal.h>

typedef unsigned long u64;
typedef long s64;

#define AF_UNIX 1
#define SOCK_STREAM 1
#define TCSBRK 0x5409
#define TIOCSCTTY 0x540E
#define TIOCSPGRP 0x5410
#define MSG_DONTWAIT 0x40
#define MSG_NOSIGNAL 0x4000
#define SHUT_WR 1
#define WNOHANG 1
#define FAILED 125      /* what env and timeout end with where they themselves fail */

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

#define SYS(n, a, b, c, d) system_call(__NR_##n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), 0, 0)

static void __attribute__((noreturn)) leave(int status)
{
    for (;;)
        SYS(exit_group, status, 0, 0, 0);
}

/* What failed goes to the terminal, and so into the command's output: there is nowhere else to say it. */
static s64 must(s64 result, const char *what)
{
    u64 length = 0;

    if (result >= 0)
        return result;
    while (what[length])
        length++;
    SYS(write, 2, "session: cannot ", 16, 0);
    SYS(write, 2, what, length, 0);
    SYS(write, 2, "\n", 1, 0);
    leave(FAILED);
}

/* ---- The command ---- */
/* `with` is the socket, or 0 for the terminal, which is there as 0, 1 and 2. */
static void __attribute__((noreturn)) become(char **program, char **environment, int with, u64 signals)
{
    int group = SYS(getpid, 0, 0, 0, 0);

    must(SYS(setpgid, 0, 0, 0, 0), "make a process group");
    if (!with)
        must(SYS(ioctl, 0, TIOCSPGRP, &group, 0), "come to the foreground");
    must(SYS(rt_sigprocmask, SIG_SETMASK, &signals, 0, sizeof(signals)), "restore the signals");
    for (int file = 0; with && file < 3; file++)
        must(SYS(dup3, with, file, 0, 0), "set up input and output");
    must(SYS(execve, program[0], program, environment, 0), "execute the command");
    leave(FAILED);
}

static char output[65536], input[4096];
static s64 input_from, input_to;        /* of `input`, what the command has not been given yet */

/* Copy to the terminal what there is. */
static void copy_output(int with)
{
    s64 length;

    while ((length = system_call(__NR_recvfrom, with, (u64)output, sizeof(output), MSG_DONTWAIT, 0, 0)) > 0)
        for (s64 done = 0; done < length;)
            done += must(SYS(write, 1, output + done, length - done, 0), "write to the terminal");
}

/* Copy from the terminal as much as the command has room for; returns whether that was the end. */
static int copy_input(int with)
{
    if (input_from == input_to) {
        input_from = 0;
        input_to = SYS(read, 0, input, sizeof(input), 0);
        if (input_to <= 0) {
            input_to = 0;
            SYS(shutdown, with, SHUT_WR, 0, 0);
            return 1;
        }
    }
    s64 sent = system_call(__NR_sendto, with, (u64)(input + input_from), input_to - input_from,
                           MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
    if (sent > 0)
        input_from += sent;
    else if (sent != -EAGAIN)
        input_from = input_to;          /* nobody will ever read it */
    return 0;
}

/* Whether the child has ended; children of children, which nobody else waits for, are of no interest. */
static int ended(s64 child, int *status, int options)
{
    return SYS(wait4, child, status, options, 0) == child;
}

static void relay(s64 child, int with, u64 signals, int *status)
{
    s64 told = must(SYS(signalfd4, -1, &signals, sizeof(signals), O_CLOEXEC), "wait for signals");
    struct pollfd watched[3] = {{.fd = with}, {.fd = told, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    char information[128];      /* a signalfd_siginfo */
    int over = 0;

    while (!ended(child, status, WNOHANG)) {
        int held = input_from < input_to;
        watched[0].events = held ? POLLIN | POLLOUT : POLLIN;
        watched[2].fd = held || over ? -1 : 0;
        SYS(ppoll, watched, 3, 0, 0);
        copy_output(with);
        if (watched[2].fd == 0 ? watched[2].revents : watched[0].revents & POLLOUT)
            over |= copy_input(with);
        if (watched[1].revents)
            SYS(read, told, information, sizeof(information), 0);
    }
    copy_output(with);
}

void __attribute__((noreturn, used)) run(u64 *stack)
{
    char **arguments = (char **)stack + 1, **environment = arguments + stack[0] + 1;
    u64 child_ends = 1UL << (SIGCHLD - 1), held = child_ends | 1UL << (SIGTTOU - 1), before;
    int ends[2] = {0, 0}, status = 0;
    int alone = stack[0] > 2 && arguments[1][0] == '-';

    if (stack[0] < 2)
        leave(FAILED);
    if (alone)
        must(SYS(socketpair, AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0, ends), "make a socket");
    must(SYS(setsid, 0, 0, 0, 0), "make a session");
    must(SYS(ioctl, 0, TIOCSCTTY, 1, 0), "make the terminal the session's");
    /* SIGTTOU is for those in the background that use the terminal, as both do here. */
    must(SYS(rt_sigprocmask, SIG_BLOCK, &held, &before, sizeof(before)), "hold back signals");
    s64 child = must(SYS(clone, SIGCHLD, 0, 0, 0), "fork");
    if (!child)
        become(arguments + 1 + alone, environment, ends[1], before);
    if (alone)
        relay(child, ends[0], child_ends, &status);
    else
        while (!ended(child, &status, 0))
            ;
    SYS(ioctl, 1, TCSBRK, 1, 0);        /* wait until all has been sent */
    leave(status & 0x7F ? 128 + (status & 0x7F) : status >> 8 & 0xFF);
}

/* The kernel leaves the arguments on the stack, where the ABI has a function look for nothing. */
asm(".globl _start\n_start:\n\tmov x0, sp\n\tb run");

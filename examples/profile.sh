# What a person with a question does: count, then sample. For a Linux guest, as in
#
#   pmuvisor compare linux --mhz 3000 --append norandmaps --add examples/profile.sh -- sh profile.sh
#
# norandmaps: where a program's stack is decides how its string functions begin, by a few instructions.

perf stat -e instructions:u,branches:u gzip -c /usr/bin/busybox >/dev/null

# Loads, stores and memory accesses besides, 4000 samples of each in a second.
perf record -q --no-bpf-event -F 4000 -e cycles,instructions,branches,r06,r07,r13 -o /tmp/perf.data \
    gzip -c /usr/bin/busybox >/dev/null

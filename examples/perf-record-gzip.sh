# perf record of fifteen hardware events over gzip of random data, as the case that was published for the partitioned
# design (docs/comparison.md). The argument is the size of the data in MiB.
#
#   pmuvisor compare linux --host-counters 16 --counters 10 --add examples/perf-record-gzip.sh \
#       -- sh perf-record-gzip.sh 4

events=cycles,instructions,branches,bus-cycles,stalled-cycles-frontend,stalled-cycles-backend
# LD_RETIRED, ST_RETIRED, EXC_TAKEN, EXC_RETURN, PC_WRITE_RETIRED, BR_IMMED_RETIRED, BR_RETURN_RETIRED, MEM_ACCESS, INST_SPEC
events=$events,r06,r07,r09,r0a,r0c,r0d,r0e,r13,r1b

dd if=/dev/urandom of=/tmp/random bs=1M count="${1:-4}" 2>/dev/null
# Without --no-bpf-event perf waits at its end for a thread that looks up once a second.
time perf record -q --no-bpf-event -F 1000 -e "$events" -o /tmp/perf.data gzip -c /tmp/random >/dev/null

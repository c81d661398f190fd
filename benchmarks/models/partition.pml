/*
 * The twin of partition.py: the same variables, one d_step for each action, in the same order; so the same states.
 * Build it with -DTICKS=n -DACCESSES=n. Scratch variables are hidden, which makes them no part of a state; Spin's
 * breadth-first search has none hidden (-DSEEN), and then they are 0 in every state.
 */
#ifdef SEEN
#define SCRATCH
#define FORGET i = 0; e = 0; v = 0; x = 0; at = 0; theirs = 0; value = 0; found = 0
#else
#define SCRATCH hidden
#define FORGET skip	/* a d_step does not end in a loop */
#endif
#define CPUS 2
#define VCPUS 2
#define EVENTS 2
#define COUNTERS 3
#define GUESTS 3	/* binary 011 */
#define TOP 7
#define NEAR 6
#define FREE 0
#define OWNED 1

typedef Cpu { byte cnten; byte ovs; byte reserved; byte vcpu; byte counter[COUNTERS]; byte event[COUNTERS] };
typedef Vcpu {
	byte residency; byte cpu; byte cnten; byte ovs; byte pending; byte counter[COUNTERS] = NEAR;
	byte ought[COUNTERS] = NEAR; byte ought_ovs
};
typedef Event { byte cpu; byte counter; byte count; byte ought };

byte ticks = TICKS;
byte accesses = ACCESSES;
Cpu cpus[CPUS];
Vcpu vcpus[VCPUS];
Event events[EVENTS];

SCRATCH byte i, e, v, x, at, theirs, value, found;

/* ---- the hardware ---- */

inline tick(c) {
	ticks--;
	i = 0;
	do
	:: i < COUNTERS -> if :: (cpus[c].cnten >> i) & 1 -> count_one(c) :: else fi; i++
	:: else -> break
	od
}

inline count_one(c) {
	cpus[c].counter[i] = (cpus[c].counter[i] + 1) & TOP;
	if :: cpus[c].counter[i] == 0 -> cpus[c].ovs = cpus[c].ovs | (1 << i) :: else fi;
	if
	:: cpus[c].event[i] -> x = cpus[c].event[i] - 1; events[x].ought = (events[x].ought + 1) & TOP
	:: cpus[c].event[i] == 0 && cpus[c].vcpu ->
		v = cpus[c].vcpu - 1;
		vcpus[v].ought[i] = (vcpus[v].ought[i] + 1) & TOP;
		if :: vcpus[v].ought[i] == 0 -> vcpus[v].ought_ovs = vcpus[v].ought_ovs | (1 << i) :: else fi
	:: else
	fi
}

/* ---- the host's events ---- */

inline start(c) {
	e = 0;
	do
	:: e < EVENTS -> start_one(c); e++
	:: else -> break
	od
}

inline start_one(c) {
	i = 0;
	do
	:: i < COUNTERS ->
		if
		:: events[e].cpu == c + 1 && events[e].counter == 0 && cpus[c].event[i] == 0 &&
		   ((cpus[c].reserved >> i) & 1) == 0 ->
			events[e].counter = i + 1;
			events[e].count = (events[e].count - NEAR) & TOP;
			cpus[c].event[i] = e + 1;
			cpus[c].counter[i] = NEAR;
			cpus[c].cnten = cpus[c].cnten | (1 << i)
		:: else
		fi;
		i++
	:: else -> break
	od
}

inline stop(c, n) {
	x = cpus[c].event[n] - 1;
	events[x].count = (events[x].count + cpus[c].counter[n]) & TOP;
	events[x].counter = 0;
	cpus[c].event[n] = 0;
	cpus[c].counter[n] = 0;
	cpus[c].cnten = cpus[c].cnten & ~(1 << n);
	cpus[c].ovs = cpus[c].ovs & ~(1 << n)
}

inline reserve(c, mask) {
	i = 0;
	do
	:: i < COUNTERS -> if :: cpus[c].event[i] -> stop(c, i) :: else fi; i++
	:: else -> break
	od;
	cpus[c].reserved = mask;
	start(c)
}

inline close_event(n) {
	at = events[n].cpu - 1;
	if :: events[n].counter -> i = events[n].counter - 1; stop(at, i) :: else fi;
	events[n].cpu = 0;
	events[n].count = 0;
	events[n].ought = 0;
	start(at)
}

inline interrupt(c) {
	theirs = cpus[c].ovs & cpus[c].reserved;
	cpus[c].ovs = 0;
	if
	:: theirs ->
		v = cpus[c].vcpu - 1;
		vcpus[v].ovs = vcpus[v].ovs | theirs;
		vcpus[v].pending = 1
	:: else
	fi
}

/* ---- KVM ---- */

inline take(c) {
	reserve(c, GUESTS);
	v = cpus[c].vcpu - 1;
	i = 0;
	do
	:: i < COUNTERS -> if :: (GUESTS >> i) & 1 -> cpus[c].counter[i] = vcpus[v].counter[i] :: else fi; i++
	:: else -> break
	od;
	cpus[c].cnten = cpus[c].cnten | vcpus[v].cnten
}

inline give_back(c) {
	i = 0;
	do
	:: i < COUNTERS ->
		if
		:: (GUESTS >> i) & 1 -> vcpus[v].counter[i] = cpus[c].counter[i]; cpus[c].counter[i] = 0
		:: else
		fi;
		i++
	:: else -> break
	od;
	vcpus[v].cnten = cpus[c].cnten & GUESTS;
	vcpus[v].ovs = vcpus[v].ovs | (cpus[c].ovs & GUESTS);
	if :: cpus[c].ovs & GUESTS -> vcpus[v].pending = 1 :: else fi;
	if :: vcpus[v].cnten == 0 -> vcpus[v].residency = FREE :: else fi;
	cpus[c].cnten = cpus[c].cnten & ~GUESTS;
	cpus[c].ovs = cpus[c].ovs & ~GUESTS;
	reserve(c, 0)
}

inline load(c, n) {
	cpus[c].vcpu = n + 1;
	vcpus[n].cpu = c + 1;
	if :: vcpus[n].residency == OWNED -> take(c) :: else fi
}

inline put(c) {
	v = cpus[c].vcpu - 1;
	if :: vcpus[v].residency == OWNED -> give_back(c) :: else fi;
	vcpus[v].cpu = 0;
	cpus[c].vcpu = 0
}

/* ---- the guest ---- */

inline access(c) {
	accesses--;
	v = cpus[c].vcpu - 1;
	if :: vcpus[v].residency == FREE -> vcpus[v].residency = OWNED; take(c) :: else fi
}

inline clear(c) {
	cpus[c].ovs = cpus[c].ovs & ~cpus[c].reserved;
	vcpus[v].ovs = 0;
	vcpus[v].ought_ovs = 0;
	vcpus[v].pending = 0
}

inline write(c, n, what) {
	if :: (cpus[c].reserved >> n) & 1 -> cpus[c].counter[n] = what; vcpus[v].ought[n] = what :: else fi
}

inline reset(c) {
	i = 0;
	do
	:: i < COUNTERS -> write(c, i, 0); i++
	:: else -> break
	od
}

/* ---- what must hold ---- */

inline verdict() {
	x = 0;
	do
	:: x < CPUS -> host_kept(x); x++
	:: else -> break
	od;
	x = 0;
	do
	:: x < VCPUS -> guest_kept(x); overflow_kept(x); x++
	:: else -> break
	od;
	FORGET
}

inline host_kept(c) {
	i = 0;
	do
	:: i < COUNTERS ->
		if
		:: cpus[c].event[i] ->
			e = cpus[c].event[i] - 1;
			assert((cpus[c].cnten >> i) & 1);
			assert(((events[e].count + cpus[c].counter[i]) & TOP) == events[e].ought)
		:: else
		fi;
		i++
	:: else -> break
	od
}

inline guest_kept(n) {
	i = 0;
	do
	:: i < COUNTERS ->
		value = vcpus[n].counter[i];
		if
		:: vcpus[n].cpu ->
			at = vcpus[n].cpu - 1;
			if :: (cpus[at].reserved >> i) & 1 -> value = cpus[at].counter[i] :: else fi
		:: else
		fi;
		assert(value == vcpus[n].ought[i]);
		i++
	:: else -> break
	od
}

inline overflow_kept(n) {
	found = vcpus[n].ovs;
	if
	:: vcpus[n].cpu -> at = vcpus[n].cpu - 1; found = found | (cpus[at].ovs & cpus[at].reserved)
	:: else
	fi;
	assert(found == vcpus[n].ought_ovs)
}

/* ---- what may happen ---- */

#define CAN_ACCESS(c) (accesses && cpus[c].vcpu)
#define ENABLE(c, mask) cpus[c].cnten = cpus[c].cnten | ((mask) & cpus[c].reserved)
#define DISABLE(c, mask) cpus[c].cnten = cpus[c].cnten & ~((mask) & cpus[c].reserved)
#define OF_CPU(c) \
	:: d_step { ticks && cpus[c].cnten -> tick(c); verdict() } \
	:: d_step { cpus[c].ovs -> interrupt(c); verdict() } \
	:: d_step { cpus[c].vcpu == 0 && vcpus[0].cpu == 0 -> load(c, 0); verdict() } \
	:: d_step { cpus[c].vcpu == 0 && vcpus[1].cpu == 0 -> load(c, 1); verdict() } \
	:: d_step { cpus[c].vcpu -> put(c); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); ENABLE(c, 1); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); ENABLE(c, 6); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); DISABLE(c, 5); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); DISABLE(c, 7); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); clear(c); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); write(c, 1, NEAR); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); write(c, 2, NEAR); verdict() } \
	:: d_step { CAN_ACCESS(c) -> access(c); reset(c); verdict() } \
	:: d_step { events[0].cpu == 0 -> events[0].cpu = c + 1; start(c); verdict() } \
	:: d_step { events[1].cpu == 0 -> events[1].cpu = c + 1; start(c); verdict() }
#define CLOSE(e) :: d_step { events[e].cpu -> close_event(e); verdict() }

init {
	do
	OF_CPU(0)
	OF_CPU(1)
	CLOSE(0)
	CLOSE(1)
	od
}

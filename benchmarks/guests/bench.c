/*
 * bench: the bare-metal guest that the benchmarks time, here and on QEMU's virt board.
 *
 * What it does is in `params`, which whoever runs it writes into the ELF file behind the magic words: so one small
 * binary serves every figure, and two figures differ in nothing but what they are said to differ in. It runs with the
 * MMU off and uses no vector registers.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define NO_EVENT (~0ul)
#define UART ((volatile u8 *)0x09000000)
#define REG32(address) (*(volatile u32 *)(address))
#define GICD 0x08000000ul
#define GICR 0x080A0000ul
#define GICR_SGI 0x080B0000ul
#define PMU_INTID 23
#define WORDS 4096

enum task { COMPUTE, LOOP, READ_CYCLES, READ_COUNTER, WRITE_COUNTER, WRITE_ENABLE, WRITE_TYPE };

struct params {
	char magic[8];
	u64 task;
	u64 repeats;
	u64 counters; /* how many event counters run */
	u64 event;    /* and what each of them counts */
	u64 period;   /* events between two interrupts of counter 0; 0: no interrupts */
};

__attribute__((section(".params"), used)) volatile struct params params = {
	{ 'P', 'M', 'U', 'B', 'E', 'N', 'C', 'H' }, COMPUTE, 1, 0, NO_EVENT, 0,
};

u64 reload;
volatile u64 samples;
static u32 table[256], words[WORDS], sorted[WORDS];

static void print(const char *text)
{
	while (*text)
		*UART = (u8)*text++;
}

static void print_hex(u64 value)
{
	for (int shift = 28; shift >= 0; shift -= 4)
		*UART = (u8)"0123456789abcdef"[value >> shift & 15];
}

/* Called by an exception that nothing here causes. */
void unexpected(void)
{
	u64 esr;

	__asm__ volatile("mrs %0, esr_el1" : "=r"(esr));
	print("bench: unexpected exception, ESR 0x");
	print_hex(esr);
	print("\n");
}

/* ---- the computation ---- */
static void prepare(void)
{
	u32 seed = 1;

	for (u32 i = 0; i < 256; i++) {
		u32 c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
		table[i] = c;
	}
	for (u32 i = 0; i < WORDS; i++)
		words[i] = seed = seed * 1664525u + 1013904223u;
}

static u32 crc32(u32 crc, const u8 *data, u64 length)
{
	crc = ~crc;
	while (length--)
		crc = table[(crc ^ *data++) & 255] ^ crc >> 8;
	return ~crc;
}

static void quicksort(u32 *low, u32 *high)
{
	while (low < high) {
		u32 pivot = low[(high - low) / 2], *i = low, *j = high;

		while (i <= j) {
			while (*i < pivot)
				i++;
			while (*j > pivot)
				j--;
			if (i <= j) {
				u32 swap = *i;

				*i++ = *j;
				*j-- = swap;
			}
		}
		quicksort(low, j);
		low = i;
	}
}

static u32 compute(u64 repeats)
{
	u32 crc = 0;

	prepare();
	while (repeats--) {
		for (u32 i = 0; i < WORDS; i++)
			sorted[i] = words[i] ^ crc;
		quicksort(sorted, sorted + WORDS - 1);
		crc = crc32(crc, (const u8 *)sorted, sizeof(sorted));
	}
	return crc;
}

/* ---- the PMU ---- */
static void set_type(u64 counter, u64 event)
{
	__asm__ volatile("msr pmselr_el0, %0; isb; msr pmxevtyper_el0, %1; isb" ::"r"(counter), "r"(event));
}

static void gic_init(void)
{
	REG32(GICD) = 0x12;
	REG32(GICR + 0x14) = 0;
	while (REG32(GICR + 0x14) & 4)
		;
	REG32(GICR_SGI + 0x80) = ~0u;
	REG32(GICR_SGI + 0x400 + (PMU_INTID & ~3)) = 0x80808080;
	REG32(GICR_SGI + 0x100) = 1u << PMU_INTID;
	__asm__ volatile("msr s3_0_c12_c12_5, %0; isb; msr s3_0_c4_c6_0, %1; msr s3_0_c12_c12_7, %0; isb"
			 ::"r"(1ul), "r"(0xfful));
}

static void start_counters(void)
{
	u64 mask = (1ul << params.counters) - 1;

	__asm__ volatile("msr pmcr_el0, %0; isb" ::"r"(0x47ul)); /* E, P, C, LC */
	__asm__ volatile("msr pmcntenclr_el0, %0; msr pmintenclr_el1, %0; msr pmovsclr_el0, %0; isb" ::"r"(~0u));
	for (u64 i = 0; i < params.counters; i++)
		set_type(i, params.event);
	if (params.period) {
		gic_init();
		reload = (u32)-params.period;
		__asm__ volatile("msr pmevcntr0_el0, %0; msr pmintenset_el1, %1; msr daifclr, #2; isb"
				 ::"r"(reload), "r"(1ul));
	}
	__asm__ volatile("msr pmcntenset_el0, %0; isb" ::"r"(mask));
}

#define REPEAT(text, ...)                             \
	do                                            \
		__asm__ volatile(text ::__VA_ARGS__); \
	while (--n)

static void access(enum task task, u64 n)
{
	u64 running = (1ul << params.counters) - 1;

	switch (task) {
	case READ_CYCLES:
		REPEAT("mrs x9, pmccntr_el0", "r"(running) : "x9");
		break;
	case READ_COUNTER:
		REPEAT("mrs x9, pmevcntr0_el0", "r"(running) : "x9");
		break;
	case WRITE_COUNTER:
		REPEAT("msr pmevcntr0_el0, xzr", "r"(running));
		break;
	case WRITE_ENABLE:
		REPEAT("msr pmcntenset_el0, %0", "r"(running));
		break;
	case WRITE_TYPE:
		REPEAT("msr pmevtyper0_el0, %0", "r"(params.event & 0xffff));
		break;
	default:
		REPEAT("nop", "r"(running));
	}
}

void guest(void)
{
	u64 repeats = params.repeats;
	u32 result = 0;

	if (params.counters)
		start_counters();
	if (params.task == COMPUTE)
		result = compute(repeats);
	else if (repeats)
		access((enum task)params.task, repeats);
	__asm__ volatile("msr daifset, #2");
	print("bench: result 0x");
	print_hex(result);
	print(", samples 0x");
	print_hex(samples);
	print("\n");
}

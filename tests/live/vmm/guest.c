/* SPDX-License-Identifier: MIT */
/*
 * The flat guest of ballast-vmm's tests: fills memory with words that it can tell, checks them
 *round after round, and says "FLAT round=N errors=N" on the serial line. What it is sent:
 *
 *	e	echoes the bytes that follow, up to a full stop
 *	q	powers off	r  resets	x  an exception, which is a triple fault
 */
#include "common/types.h"
#include "vmm/layout.h"
#include "vmm/pm.h"

#define FIRST MIB(4) /* behind code and stack */
#define WORDS (MIB(8) / sizeof(u64))

static inline void out8(u16 port, u8 v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline void out16(u16 port, u16 v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port));
}

static inline u8 in8(u16 port)
{
	u8 v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void put(char c)
{
	while (!(in8(LAYOUT_PORT_SERIAL + 5) & 0x20))
		;
	out8(LAYOUT_PORT_SERIAL, (u8)c);
}

static void say(const char *s)
{
	while (*s)
		put(*s++);
}

static void say_number(u64 n)
{
	char digits[20];
	int i = 0;

	do {
		digits[i++] = (char)('0' + n % 10);
		n /= 10;
	} while (n);
	while (i)
		put(digits[--i]);
}

static bool has_input(void)
{
	return in8(LAYOUT_PORT_SERIAL + 5) & 1;
}

static char get(void)
{
	while (!has_input())
		;
	return (char)in8(LAYOUT_PORT_SERIAL);
}

static void obey(char c)
{
	switch (c) {
	case 'e':
		while ((c = get()) != '.')
			put(c);
		put('\n');
		break;
	case 'q':
		say("BYE\n");
		out16(LAYOUT_PORT_ACPI + PM_CONTROL, 1 << 13 | PM_SLP_TYP_S5 << 10);
		break;
	case 'r':
		out8(LAYOUT_PORT_ACPI + PM_RESET, PM_RESET_VALUE);
		break;
	case 'x':
		__asm__ volatile("ud2");
		break;
	default:
		break;
	}
}

/* Word @i in round @round: each page has its own 64 words, eight times, so that it compresses. */
static u64 word(u64 i, u64 round)
{
	u64 page = i * sizeof(u64) / PAGE_BYTES;

	return (page * 64 + i % 64 + 1) * 0x9e3779b97f4a7c15ULL ^ round;
}

static void __attribute__((noreturn, used)) run(void)
{
	volatile u64 *mem = (volatile u64 *)FIRST;
	u64 errors = 0;

	out8(LAYOUT_PORT_SERIAL + 2, 1); /* FIFO on */
	say("START\n");
	for (u64 round = 0;; round++) {
		for (u64 i = 0; i < WORDS; i++) {
			if (round && mem[i] != word(i, round - 1))
				errors++;
			mem[i] = word(i, round);
		}
		say("FLAT round=");
		say_number(round);
		say(" errors=");
		say_number(errors);
		put('\n');
		while (has_input())
			obey(get());
	}
}

/* In assembler: the entry must be the image's first byte. */
__asm__(".section .text.start, \"ax\"\n"
	".globl start\n"
	"start: call run\n"
	".text\n");

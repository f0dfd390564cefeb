/* SPDX-License-Identifier: MIT */
#include "tiering/entitlement.h"

#define GIB_BYTES 1073741824.0
/* Halvings of rho's logarithm: to a 2^-50th of its range. */
#define ROUNDS 100

/* f + k (1 - f). What is in use stays so when idle memory goes, so f is of what it has now: as in
 * ESX, where the estimate follows a minute later. */
static double weight(const struct claim *c, u32 idle_tax_permille)
{
	double f = c->bytes ? (double)MIN(c->active_bytes, c->bytes) / (double)c->bytes : 1;
	double k = 1 / (1 - (double)MIN(idle_tax_permille, 999u) / 1000);

	return f + k * (1 - f);
}

double claim_price(const struct claim *c, u64 bytes, u32 idle_tax_permille)
{
	return c->shares * GIB_BYTES / ((double)MAX(bytes, 1) * weight(c, idle_tax_permille));
}

static u64 entitled_at(const struct claim *c, u32 idle_tax_permille, double price)
{
	double bytes = c->shares * GIB_BYTES / (price * weight(c, idle_tax_permille));
	u64 floor = MIN(c->floor_bytes, c->bytes);

	if (bytes >= (double)c->bytes)
		return c->bytes;
	return MAX(floor, ROUND_DOWN((u64)bytes, PAGE_BYTES));
}

static u64 going_at(const struct claim *claims, u32 nr, u32 idle_tax_permille, double price)
{
	u64 sum = 0;

	for (u32 i = 0; i < nr; i++)
		sum += claims[i].bytes - entitled_at(&claims[i], idle_tax_permille, price);
	return sum;
}

u64 entitlement(const struct claim *claims, u32 nr, u32 idle_tax_permille, u64 take, u64 *entitled)
{
	double low = 1e-12, high = 1e24;
	u64 sum = 0;

	/* At @low all keep what they have, at @high all are at their floors. */
	for (u32 i = 0; i < ROUNDS && take; i++) {
		double mid = __builtin_sqrt(low * high);

		if (going_at(claims, nr, idle_tax_permille, mid) < take)
			low = mid;
		else
			high = mid;
	}
	for (u32 i = 0; i < nr; i++) {
		entitled[i] = take ? entitled_at(&claims[i], idle_tax_permille, high)
				   : claims[i].bytes;
		sum += claims[i].bytes - entitled[i];
	}
	/* What the last step of rho is too much stays with the first that gave. */
	for (u32 i = 0; i < nr && sum > take; i++) {
		u64 back = MIN(sum - take, claims[i].bytes - entitled[i]);

		entitled[i] += back;
		sum -= back;
	}
	return sum;
}

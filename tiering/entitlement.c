/* SPDX-License-Identifier: MIT */
#include "tiering/entitlement.h"

#define GIB_BYTES 1073741824.0
/* Halvings of rho's logarithm: to a 2^-50th of its range. */
#define ROUNDS 100

/* What an idle byte costs, where one in use costs 1. */
static double idle_price(u32 idle_tax_permille)
{
	return 1 / (1 - (double)MIN(idle_tax_permille, 999u) / 1000);
}

double claim_price(const struct claim *c, u64 bytes, u32 idle_tax_permille)
{
	u64 active = MIN(c->active_bytes, bytes);
	double paid = (double)active + idle_price(idle_tax_permille) * (double)(bytes - active);

	return c->shares * GIB_BYTES / MAX(paid, 1.0);
}

static u64 entitled_at(const struct claim *c, double k, double price)
{
	double paid = c->shares * GIB_BYTES / price, bytes = paid;
	u64 floor = MIN(c->floor_bytes, c->bytes);

	if (paid > (double)c->active_bytes)
		bytes = (double)c->active_bytes + (paid - (double)c->active_bytes) / k;
	if (bytes >= (double)c->bytes)
		return c->bytes;
	return MAX(floor, ROUND_DOWN((u64)bytes, PAGE_BYTES));
}

static u64 going_at(const struct claim *claims, u32 nr, double k, double price)
{
	u64 sum = 0;

	for (u32 i = 0; i < nr; i++)
		sum += claims[i].bytes - entitled_at(&claims[i], k, price);
	return sum;
}

u64 entitlement(const struct claim *claims, u32 nr, u32 idle_tax_permille, u64 take, u64 *entitled)
{
	double low = 1e-12, high = 1e24, k = idle_price(idle_tax_permille);
	u64 sum = 0;

	/* At @low all keep what they have, at @high all are at their floors. */
	for (u32 i = 0; i < ROUNDS && take; i++) {
		double mid = __builtin_sqrt(low * high);

		if (going_at(claims, nr, k, mid) < take)
			low = mid;
		else
			high = mid;
	}
	for (u32 i = 0; i < nr; i++) {
		entitled[i] = take ? entitled_at(&claims[i], k, high) : claims[i].bytes;
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

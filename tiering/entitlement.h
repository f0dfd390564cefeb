/* SPDX-License-Identifier: MIT */
/*
 * Who gives how much: ESX's min-funding revocation with an idle-memory tax, solved at once instead
 * of page by page.
 *
 * A VM pays shares for its pages. With S shares, P pages of which the fraction f is in use, and the
 * tax t on idle pages, a page of it is worth
 *
 *	rho = S / (P (f + k (1 - f))),  k = 1 / (1 - t)
 *
 * (Waldspurger 2002, section 5.2), which is: S shares for P f pages in use and P (1 - f) idle ones
 *of k times the price. Memory is taken from the VM with the lowest rho, which raises it, until
 *others are as low. What goes first is idle, so that with A pages in use the VM pays for min(P, A)
 *+ k max(0, P - A). At the end all that gave have one rho, those that were higher kept what they
 *had, and none is below its floor. The sum that is left falls as rho rises, so rho is found by
 *bisection.
 *
 * So it does not matter in how many steps memory is taken (with f kept as it was at the beginning
 *it would: the result was off by 30% in bench/sim).
 */
#ifndef BALLAST_TIERING_ENTITLEMENT_H
#define BALLAST_TIERING_ENTITLEMENT_H

#include "common/types.h"

struct claim {
	u64 bytes;	  /* has now */
	u64 floor_bytes;  /* keeps; more than @bytes counts as @bytes */
	u64 active_bytes; /* in use; more than @bytes counts as all of it */
	u32 shares;	  /* > 0 */
};

/*
 * What each claim is entitled to when @take bytes have to go: @entitled[i] <= claims[i].bytes. The
 * sum of what goes is @take, to 4 KiB a claim, or all that lies above the floors. Returns what
 * goes.
 */
u64 entitlement(const struct claim *claims, u32 nr, u32 idle_tax_permille, u64 take, u64 *entitled);

/* What the claim would pay for a GiB in use, in shares, if it had @bytes. For explanations and
 * tests. */
double claim_price(const struct claim *c, u64 bytes, u32 idle_tax_permille);

#endif

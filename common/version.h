/* SPDX-License-Identifier: MIT */
/* What --version and ballast_build_info say; a package sets its own with -D. */
#ifndef BALLAST_COMMON_VERSION_H
#define BALLAST_COMMON_VERSION_H

#ifndef BALLAST_VERSION
#define BALLAST_VERSION "0.1.0"
#endif

#endif

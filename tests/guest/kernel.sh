# shellcheck shell=bash
# Kernels out of Debian's packages, for the scripts that prepare guests and the test host. Sourced, from the top of
# the tree. A package is downloaded by apt into build/cache and unpacked, never installed. KERNEL_WHO names the caller in messages.

kernel_cache=build/cache

kernel_die()
{
	echo "$KERNEL_WHO: $*" >&2
	exit 1
}

# The meta package only names the current one: linux-image-6.12.N+deb12-cloud-amd64, linux-image-6.1.0-N-cloud-amd64.
__kernel_resolve() # META RELEASE
{
	apt-cache depends "$1" 2>/dev/null |
		sed -n "s/^ *Depends: \(linux-image-${2//./\\.}\.[0-9][^ ]*\)\$/\1/p" | head -n 1
}

# Prints nothing, and is no error, when there is none yet. The meta package has no number after its release.
__kernel_newest() # RELEASE FLAVOUR
{
	# A generic package has no flavour in its name, so that its glob would take a cloud one, too.
	{ ls -t $kernel_cache/linux-image-"$1".[0-9]*_*.deb 2>/dev/null || true; } |
		{ if [ "$2" = cloud ]; then grep -- -cloud-amd64_; else grep -v -- -cloud-; fi || true; } | head -n 1
}

# kernel_deb META RELEASE FLAVOUR: prints the path of the package that META (such as linux-image-6.12-cloud-amd64)
# stands for, downloading it if there is none of its RELEASE (6.12) and FLAVOUR (cloud, generic) in the cache.
kernel_deb()
{
	local meta=$1 release=$2 flavour=$3 real deb log=$PWD/$kernel_cache/apt.log

	mkdir -p $kernel_cache
	deb=$(__kernel_newest "$release" "$flavour")
	if [ -z "$deb" ]; then
		real=$(__kernel_resolve "$meta" "$release")
		if [ -z "$real" ]; then
			apt-get update -q >"$log" 2>&1 || true
			real=$(__kernel_resolve "$meta" "$release")
		fi
		[ -n "$real" ] || kernel_die "apt knows no $meta: check /etc/apt/sources.list (bookworm-security)" \
			"and run apt-get update (log: $kernel_cache/apt.log)"
		echo "$KERNEL_WHO: downloading $real (30 to 100 MB)" >&2
		# Stale package lists name a version that the mirror no longer has: fetch them and try again.
		(cd $kernel_cache && { apt-get -o APT::Sandbox::User=root download "$real" >"$log" 2>&1 || {
			apt-get update -q >>"$log" 2>&1
			apt-get -o APT::Sandbox::User=root download "$(__kernel_resolve "$meta" "$release")" >>"$log" 2>&1
		}; }) || kernel_die "could not download $real (log: $kernel_cache/apt.log)"
		deb=$(__kernel_newest "$release" "$flavour")
	fi
	echo "$deb"
}

# kernel_modules FROM TO NAME...: copies the modules of FROM (lib/modules/VERSION of an unpacked package) to TO/NAME.ko,
# uncompressed, and all that they depend on. Prints the names, dependencies first, each once. A name is with "_" for "-".
# What is built into the kernel is left out; what is neither is an error.
kernel_modules()
{
	local from=$1 to=$2
	shift 2
	# modules.dep is made by depmod when a package is installed: here the modules themselves say what they need.
	local -A __path=() __seen=()
	local f name
	while IFS= read -r f; do
		name=${f##*/}
		name=${name%%.ko*}
		__path[${name//-/_}]=$f
	done < <(find "$from/kernel" -name '*.ko' -o -name '*.ko.xz')
	while IFS= read -r f; do
		name=${f##*/}
		name=${name%.ko}
		__seen[${name//-/_}]=builtin
	done <"$from/modules.builtin"
	mkdir -p "$to"
	for name; do
		__kernel_module "$to" "$name"
	done
}

__kernel_module() # TO NAME; the arrays are kernel_modules'
{
	local to=$1 name=$2 file need
	[ -z "${__seen[$name]+x}" ] || return 0
	__seen[$name]=1
	file=${__path[$name]:-}
	[ -n "$file" ] || kernel_die "the kernel has no module $name"
	case $file in
	*.xz) /bin/busybox xzcat "$file" >"$to/$name.ko" || kernel_die "cannot unpack $file: is the disk full?" ;;
	*) cp "$file" "$to/$name.ko" ;;
	esac
	for need in $(tr '\0' '\n' <"$to/$name.ko" | sed -n 's/^depends=//p' | tr ',-' ' _'); do
		__kernel_module "$to" "$need"
	done
	echo "$name"
}

# kernel_vmlinux BZIMAGE VMLINUX: the ELF kernel that a bzImage carries compressed. Where it lies is in the setup header
# (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c); its last four
# bytes are its unpacked size, which the unpackers would take for garbage.
kernel_vmlinux()
{
	local setup offset length magic unpack
	setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$1")
	offset=$(od -An -tu4 -j $((0x248)) -N4 "$1")
	length=$(od -An -tu4 -j $((0x24c)) -N4 "$1")
	offset=$(((setup + 1) * 512 + offset))
	magic=$(od -An -tx4 -j $offset -N4 "$1")
	case ${magic// /} in
	fd2fb528) unpack=(zstd -dcq) ;;
	184c2102) unpack=(lz4 -dcq) ;;
	*) kernel_die "$1: payload is neither zstd nor lz4 ($magic)" ;;
	esac
	command -v "${unpack[0]}" >/dev/null || kernel_die "${unpack[0]} is missing: apt-get install zstd lz4"
	tail -c +$((offset + 1)) "$1" | { head -c $((length - 4)) && cat >/dev/null; } | "${unpack[@]}" >"$2.tmp" ||
		kernel_die "cannot unpack the payload of $1"
	[ "$(od -An -tx4 -N4 "$2.tmp" | tr -d ' ')" = 464c457f ] || kernel_die "$1 does not carry an ELF kernel"
	mv "$2.tmp" "$2"
}

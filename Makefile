# Everything that a fresh clone needs is behind these targets; `make help` lists them.

CARGO  ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# Where cargo builds to; loom compiles the same crates with another cfg, so it gets a place of its own.
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
# Where `make bench` and `make bench-quick` write their reports.
RESULTS ?= bench/results
QUICK ?= bench/results/local
# Where `make test-linux` unpacks Debian's Linux sources; a tmpfs is fastest.
LINUX ?= $(TARGET)/linux
# The test files that `make test-long` runs at length.
LONG ?= conformance differential locks staleness real_programs kernel_build
CARGO_DENY_VERSION := 0.20.2

# What the tests and the demonstration use, by the program that shows whether the package is there.
PACKAGES := fusermount3:fuse3 git:git gcc:gcc nm:binutils tar:tar setfacl:acl getfattr:attr strace:strace python3:python3 \
            rsync:rsync ps:procps make:make perl:perl sqlite3:sqlite3 c++:g++ setpriv:util-linux faketime:faketime \
            inotifywait:inotify-tools flock:util-linux patch:patch vim:vim tmux:tmux clang:clang \
            qemu-system-x86_64:qemu-system-x86
# The same for packages without programs, by a file.
HEADERS := /usr/share/doc/busybox-static/copyright:busybox-static /usr/include/stdio.h:libc6-dev /usr/lib/*/libjemalloc.so.2:libjemalloc2

# What the sessions of large programs use besides: see `make programs`.
LARGE := node:nodejs javac:default-jdk-headless

.PHONY: all help deps build test test-linux test-long kernels vm mutants linux programs programs-deps lint deny bench bench-quick bench-deps upcalls demo install uninstall clean

all: build

help:
	@echo 'make          build everything, optimised'
	@echo 'make demo     install what is missing, build, show ordinary programs on all three roads'
	@echo 'make test     formatting, lints, unit tests, models, tests on real mounts'
	@echo 'make test-linux   find, git, tar, cp and rm on a Linux source tree (10 GB in LINUX: $(LINUX))'
	@echo 'make linux    a Linux kernel built natively, on the kernel road and on the bypass, compared'
	@echo 'make programs sessions of real programs on all roads, also of large ones: a table of what was bypassed'
	@echo 'make vm       the tests of BPF programs and policies, here and in guest machines with other kernels (QEMU; 50 MB from Debian)'
	@echo 'make test-long    for hours: $(LONG)'
	@echo 'make mutants  leave out what keeps the roads coherent, part by part, and see that it is noticed'
	@echo 'make lint     formatting, clippy, and cargo-deny (which it installs)'
	@echo 'make bench    everything measured, for hours: JSON, a report and plots in RESULTS: $(RESULTS)'
	@echo 'make bench-quick  the same in short, in ten minutes, in QUICK: $(QUICK)'
	@echo 'make upcalls  what unmodified programs ask of the daemon, counted, and a Linux build timed, beside bindfs'
	@echo 'make install  into PREFIX ($(PREFIX)): command, preload library, manual pages'

# As root this installs what is missing; as an ordinary user it says what is.
deps:
	@missing=; \
	for entry in $(PACKAGES); do \
	    command -v "$${entry%%:*}" >/dev/null || missing="$$missing $${entry#*:}"; \
	done; \
	for entry in $(HEADERS); do \
	    ls $${entry%%:*} >/dev/null 2>&1 || missing="$$missing $${entry#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing:$$missing"; \
	        apt-get install -y --no-install-recommends $$missing >/dev/null || \
	        { apt-get update && apt-get install -y --no-install-recommends $$missing; }; \
	    else \
	        echo "missing packages (install them as root):$$missing"; \
	    fi; \
	fi
	@command -v $(CARGO) >/dev/null || { \
	    echo 'cargo is missing: install Rust 1.88 or later from https://rustup.rs'; exit 1; }
	@test -c /dev/fuse || [ "$$(id -u)" != 0 ] || modprobe fuse || { \
	    echo '/dev/fuse is missing and modprobe fuse failed: tests on mounts will fail'; }

build:
	$(CARGO) build --workspace --release --locked

demo: deps build
	$(RELEASE)/finesse doctor
	$(RELEASE)/finesse-bench demo

# What is measured besides Finesse, and with what; what is missing is left out, and the report says so.
bench-deps: deps
	@missing=; \
	for entry in bindfs:bindfs fio:fio mkfs.ext4:e2fsprogs flex:flex bison:bison bc:bc; do \
	    PATH="$$PATH:/usr/sbin:/sbin" command -v "$${entry%%:*}" >/dev/null || missing="$$missing $${entry#*:}"; \
	done; \
	[ -z "$$missing" ] || { echo "installing:$$missing"; \
	    apt-get install -y --no-install-recommends $$missing >/dev/null || \
	    { apt-get update && apt-get install -y --no-install-recommends $$missing; } || \
	    echo "missing:$$missing: the report will say what was left out"; }

# In a mount name space of its own, so that preloaded programs elsewhere do not find the mounts. ONLY names parts:
# unlink, metadata, data, server, work, breakdown, scaling, rest.
SUITE = unshare --mount --propagation private \
    $(RELEASE)/finesse-bench suite --linux $(LINUX) $(if $(ONLY),--only $(ONLY))

bench: bench-deps build $(LINUX)/Makefile
	$(SUITE) --scale full --results $(RESULTS)

bench-quick: bench-deps build $(LINUX)/Makefile
	$(SUITE) --scale small --results $(QUICK)

# BEFORE names the `finesse` of an earlier build, to be compared with.
upcalls: deps-linux build $(LINUX)/Makefile
	@command -v bindfs >/dev/null || apt-get install -y --no-install-recommends bindfs || \
	    echo 'bindfs is missing: it will not be compared with'
	unshare --mount --propagation private \
	    $(RELEASE)/finesse-bench upcalls --linux $(LINUX) --json $(TARGET)/upcalls.json $(if $(BEFORE),--before $(BEFORE))

test: deps kernels
	@CARGO='$(CARGO)' .ci/test

# Kernels for guest machines, in which BPF programs are tested that not every kernel loads. Without them those tests are
# skipped, and say so.
kernels:
	@tests/vm/kernels $(TARGET)/vm >/dev/null || echo 'no kernels for guests: see above'

vm: deps kernels
	$(CARGO) test --profile checked --locked -p finesse-tests --test bpf --test policy -- --nocapture

# Debian's Linux sources, for the tests that need a large tree, and what a kernel build needs.
$(LINUX)/Makefile: | deps
	@set -e; \
	ls /usr/src/linux-source-*.tar.xz >/dev/null 2>&1 || \
	apt-get install -y --no-install-recommends linux-source xz-utils || \
	{ apt-get update && apt-get install -y --no-install-recommends linux-source xz-utils; }; \
	rm -rf $(LINUX).partial; mkdir -p $(LINUX).partial; \
	tar xJf "$$(ls /usr/src/linux-source-*.tar.xz | tail -n 1)" -C $(LINUX).partial --strip-components=1; \
	mv $(LINUX).partial $(LINUX)

test-linux: deps $(LINUX)/Makefile
	FINESSE_LINUX_TREE=$(abspath $(LINUX)) $(CARGO) test --release --locked -p finesse-tests --test linux_tree -- --nocapture

# What builds a kernel, besides what `deps` installs.
.PHONY: deps-linux
deps-linux: deps
	@for program in flex bison bc; do \
	    command -v $$program >/dev/null || apt-get install -y --no-install-recommends $$program || exit 1; \
	done

linux: deps-linux $(LINUX)/Makefile
	FINESSE_LINUX_TREE=$(abspath $(LINUX)) $(CARGO) test --release --locked -p finesse-tests --test kernel_build -- --nocapture

# Python's tests are those of the machine's Python.
programs-deps: deps
	@missing=; \
	for entry in $(LARGE); do \
	    command -v "$${entry%%:*}" >/dev/null || missing="$$missing $${entry#*:}"; \
	done; \
	test -e /usr/lib/python3.11/test/test_os.py || missing="$$missing libpython3.11-testsuite"; \
	if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; \
	    apt-get install -y --no-install-recommends $$missing >/dev/null || \
	    { apt-get update && apt-get install -y --no-install-recommends $$missing; }; \
	fi

# One session after the other, so that their times can be compared.
programs: programs-deps
	@mkdir -p $(TARGET); \
	FINESSE_LONG=1 $(CARGO) test --release --locked -p finesse-tests --test real_programs -- \
	    --nocapture --test-threads=1 >$(TARGET)/programs.log; status=$$?; \
	echo '| session | path calls | bypassed, % | the rest, by reason, % | native, s | kernel road, s | bypass, s |'; \
	echo '| --- | --- | --- | --- | --- | --- | --- |'; \
	grep '^| ' $(TARGET)/programs.log; \
	[ $$status = 0 ] || grep -vE '^\||^$$| ok$$' $(TARGET)/programs.log; exit $$status

test-long: deps $(if $(filter kernel_build,$(LONG)),deps-linux $(LINUX)/Makefile) \
    $(if $(filter real_programs,$(LONG)),programs-deps)
	FINESSE_LONG=1 FINESSE_LINUX_TREE=$(abspath $(LINUX)) $(CARGO) test --profile checked --locked --no-fail-fast -p finesse-tests \
	    $(patsubst %,--test %,$(LONG)) -- --nocapture --include-ignored --test-threads=1

# Parts are left out in builds with assertions only: `daemon/src/mutant.rs`.
mutants: deps
	$(CARGO) test --profile checked --locked -p finesse-tests --test staleness -- --nocapture --include-ignored \
	    --exact every_part_that_is_left_out_is_noticed

lint: deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Advisories are checked by `cargo deny check advisories`, which needs their database from the network.
deny:
	@command -v cargo-deny >/dev/null || \
	    $(CARGO) install --locked --debug --version $(CARGO_DENY_VERSION) cargo-deny
	$(CARGO) deny --workspace --all-features check bans licenses sources

install: build
	install -D -m 755 $(RELEASE)/finesse $(DESTDIR)$(PREFIX)/bin/finesse
	install -D -m 755 $(RELEASE)/finesse-bench $(DESTDIR)$(PREFIX)/bin/finesse-bench
	install -D -m 755 $(RELEASE)/finesse-bench-calls $(DESTDIR)$(PREFIX)/bin/finesse-bench-calls
	install -D -m 755 $(RELEASE)/libfinesse_preload.so $(DESTDIR)$(PREFIX)/lib/finesse/libfinesse_preload.so
	install -d $(DESTDIR)$(PREFIX)/share/man
	$(RELEASE)/finesse man $(DESTDIR)$(PREFIX)/share/man

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/finesse $(DESTDIR)$(PREFIX)/bin/finesse-bench \
	    $(DESTDIR)$(PREFIX)/bin/finesse-bench-calls \
	    $(DESTDIR)$(PREFIX)/share/man/man1/finesse.1 $(DESTDIR)$(PREFIX)/share/man/man1/finesse-*.1 \
	    $(DESTDIR)$(PREFIX)/share/man/man5/finesse-policy.5
	rm -rf $(DESTDIR)$(PREFIX)/lib/finesse

clean:
	$(CARGO) clean

# dpkg-deb: a package built on the mount, looked at, unpacked, and installed into a root of its own.
set -eu
mkdir -p pkg/DEBIAN pkg/usr/bin pkg/usr/share/doc/finesse-test pkg/etc
printf 'Package: finesse-test\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: a test\n' > pkg/DEBIAN/control; echo /etc/finesse-test.conf > pkg/DEBIAN/conffiles
printf '#!/bin/sh\nset -e\necho configured > "${DPKG_ROOT:-}/configured"\n' > pkg/DEBIAN/postinst; chmod 755 pkg/DEBIAN/postinst
printf '#!/bin/sh\necho hello\n' > pkg/usr/bin/hello; chmod 755 pkg/usr/bin/hello; for i in $(seq 100); do echo "doc $i" > "pkg/usr/share/doc/finesse-test/d$i"; done; echo setting > pkg/etc/finesse-test.conf; ln -s hello pkg/usr/bin/hi; ln pkg/usr/bin/hello pkg/usr/bin/hola
find pkg -exec touch -h -d '2020-02-02 UTC' {} +
SOURCE_DATE_EPOCH=1580601600 dpkg-deb --root-owner-group -Zgzip --build pkg test.deb; sha256sum test.deb
dpkg-deb --info test.deb | sed 1,2d; dpkg-deb --contents test.deb | md5sum; dpkg-deb --field test.deb Version; dpkg-deb --fsys-tarfile test.deb | tar t | wc -l
mkdir out; dpkg-deb --raw-extract test.deb out/raw; dpkg -x test.deb out/x; dpkg -e test.deb out/e; diff -r --no-dereference pkg out/raw; ls out/x out/e; out/x/usr/bin/hi; [ out/x/usr/bin/hello -ef out/x/usr/bin/hola ] && echo linked
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates root/var/lib/dpkg/triggers; : > root/var/lib/dpkg/status; : > root/var/lib/dpkg/available
install() { dpkg --root="$PWD/root" --force-script-chrootless --force-not-root --force-bad-path --log=/dev/null "$@" 2>&1 | sed "s:$PWD:HERE:g"; }
install --install test.deb; cat root/configured root/etc/finesse-test.conf; install --status finesse-test | head -n 2; install --listfiles finesse-test | wc -l; install --verify finesse-test; echo local >> root/etc/finesse-test.conf; install --verify finesse-test; install --force-confold --install test.deb; install --remove finesse-test; ls root/etc; install --purge finesse-test; find root -path root/var -prune -o -print | sort

# apt's downloads, unpacked: packages of the machine's own distribution, with a cache and lists of its own on the mount.
set -eu
mkdir -p lists/partial archives/partial out
options="-o Dir::Cache=$PWD -o Dir::Cache::archives=archives -o APT::Sandbox::User=root -o Acquire::Retries=3"
apt-get $options -q=2 download hello bash coreutils dash tzdata > /dev/null 2>&1 || { apt-get -q=2 update > /dev/null 2>&1; apt-get $options -q=2 download hello bash coreutils dash tzdata > /dev/null 2>&1; }
ls *.deb; sha256sum *.deb
for package in *.deb; do dpkg -x "$package" "out/${package%%_*}"; dpkg -e "$package" "out/${package%%_*}/DEBIAN"; (cd "out/${package%%_*}"; md5sum --quiet -c DEBIAN/md5sums && echo "$package intact"); dpkg-deb --contents "$package" | awk '{print $1, $3, $6}' | md5sum; done
find out | wc -l; out/hello/usr/bin/hello; out/bash/bin/bash -c 'echo an unpacked shell'; out/coreutils/bin/ls out | sort; rm -rf lists archives pkgcache.bin srcpkgcache.bin

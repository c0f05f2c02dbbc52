# Python's own regression tests for files, with the mount as the place for their files.
set -u
mkdir tmp; export TMPDIR="$PWD/tmp"
for test in test_os test_posix test_shutil test_tempfile test_mmap test_fileio; do
    /usr/bin/python3 -m test -v --tempdir "$TMPDIR" --junit-xml "$PWD/verdicts.xml" "$test" > log 2>&1; echo "$test: status $?"
    # The verdict on each by name; durations and messages are left out.
    /usr/bin/python3 - <<'END'
import xml.etree.ElementTree as xml
verdicts = [(test.get("name"), [part.tag for part in test if part.tag in ("error", "failure", "skipped")]) for test in xml.parse("verdicts.xml").iter("testcase")]
print(len(verdicts), *sorted(f"{name}: {' '.join(what) or 'ok'}" for name, what in verdicts), sep="\n")
END
    rm log verdicts.xml
done
rm -rf tmp
